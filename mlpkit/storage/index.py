"""What the cache holds, what goes first, and who uses what.

The first two are in SQLite, the third are locks of the kernel.

The index can be made again from the folders of the entries at any time, and nothing in it is needed to serve a copy. So
it is written without waiting for the disk, and a fault of it is a warning: the index is made again, or the cache goes
on without it. It has no write-ahead log, because that needs memory that processes share, which a network file system
does not have.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import sqlite3
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import filelock
import msgspec

from mlpkit.errors import StorageError
from mlpkit.log import logger
from mlpkit.storage.files import decode_json
from mlpkit.storage.store import is_full

Result = TypeVar("Result")
Files = list[tuple[int, int]]
"""Inode and size of each file of an entry."""

_BUSY_SECONDS = 10.0
"""How long a transaction waits for those of others, which take milliseconds."""
_REBUILD_SECONDS = 600.0
_SCANNED_AT_ONCE = 200
"""Entries that a scan adds in one transaction."""
_TOUCH_PERIOD = 60 * 10**9
"""Nanoseconds after which a hit is written to the index; until then it is in the time of the entry's `meta.json`."""
_RESERVE = 256 << 10
_VERSION = 1
_SCHEMA = f"""
PRAGMA user_version = {_VERSION};
CREATE TABLE entries(
    name TEXT PRIMARY KEY, subject TEXT NOT NULL, used INTEGER NOT NULL, obtained INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX entries_by_use ON entries(used);
CREATE INDEX entries_by_subject ON entries(subject, obtained);
CREATE TABLE files(
    entry TEXT NOT NULL, inode INTEGER NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (entry, inode)
) WITHOUT ROWID;
CREATE INDEX files_by_inode ON files(inode);
CREATE TABLE account(total INTEGER NOT NULL, epoch BLOB NOT NULL);
CREATE TABLE stamps(place INTEGER PRIMARY KEY, stamp BLOB NOT NULL);
"""
_OF_VERSION_0 = ("usage", "usage.lock", "oldest", "moves", "look.lock", "changes", "newest", "users")
"""What the cache of mlpkit before 0.2 kept in place of the index."""


class Meta(msgspec.Struct, frozen=True):
    """What an entry holds, and where it came from.

    Of each file it has the size in bytes and the digest.

    It is the file `meta.json` of the entry, whose time of change is the last use of the entry.
    """

    source: str
    subject: str
    files: dict[str, tuple[int, str]]


class Holds:
    """Which entries are in use, by this process and by others.

    Safe from every thread.

    A use is a lock on one byte of a file, so that it ends with its process, however that ends, and needs no room on the
    disk. The locks belong to the open file and not to the process (`F_OFD_SETLK`), so threads have them in common.
    """

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._removed: set[str] = set()
        self._used = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        # Opened twice: a lock for removing must conflict with our own uses too.
        self._removing = os.open(file, os.O_RDWR)
        self._open = True

    def hold(self, name: str) -> None:
        """The name is in use from now on.

        Each `hold` needs a `release`. Waits while another process removes it.

        Raises:
            StorageError: the cache was closed.
        """
        with self._lock:
            if not self._open:
                raise StorageError("the storage was closed while it was in use")
            if not self._counts[name]:
                _lock_byte(self._used, fcntl.F_RDLCK, name, wait=True)
            self._counts[name] += 1

    def release(self, name: str) -> None:
        """Takes one `hold` back.

        A name that is not held is not an error.
        """
        with self._lock:
            if self._counts[name] > 1:
                self._counts[name] -= 1
            elif self._counts.pop(name, 0) and self._open:
                _lock_byte(self._used, fcntl.F_UNLCK, name)

    @contextlib.contextmanager
    def unless_held(self, name: str) -> Iterator[bool]:
        """Whether nobody uses the name.

        If so, nobody can begin to use it inside the block.
        """
        with self._lock:
            free = self._open and not self._counts.get(name) and name not in self._removed
            if free:
                free = _lock_byte(self._removing, fcntl.F_WRLCK, name)
            if free:
                self._removed.add(name)
        try:
            yield free
        finally:
            if free:
                self._removed.discard(name)
                with contextlib.suppress(OSError):
                    _lock_byte(self._removing, fcntl.F_UNLCK, name)

    def close(self) -> None:
        """Releases everything."""
        with self._lock:
            if self._open:
                self._open = False
                for name in self._counts:
                    # Not by closing alone: a child that was forked meanwhile has the same open file.
                    _lock_byte(self._used, fcntl.F_UNLCK, name)
                self._counts.clear()
                os.close(self._used)
                os.close(self._removing)


def _lock_byte(file: int, kind: int, name: str, *, wait: bool = False) -> bool:
    """Locks or unlocks the byte of the name; False if impossible now."""
    start = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")
    # struct flock: l_type, l_whence, l_start, l_len, l_pid
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, 1, 0)
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):
        return False
    return True


class CacheIndex:
    """The entries of a cache with their files and last uses.

    All processes share them. Safe from every thread.

    A file that several entries share (hard links) is counted once. No method raises anything because of the index
    itself, with one exception: a disk that is full.
    """

    def __init__(self, folder: Path, holds: Holds) -> None:
        self._folder = folder
        self._path = str(folder / "index.db")
        self._holds = holds
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._incomplete = False
        self._said = ""
        with self._lock:
            try:
                self._connected()
            except sqlite3.OperationalError as error:
                if "unable to open" in str(error):
                    raise OSError(errno.EIO, str(error), self._path) from None
                self._warn(error)
            except sqlite3.DatabaseError as error:
                self._renew(error)

    def total(self) -> int | None:
        """The bytes of all entries; None if that is not known now."""
        row = self._read("SELECT total FROM account")
        return None if row is None else int(row[0])

    @contextlib.contextmanager
    def adding(self, entry: str, subject: str, files: Files) -> Iterator[None]:
        """Adds an entry, which the block moves into its place.

        It is counted before it comes, so a process that is killed in between leaves too much in the account and never
        too little.

        Raises:
            OSError: the disk is full; nothing was added.
        """
        self._write(lambda database: _add(database, entry, subject, files, time.time_ns()))
        added_to = self._file
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(entry)
            raise
        if self._identity() != added_to:
            # The index was made again meanwhile, maybe before the entry was in its place.
            self._write(lambda database: _add(database, entry, subject, files, time.time_ns()))

    def remove(self, entry: str) -> None:
        """Forgets an entry, which has gone already.

        Raises:
            OSError: the disk is full.
        """
        self._write(lambda database: _remove(database, entry))

    def oldest(self) -> tuple[str, int] | None:
        """The entry whose noted last use is the longest ago.

        With that use, in nanoseconds. None if the cache is empty.
        """
        row = self._read("SELECT name, used FROM entries ORDER BY used LIMIT 1")
        return None if row is None else (str(row[0]), int(row[1]))

    def note_use(self, entry: str, used: int) -> None:
        """Notes when an entry was used last."""
        with contextlib.suppress(OSError):
            self._write(lambda database: database.execute("UPDATE entries SET used=? WHERE name=?", (used, entry)))

    def newest(self, subject: str) -> str | None:
        """The entry that was obtained last under the subject."""
        row = self._read("SELECT name FROM entries WHERE subject=? ORDER BY obtained DESC LIMIT 1", subject)
        return None if row is None else str(row[0])

    def note_obtained(self, subject: str, entry: str) -> None:
        """Notes that an entry is the newest under its subject.

        In most cases that is known, and nothing is written.
        """
        row = self._read("SELECT name, used FROM entries WHERE subject=? ORDER BY obtained DESC LIMIT 1", subject)
        now = time.time_ns()
        if row is not None and (row[0] != entry or row[1] < now - _TOUCH_PERIOD):
            statement = "UPDATE entries SET used=?, obtained=? WHERE name=?"
            with contextlib.suppress(OSError):
                self._write(lambda database: database.execute(statement, (now, now, entry)))

    def stamp(self, place: int) -> bytes:
        """The stamp of a place that `change_stamps` changes.

        It is never twice the same if it cannot be read.
        """
        row = self._read("SELECT coalesce((SELECT stamp FROM stamps WHERE place=?), epoch) FROM account", place)
        return os.urandom(8) if row is None else bytes(row[0])

    def change_stamps(self, places: Iterable[int]) -> None:
        """Gives the places new stamps.

        Raises:
            OSError: the disk is full.
        """
        rows = [(place, os.urandom(8)) for place in places]
        self._write(lambda database: database.executemany("INSERT OR REPLACE INTO stamps VALUES (?, ?)", rows))

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._disconnect()

    def _read(self, statement: str, *values: object) -> Any:
        return self._done(lambda database: database.execute(statement, values).fetchone())

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        def transaction(database: sqlite3.Connection) -> bool:
            database.execute("BEGIN IMMEDIATE")
            try:
                work(database)
                database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise
            return True

        if self._done(transaction) is None:
            # Something is missing in it now.
            self._incomplete = True

    def _done(self, work: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """What the work gives; None if the index cannot be used now."""
        with self._lock:
            for attempt in range(2):
                try:
                    database = self._connected()
                    if self._incomplete:
                        self._scan()
                        self._incomplete = False
                    return work(database)
                except sqlite3.DatabaseError as error:
                    if "full" in str(error):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path) from error
                    if "locked" in str(error) or attempt == 1:
                        self._warn(error)
                        return None
                    self._renew(error)
                except OSError as error:
                    if is_full(error):
                        raise
                    self._warn(error)
                    return None
        return None

    def _connected(self) -> sqlite3.Connection:
        """The connection to the file that is there now.

        The file is made if it is missing.
        """
        found = self._identity()
        if self._connection is None or found is None or found != self._file:
            self._disconnect()
            if found is None:
                self._make_file(instead_of=None)
                if self._connection is not None:
                    return self._connection
            self._file = self._identity()
            self._connection = _connect(self._path)
            if self._connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                raise sqlite3.DatabaseError("it has another version")
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _renew(self, error: sqlite3.Error) -> None:
        """Makes a new index, unless another process has done so."""
        logger.warning("the index of the file cache {} is made again: {}", self._folder, error)
        broken = self._file
        self._disconnect()
        try:
            self._make_file(instead_of=broken)
        except (OSError, sqlite3.Error, filelock.Timeout) as another:
            self._warn(another)

    def _make_file(self, instead_of: tuple[int, int] | None) -> None:
        """Puts a new index in place of that file, or of none.

        It is filled from the folders of the entries.

        Others find the new one with their next question, and add to it while it is filled.
        """
        with filelock.FileLock(f"{self._path}.lock", timeout=_REBUILD_SECONDS, mode=_mode_in(self._folder)):
            if self._identity() != instead_of:
                return
            made = f"{self._path}.{secrets.token_hex(4)}"
            try:
                os.close(os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
                with contextlib.closing(_connect(made)) as database:
                    database.executescript(_SCHEMA)
                    database.execute("INSERT INTO account VALUES (0, ?)", (os.urandom(8),))
                with contextlib.suppress(FileNotFoundError):
                    # Of the file that goes: it would be played back into the new one.
                    os.unlink(f"{self._path}-journal")
                os.replace(made, self._path)
            finally:
                for file in (made, f"{made}-journal"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(file)
        self._file = self._identity()
        self._connection = _connect(self._path)
        # Room for the last changes on a disk that is full: pages that are free, and a journal that stays as long.
        self._connection.execute("CREATE TABLE reserve AS SELECT zeroblob(?) AS content", (_RESERVE,))
        self._connection.execute("UPDATE reserve SET content = randomblob(?)", (_RESERVE,))
        self._connection.execute("DROP TABLE reserve")
        self._scan()
        for name in _OF_VERSION_0:
            with contextlib.suppress(OSError):
                os.unlink(self._folder / name)
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def _scan(self) -> None:
        """Adds the entries of the folder that are not in the index."""
        assert self._connection is not None
        with os.scandir(self._folder / "entries") as entries:
            names = [entry.name for entry in entries]
        for start in range(0, len(names), _SCANNED_AT_ONCE):
            held: list[str] = []
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for name in names[start : start + _SCANNED_AT_ONCE]:
                    # So that nobody removes it between the look at it and the end of the transaction.
                    self._holds.hold(name)
                    held.append(name)
                    if not self._connection.execute("SELECT 1 FROM entries WHERE name=?", (name,)).fetchone():
                        _add_from_folder(self._connection, self._folder / "entries" / name)
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                for name in held:
                    self._holds.release(name)

    def _warn(self, error: Exception) -> None:
        if self._said != str(error):
            self._said = str(error)
            logger.warning("the file cache {} goes on without its index for now: {}", self._folder, error)


def _connect(path: str) -> sqlite3.Connection:
    # Explicit transactions only. The object's own lock serves the threads.
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    # The journal stays: to make and remove a file with every change costs more, and a disk that is full has no room.
    database.execute("PRAGMA journal_mode = PERSIST")
    database.execute("PRAGMA synchronous = OFF")
    return database


def _add(database: sqlite3.Connection, entry: str, subject: str, files: Files, used: int) -> None:
    _remove(database, entry)
    database.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (entry, subject, used, used))
    added = 0
    for inode, size in files:
        if not database.execute("SELECT 1 FROM files WHERE inode=? LIMIT 1", (inode,)).fetchone():
            added += size
        database.execute("INSERT OR IGNORE INTO files VALUES (?, ?, ?)", (entry, inode, size))
    database.execute("UPDATE account SET total = total + ?", (added,))


def _remove(database: sqlite3.Connection, entry: str) -> None:
    if not database.execute("DELETE FROM entries WHERE name=?", (entry,)).rowcount:
        return
    rows = database.execute("SELECT inode, size FROM files WHERE entry=?", (entry,)).fetchall()
    database.execute("DELETE FROM files WHERE entry=?", (entry,))
    gone = 0
    for inode, size in rows:
        if not database.execute("SELECT 1 FROM files WHERE inode=? LIMIT 1", (inode,)).fetchone():
            gone += size
    database.execute("UPDATE account SET total = max(0, total - ?)", (gone,))


def _add_from_folder(database: sqlite3.Connection, folder: Path) -> None:
    """Adds the entry in that folder.

    One that is damaged is added too, so that it is counted and goes in its turn.
    """
    files: Files = []
    subject = ""
    used = 0
    with contextlib.suppress(OSError):
        files = [(found.st_ino, found.st_size) for found in _files_below(str(folder / "files"))]
    with contextlib.suppress(OSError, msgspec.DecodeError):
        used = os.stat(folder / "meta.json").st_mtime_ns
        subject = decode_json((folder / "meta.json").read_bytes(), Meta).subject
    if folder.exists():
        _add(database, folder.name, subject, files, used)


def _files_below(folder: str) -> Iterator[os.stat_result]:
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from _files_below(entry.path)
            else:
                yield entry.stat(follow_symlinks=False)


def _mode_in(folder: Path) -> int:
    """The mode for a file that this folder's writers share."""
    return os.stat(folder).st_mode & 0o666
