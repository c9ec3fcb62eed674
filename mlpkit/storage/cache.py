"""The file cache: local, read-only copies of objects, shared by all threads and processes that use the same folder.

    entries/<entry>/meta.json    what it holds, with sizes and digests; its time of change is the time of the last use
    entries/<entry>/files/...    the copies
    locks/<entry>                held while the entry is made, checked or removed
    newest/<subject>             the entry that was asked for last under that subject: for work without the store
    users/<user>                 what each living user holds (see `leases.py`)
    making/<user>-<number>/      half-made entries, and those on their way out
    usage, oldest, moves         how much there is, and what goes first (see `room.py`)
    changes                      what was saved lately (see `trust.py`)

An entry is made once, under its lock, in `making`, and renamed into its place; it never changes after that.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from mlpkit.errors import StorageError, StorageUnavailable
from mlpkit.log import logger
from mlpkit.storage.eviction import Eviction
from mlpkit.storage.leases import Leases
from mlpkit.storage.locks import locked
from mlpkit.storage.room import Room
from mlpkit.storage.store import digest_of, is_full

_LONGEST_WAIT = 3600.0
_MOST_KNOWN = 1000
_Fingerprint = tuple[tuple[str, int, int, int, int], ...]
"""Name, inode, size and times of each file."""
Make = Callable[[Path], Mapping[str, str]]
"""Fills a folder; the digests that it knows of files in it, by their names."""


class Meta(msgspec.Struct, frozen=True):
    """What an entry holds: each file's size in bytes and digest, and (for people) where it came from."""

    source: str
    subject: str
    files: dict[str, tuple[int, str]]


class FileCache:
    """A cache in a folder, of about `limit` bytes: the least recently used entries go first, never one that is held.

    Entries are known by a name that changes with their content, so that they never need to be made anew. Files that
    several entries share (hard links) are counted once.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder.absolute()
        self._entries, self._newest, self._making, self._locks, users = (
            self._folder / name for name in ("entries", "newest", "making", "locks", "users")
        )
        try:
            for each in (self._entries, self._newest, self._making, self._locks, users):
                each.mkdir(parents=True, exist_ok=True)
            self._room = Room(self._folder, self._entries)
            self._leases = Leases(users)
            try:
                self._clean()
            except BaseException:
                self._leases.close()
                raise
        except OSError as error:
            raise StorageError(f"the file cache cannot be used ({error}): check MLPKIT_CACHE_DIR") from error
        self._numbers = itertools.count()
        self._intact: dict[str, _Fingerprint] = {}
        self._eviction = Eviction(
            self._locks / "eviction",
            limit,
            self._room,
            self._leases,
            clean=self._clean,
            remove=self._remove_unless_held,
        )

    def obtain(self, name: str, *, subject: str, source: str, make: Make) -> Path:
        """The folder with the entry's files, held until `release`; `make` fills it where there is no intact one.

        However many threads and processes ask, one of them makes the entry and the others wait for it. Where the disk
        is full, entries that nobody holds make place for it.

        Raises:
            StorageUnavailable: another process has been making the entry for an hour.
            StorageError: the cache's disk is full all the same, read-only or broken.
            Exception: whatever else `make` raises; nothing is left behind then.
        """
        entry, subject = _digest(name), _digest(subject)
        if self._is_held_again(entry):
            with self._translated(source), self._released_by_failure(entry):
                self._point(subject, entry)
            return self._files_of(entry)
        with self._translated(source), self._locked(entry):
            # Held before it is looked at: from here on nobody removes it.
            self._leases.hold(entry)
            with self._released_by_failure(entry):
                while not self._is_there(entry, subject, source, make):
                    pass
        return self._files_of(entry)

    def held(self, copy: Path) -> Path | None:
        """The folder of an earlier `obtain`, held until `release`; None where it is gone or damaged."""
        with self._translated(str(copy)):
            return self._held(copy.parent.name)

    def digests(self, copy: Path) -> dict[str, str]:
        """The digests of the files in a folder that was obtained, by their names."""
        return {name: digest for name, (_, digest) in self._meta(copy.parent.name).files.items()}

    def newest(self, subject: str) -> Path | None:
        """The folder of the entry obtained last under the subject, held until `release`; None where it is gone."""
        with self._translated(subject.replace("\n", ": ")):
            entry = _text_of(f"{self._newest}/{_digest(subject)}")
            return self._held(entry) if entry else None

    def release(self, path: Path) -> None:
        """Takes one `obtain` of the entry back that holds this file or folder; any other path is no error."""
        start = f"{self._entries}{os.sep}"
        found = os.path.abspath(path)
        if found.startswith(start):
            self._leases.release(found[len(start) :].partition(os.sep)[0])

    def keep_limit(self) -> None:
        """Removes entries that nobody holds, the least recently used first, until the limit is kept.

        Cheap where it is kept. In a large cache it happens soon after, in a thread (see `eviction.py`). Call it after
        `obtain`, and not from inside of `make`.
        """
        try:
            self._eviction.keep_limit()
        except OSError as error:
            logger.warning("the file cache {} cannot be kept within its limit: {}", self._folder, error)

    def close(self) -> None:
        """Releases everything that was obtained."""
        self._eviction.close()
        self._leases.close()

    def _held(self, entry: str) -> Path | None:
        if self._is_held_again(entry):
            return self._files_of(entry)
        with self._locked(entry):
            self._leases.hold(entry)
            if self._is_intact(entry):
                return self._files_of(entry)
            self._leases.release(entry)
        return None

    def _is_held_again(self, entry: str) -> bool:
        """Holds an intact entry once more that this user holds already: nobody removes it, so it needs no lock."""
        if not self._leases.again(entry):
            return False
        with contextlib.suppress(OSError):
            if self._is_known(entry):
                return True
        self._leases.release(entry)
        return False

    @contextlib.contextmanager
    def _released_by_failure(self, entry: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._leases.release(entry)
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
    def _locked(self, entry: str, timeout: float = _LONGEST_WAIT) -> Iterator[None]:
        with locked(f"{self._locks}/{entry}", timeout):
            yield

    def _is_there(self, entry: str, subject: str, source: str, make: Make) -> bool:
        """Makes the entry where there is no intact one; False where the disk was full, and has some room now."""
        try:
            if not self._is_intact(entry):
                self._make(entry, subject, source, make)
            self._point(subject, entry)
        except OSError as error:
            if is_full(error) and self._eviction.halve():
                return False
            raise
        return True

    def _make(self, entry: str, subject: str, source: str, make: Make) -> None:
        with self._scratch() as scratch:
            files = scratch / "files"
            files.mkdir()
            known = make(files)
            held, added = {}, 0
            for file in _files_below(files):
                file.chmod(0o444)
                found = file.stat()
                name = file.relative_to(files).as_posix()
                held[name] = (found.st_size, known.get(name) or digest_of(file))
                # What is shared with another entry is counted there.
                added += found.st_size if found.st_nlink == 1 else 0
            (scratch / "meta.json").write_bytes(msgspec.json.encode(Meta(source, subject, held)))
            if (self._entries / entry).exists():
                self._discard(entry)
            with self._room.changing(added, entry):
                scratch.rename(self._entries / entry)
            self._remember(entry, _fingerprint(self._files_of(entry), held))

    def _is_intact(self, entry: str) -> bool:
        """Whether every file has the size and digest that it had when the entry was made.

        Digests are computed at the first use in a process, and again when a file's inode, size or times have changed.
        """
        try:
            if self._is_known(entry):
                return True
            meta, folder = self._meta(entry), self._files_of(entry)
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
        """Marks the entry as used now; whether it is as this process has seen it intact."""
        with contextlib.suppress(PermissionError):
            os.utime(f"{self._entries}/{entry}/meta.json")
        before = self._intact.get(entry)
        return before is not None and before == _fingerprint(self._files_of(entry), [each[0] for each in before])

    def _remember(self, entry: str, found: _Fingerprint) -> None:
        if len(self._intact) >= _MOST_KNOWN:
            self._intact.clear()
        self._intact[entry] = found

    def _meta(self, entry: str) -> Meta:
        return msgspec.json.decode((self._entries / entry / "meta.json").read_bytes(), type=Meta)

    def _files_of(self, entry: str) -> Path:
        return self._entries / entry / "files"

    def _point(self, subject: str, entry: str) -> None:
        pointer = f"{self._newest}/{subject}"
        if _text_of(pointer) != entry:
            with self._scratch() as scratch:
                (scratch / "newest").write_text(entry)
                (scratch / "newest").rename(pointer)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A new folder beside the entries, gone after the block unless it was renamed."""
        folder = self._unused()
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _unused(self) -> Path:
        return self._making / f"{self._leases.user}-{next(self._numbers)}"

    def _discard(self, entry: str) -> None:
        # Renamed, and not into a new folder: a full disk may have no room for that.
        freed, gone = self._room.freed_by(entry), self._unused()
        try:
            with contextlib.suppress(FileNotFoundError), self._room.changing(-freed, entry):
                (self._entries / entry).rename(gone)
        finally:
            shutil.rmtree(gone, ignore_errors=True)

    def _clean(self) -> None:
        """Removes what users that were killed have left half-made; others may be at it too."""
        for user in self._leases.dead():
            for folder in self._making.glob(f"{user}-*"):
                with contextlib.suppress(FileNotFoundError):
                    if set(os.listdir(folder)) not in ({"files"}, {"newest"}):
                        # It was killed while an entry came or went: who knows whether that is counted.
                        self._room.forget()
                    shutil.rmtree(folder, ignore_errors=True)
            # Last: without its user's file, a folder would be nobody's.
            self._leases.bury(user)

    def _remove_unless_held(self, entry: str) -> bool:
        try:
            with self._locked(entry, timeout=0):
                # Asked for under the lock: whoever obtains the entry now waits, and finds it gone.
                if entry in self._leases.everybodys():
                    return False
                self._forget(entry)
                return True
        except StorageUnavailable:
            return False

    def _forget(self, entry: str) -> None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            pointer = self._newest / self._meta(entry).subject
            if pointer.read_text() == entry:
                pointer.unlink()
        self._intact.pop(entry, None)
        self._discard(entry)
        (self._locks / entry).unlink(missing_ok=True)


def link_or_copy(file: Path, target: Path) -> None:
    """The same content under another name: a hard link, or a copy where the file system has none."""
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
    return tuple((name, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for name, each in found)


def _text_of(file: str) -> str:
    """The file's text, which is short; empty where there is no such file."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return ""
    try:
        return os.read(descriptor, 256).decode()
    finally:
        os.close(descriptor)


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=20).hexdigest()
