"""The file cache: local, read-only copies of objects.

All threads and processes that use the same folder share them.

    entries/<entry>/meta.json    what it holds, with sizes and digests; its time of change is that of the last use
    entries/<entry>/files/...    the copies
    locks/<entry>                held while the entry is made or checked
    making/<entry>/              half-made entries
    making/<entry>-<random>/     those on their way out
    index.db                     what there is and what goes first (see `CacheIndex`)
    holds                        who uses what (see `Holds`)

An entry is made once, under its lock, in `making`, and renamed into its place; it never changes after that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import filelock
import msgspec

from mlpkit.errors import StorageError, StorageUnavailable
from mlpkit.log import logger
from mlpkit.settings import Settings
from mlpkit.storage.files import decode_json
from mlpkit.storage.index import CacheIndex, Holds, Meta
from mlpkit.storage.store import digest_of, is_full

_LONGEST_WAIT = 3600.0
_POLL_SECONDS = 0.01
_MOST_KNOWN = 1000
_NOTICEABLE = 0.05
_REST = 20.0
"""If all is in use, the next eviction waits this many times as long as the last one took."""
_EVICTION = "eviction"
"""The lock of the process that removes entries: one at a time, so that no two remove more than is too much."""
_Fingerprint = tuple[tuple[str, int, int, int, int], ...]
"""Name, inode, size and times of each file."""
Make = Callable[[Path], Mapping[str, str]]
"""Fills a folder; gives the digests that it knows of files in it, by their names."""
Count = Callable[[Literal["hit", "miss", "eviction"], int], None]
"""Gets what the cache did, and how often."""


def _do_not_count(event: str, number: int) -> None:
    """For a cache of which nobody wants to know."""


class FileCache:
    """A cache in a folder, of at most `limit` bytes.

    The least recently used entries go first.

    One that is held never goes. Entries are known by a name that changes with their content, so that they never need to
    be made anew. Files that several entries share (hard links) are counted once.
    """

    def __init__(self, folder: Path, limit: int, count: Count = _do_not_count) -> None:
        self._folder = folder.absolute()
        self._limit = limit
        self._count = count
        self._entries = self._folder / "entries"
        self._making = self._folder / "making"
        self._locks = self._folder / "locks"
        self._intact: dict[str, _Fingerprint] = {}
        self._full_until = 0.0
        with contextlib.ExitStack() as exits:
            try:
                for needed in (self._entries, self._making, self._locks):
                    needed.mkdir(parents=True, exist_ok=True)
                self._lock_mode = self._locks.stat().st_mode & 0o666
                self._holds = Holds(self._folder / "holds")
                exits.callback(self._holds.close)
                self.index = CacheIndex(self._folder, self._holds)
                exits.callback(self.index.close)
                self._clean()
            except OSError as error:
                raise StorageError(f"the file cache cannot be used ({error}): check MLPKIT_CACHE_DIR") from error
            exits.pop_all()

    def obtain(self, name: str, *, subject: str, source: str, make: Make) -> Path:
        """The folder with the entry's files, held until `release`.

        `make` fills it if no intact one is there.

        However many threads and processes ask, one of them makes the entry and the others wait for it. If the disk is
        full, entries that nobody holds are removed for it.

        Raises:
            StorageUnavailable: another process has been making the entry for an hour.
            StorageError: the cache's disk is still full, read-only or broken.
            Exception: any other error of `make`; nothing is left behind then.
        """
        entry = _digest(name)
        subject = _digest(subject)
        was_there = True

        def fill(folder: Path) -> Mapping[str, str]:
            nonlocal was_there
            was_there = False
            return make(folder)

        with self._translated(source):
            # Held before it is looked at: from here on nobody removes it.
            self._holds.hold(entry)
            with self._released_by_failure(entry):
                if not self._is_known(entry):
                    with self._locked(entry):
                        while not self._is_there(entry, subject, source, fill):
                            pass
                self.index.note_obtained(subject, entry)
        self._count("hit" if was_there else "miss", 1)
        return self._files_of(entry)

    def held(self, copy: Path) -> Path | None:
        """The folder of an earlier `obtain`, held until `release`.

        None if it is gone or damaged.
        """
        with self._translated(str(copy)):
            return self._held(copy.parent.name)

    def digests(self, copy: Path) -> dict[str, str]:
        """The digests of the files in an obtained folder, by name."""
        return {name: digest for name, (_, digest) in self._meta(copy.parent.name).files.items()}

    def newest(self, subject: str) -> Path | None:
        """The folder of the entry obtained last under the subject.

        It is held until `release`. None if it is gone.
        """
        with self._translated(subject.replace("\n", ": ")):
            entry = self.index.newest(_digest(subject))
            return self._held(entry) if entry else None

    def release(self, path: Path) -> None:
        """Takes back one `obtain` of the entry with this file or folder.

        Any other path is not an error.
        """
        start = f"{self._entries}{os.sep}"
        found = os.path.abspath(path)
        if found.startswith(start):
            self._holds.release(found[len(start) :].partition(os.sep)[0])

    def keep_limit(self) -> None:
        """Removes entries until the limit is kept.

        The least recently used go first, and none that is held.

        Call it after `obtain`, and not from inside of `make`.
        """
        try:
            total = self.index.total()
            if total is None or total <= self._limit or time.monotonic() < self._full_until:
                return
            with self._locked(_EVICTION):
                self._clean()
                self._evict(self._limit)
        except OSError as error:
            logger.warning("the file cache {} cannot be kept within its limit: {}", self._folder, error)

    def close(self) -> None:
        """Releases everything that was obtained."""
        self._holds.close()
        self.index.close()

    def _held(self, entry: str) -> Path | None:
        self._holds.hold(entry)
        with self._released_by_failure(entry):
            found = self._is_known(entry)
            if not found:
                with self._locked(entry):
                    found = self._is_intact(entry)
        if not found:
            self._holds.release(entry)
            return None
        self._count("hit", 1)
        return self._files_of(entry)

    @contextlib.contextmanager
    def _released_by_failure(self, entry: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._holds.release(entry)
            raise

    @contextlib.contextmanager
    def _translated(self, source: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = "free some space there" if is_full(error) else "check its owner, its mode and its disk"
            raise StorageError(
                f"the file cache {self._folder} cannot keep {source} ({error.strerror or error}): {advice}, "
                "or set MLPKIT_CACHE_DIR to another folder"
            ) from error

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        lock = filelock.FileLock(self._locks / name, mode=self._lock_mode)
        try:
            lock.acquire(timeout=_LONGEST_WAIT, poll_interval=_POLL_SECONDS)
        except filelock.Timeout:
            raise StorageUnavailable(
                f"the file cache: another process has held {self._locks / name} for {_LONGEST_WAIT:.0f} s: is it stuck?"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _is_there(self, entry: str, subject: str, source: str, make: Make) -> bool:
        """Makes the entry if it is not there and intact.

        False if the disk was full, and has some room now.
        """
        try:
            if not self._is_intact(entry):
                self._make(entry, subject, source, make)
        except OSError as error:
            if is_full(error) and self._halve():
                return False
            raise
        return True

    def _make(self, entry: str, subject: str, source: str, make: Make) -> None:
        with self._scratch(entry) as scratch:
            files = scratch / "files"
            files.mkdir()
            known = make(files)
            held: dict[str, tuple[int, str]] = {}
            found: list[tuple[int, int]] = []
            for file in _files_below(files):
                file.chmod(0o444)
                stat = file.stat()
                name = file.relative_to(files).as_posix()
                held[name] = (stat.st_size, known.get(name) or digest_of(file))
                found.append((stat.st_ino, stat.st_size))
            (scratch / "meta.json").write_bytes(msgspec.json.encode(Meta(source, subject, held)))
            if (self._entries / entry).exists():
                self._discard(entry)
            with self.index.adding(entry, subject, found):
                scratch.rename(self._entries / entry)
            self._remember(entry, _fingerprint(self._files_of(entry), held))

    def _is_intact(self, entry: str) -> bool:
        """Whether every file has the size and digest of its making.

        Digests are computed at the first use in a process, and again when a file's inode, size or times have changed.
        """
        if self._is_known(entry):
            return True
        try:
            meta = self._meta(entry)
            folder = self._files_of(entry)
            found = _fingerprint(folder, meta.files)
            for name, (size, digest) in meta.files.items():
                if (folder / name).stat().st_size != size or digest_of(folder / name) != digest:
                    logger.warning("the file cache's copy of {} is damaged: it is fetched again", meta.source)
                    return False
        except FileNotFoundError:
            return False
        except (OSError, msgspec.DecodeError) as error:
            logger.warning("the file cache's entry {} cannot be read, and is made again: {}", entry, error)
            return False
        self._remember(entry, found)
        return True

    def _is_known(self, entry: str) -> bool:
        """Whether the entry is as this process has seen it intact.

        It counts as used now.
        """
        try:
            with contextlib.suppress(PermissionError):
                os.utime(f"{self._entries}/{entry}/meta.json")
            before = self._intact.get(entry)
            return before is not None and before == _fingerprint(self._files_of(entry), [file[0] for file in before])
        except OSError:
            # The next step reads the entry or makes it, and says what is wrong.
            return False

    def _remember(self, entry: str, found: _Fingerprint) -> None:
        if len(self._intact) >= _MOST_KNOWN:
            self._intact.clear()
        self._intact[entry] = found

    def _meta(self, entry: str) -> Meta:
        return decode_json((self._entries / entry / "meta.json").read_bytes(), Meta)

    def _files_of(self, entry: str) -> Path:
        return self._entries / entry / "files"

    @contextlib.contextmanager
    def _scratch(self, entry: str) -> Iterator[Path]:
        """A new folder that is gone after the block unless renamed.

        Call it while the entry is held and locked. What a process that was killed has left of the entry goes.
        """
        folder = self._making / entry
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _discard(self, entry: str) -> None:
        # Renamed, and not into a new folder: a full disk may have no room for that.
        gone = self._making / f"{entry}-{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            (self._entries / entry).rename(gone)
        try:
            self.index.remove(entry)
        except OSError:
            # There is room for the change once the files are gone. If not, it is made when its turn comes again.
            shutil.rmtree(gone, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.index.remove(entry)
        finally:
            shutil.rmtree(gone, ignore_errors=True)

    def _clean(self) -> None:
        """Removes what killed processes have left half-made.

        Several processes may do so at the same time.
        """
        for folder in self._making.iterdir():
            with self._holds.unless_held(folder.name) as free:
                if not free:
                    continue
                shutil.rmtree(folder, ignore_errors=True)
            entry = folder.name.partition("-")[0]
            with self._holds.unless_held(entry) as free:
                if free and not (self._entries / entry).exists():
                    # Its process was killed while the entry came or went.
                    self.index.remove(entry)

    def _evict(self, limit: int) -> int:
        """Removes entries until the limit is kept; gives their number.

        The least recently used go first.
        """
        started = time.time_ns()
        began = time.monotonic()
        removed = 0
        before: tuple[str, int] | None = None
        while (total := self.index.total() or 0) > limit:
            oldest = self.index.oldest()
            if oldest is None or oldest[1] >= started or oldest == before:
                # All were asked for, or the index cannot be changed now.
                self._rest(total, time.monotonic() - began)
                break
            before = oldest
            entry, noted = oldest
            used = self._last_use(entry)
            if used > noted:
                # It was used since that was noted: its turn comes later.
                self.index.note_use(entry, min(used, started))
            elif self._remove_unless_held(entry):
                removed += 1
            else:
                self.index.note_use(entry, started)
        if removed:
            self._count("eviction", removed)
        return removed

    def _last_use(self, entry: str) -> int:
        try:
            return os.stat(f"{self._entries}/{entry}/meta.json").st_mtime_ns
        except OSError:
            return 0

    def _remove_unless_held(self, entry: str) -> bool:
        with self._holds.unless_held(entry) as free:
            if free:
                self._intact.pop(entry, None)
                self._discard(entry)
                (self._locks / entry).unlink(missing_ok=True)
        return free

    def _rest(self, total: int, taken: float) -> None:
        if total > self._limit:
            logger.warning(
                "the file cache {} holds {} bytes, more than MLPKIT_CACHE_SIZE ({}): all of it is in use",
                self._folder,
                total,
                self._limit,
            )
            # To ask who uses a hundred thousand entries in vain is not repeated with every fetch.
            self._full_until = time.monotonic() + _REST * taken if taken > _NOTICEABLE else 0.0

    def _halve(self) -> bool:
        """Removes entries that nobody holds until half of the cache is gone.

        False if every entry is held.
        """
        before = self.index.total()
        with self._locked(_EVICTION):
            now = self.index.total()
            if before is not None and now is not None and now < before:
                # Of all that find the disk full at the same moment, one makes room.
                return True
            self._clean()
            removed = self._evict((now or 0) // 2)
        if removed:
            logger.warning("the disk of the file cache {} is full: {} entries were removed", self._folder, removed)
        return removed > 0


def open_cache(settings: Settings, count: Count) -> FileCache:
    """The cache of the settings.

    If the folder belongs to another user and only that user may write there, it is a folder in the home, with a
    warning: two users share a cache only if their files may be written by both.
    """
    folder = settings.cache_path
    if _is_private_of_another(folder / "entries"):
        private = settings.home / f"cache-{os.geteuid()}"
        logger.warning(
            "the file cache {} belongs to another user, who alone may write there: {} is used in its place. "
            "To share a cache, give both users a group and a umask of 002, and the folder the mode 2775",
            folder,
            private,
        )
        folder = private
    return FileCache(folder, settings.cache_size, count)


def _is_private_of_another(folder: Path) -> bool:
    try:
        found = folder.stat()
    except OSError:
        return False
    shared = found.st_mode & 0o022 and os.access(folder, os.W_OK | os.X_OK)
    return found.st_uid != os.geteuid() and not shared


def link_or_copy(file: Path, target: Path) -> None:
    """Gives the same content another name.

    That is a hard link, or a copy if the file system has no hard links.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _files_below(folder: Path) -> Iterator[Path]:
    for path, _, names in os.walk(folder):
        for name in names:
            yield Path(path, name)


def _fingerprint(folder: Path, names: Iterable[str]) -> _Fingerprint:
    found = ((name, os.stat(f"{folder}/{name}")) for name in names)
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found)


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=20).hexdigest()
