"""The file cache: local, read-only copies of objects, shared by all threads and processes that use the same folder.

    entries/<entry>/meta.json    what it holds, with sizes and digests; its time of change is the time of the last use
    entries/<entry>/files/...    the copies
    entries/<entry>.lock         held while the entry is made, checked or removed
    newest/<subject>             the entry that was asked for last under that subject: for work without the store
    users/<user>                 what each living user holds (see `leases.py`)
    making/<user>-<number>/      half-made entries, and those on their way out

An entry is made once, under its lock, in `making`, and renamed into its place; it never changes after that.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from loguru import logger

from mlpkit.errors import StorageError, StorageUnavailable
from mlpkit.storage.disk import is_full
from mlpkit.storage.leases import Leases

_LONGEST_WAIT = 3600.0
_Fingerprint = tuple[tuple[int, int, int, int], ...]


class Meta(msgspec.Struct, frozen=True):
    """What an entry holds: each file's size in bytes and BLAKE2b digest, and (for people) where it came from."""

    source: str
    subject: str
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class _Entry:
    name: str
    used: float
    inodes: dict[int, int]


class FileCache:
    """A cache in a folder, of about `limit` bytes: the least recently used entries go first, never one that is held.

    Entries are known by a name that changes with their content, so that they never need to be made anew. Files that
    several entries share (hard links) are counted once.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder.absolute(), limit
        self._entries, self._newest, self._making, users = (
            self._folder / name for name in ("entries", "newest", "making", "users")
        )
        try:
            for each in (self._entries, self._newest, self._making, users):
                each.mkdir(parents=True, exist_ok=True)
            self._leases = Leases(users)
            self._clean()
        except OSError as error:
            raise StorageError(f"the file cache cannot be used ({error}): check MLPKIT_CACHE_DIR") from error
        self._numbers = itertools.count()
        self._intact: dict[str, _Fingerprint] = {}
        self._room = 0

    def obtain(self, name: str, *, subject: str, source: str, make: Callable[[Path], None]) -> Path:
        """The folder with the entry's files, held until `release`; `make` fills it where there is no intact one.

        However many threads and processes ask, one of them makes the entry and the others wait for it. Where the disk
        is full, entries that nobody holds make place for it.

        Raises:
            StorageUnavailable: another process has been making the entry for an hour.
            StorageError: the cache's disk is full all the same, read-only or broken.
            Exception: whatever else `make` raises; nothing is left behind then.
        """
        entry, subject = _digest(name), _digest(subject)
        with self._translated(source), self._locked(entry):
            # Held before it is looked at: from here on nobody removes it.
            self._leases.hold(entry)
            try:
                while not self._is_there(entry, subject, source, make):
                    pass
            except BaseException:
                self._leases.release(entry)
                raise
        return self._entries / entry / "files"

    def newest(self, subject: str) -> Path | None:
        """The folder of the entry obtained last under the subject, held until `release`; None where it is gone."""
        with self._translated(subject.replace("\n", ": ")):
            try:
                entry = (self._newest / _digest(subject)).read_text()
            except FileNotFoundError:
                return None
            with self._locked(entry):
                self._leases.hold(entry)
                if self._is_intact(entry):
                    return self._entries / entry / "files"
                self._leases.release(entry)
        return None

    def release(self, path: Path) -> None:
        """Takes one `obtain` of the entry back that holds this file or folder; any other path is no error."""
        with contextlib.suppress(ValueError):
            self._leases.release(path.absolute().relative_to(self._entries).parts[0])

    def keep_limit(self) -> None:
        """Removes entries that nobody holds, the least recently used first, until the limit is kept.

        Cheap where little was added since the last time. Call it after `obtain`, and not from inside of `make`.
        """
        if self._room > 0:
            return
        try:
            with self._locked("eviction", timeout=0):
                self._clean()
                self._evict(lambda total: self._limit)
        except StorageUnavailable:
            pass  # Another process is at it.
        except OSError as error:
            logger.warning("the file cache {} cannot be kept within its limit: {}", self._folder, error)

    def close(self) -> None:
        """Releases everything that was obtained."""
        self._leases.close()

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
        # Imported here because it takes as long as the rest of mlpkit.storage.
        import filelock

        lock = filelock.FileLock(self._entries / f"{entry}.lock", timeout=timeout)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise StorageUnavailable(
                f"the file cache: another process has held {lock.lock_file} for {timeout:.0f} s: is it stuck?"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _is_there(self, entry: str, subject: str, source: str, make: Callable[[Path], None]) -> bool:
        """Makes the entry where there is no intact one; False where the disk was full, and has some room now."""
        try:
            if not self._is_intact(entry):
                self._make(entry, subject, source, make)
            self._touch(entry, subject)
        except OSError as error:
            if is_full(error) and self._halve():
                return False
            raise
        return True

    def _halve(self) -> bool:
        """Removes entries that nobody holds until half of the cache is gone; False where there are none."""
        with self._locked("eviction"):
            self._clean()
            removed = self._evict(lambda total: total // 2)
        if removed:
            logger.warning("the disk of the file cache {} is full: {} entries were removed", self._folder, removed)
        return removed > 0

    def _make(self, entry: str, subject: str, source: str, make: Callable[[Path], None]) -> None:
        with self._scratch() as scratch:
            files = scratch / "files"
            files.mkdir()
            make(files)
            held = {}
            for file in _files_below(files):
                file.chmod(0o444)
                held[file.relative_to(files).as_posix()] = (file.stat().st_size, _digest_of(file))
            (scratch / "meta.json").write_bytes(msgspec.json.encode(Meta(source, subject, held)))
            self._discard(entry)
            scratch.rename(self._entries / entry)
            self._intact[entry] = _fingerprint(self._entries / entry / "files", held)
            self._room -= sum(size for size, _ in held.values())

    def _is_intact(self, entry: str) -> bool:
        """Whether every file has the size and digest that it had when the entry was made.

        Digests are computed at the first use in a process, and again when a file's inode, size or times have changed.
        """
        folder = self._entries / entry
        try:
            meta = msgspec.json.decode((folder / "meta.json").read_bytes(), type=Meta)
            found = _fingerprint(folder / "files", meta.files)
            if self._intact.get(entry) == found:
                return True
            for name, (size, digest) in meta.files.items():
                file = folder / "files" / name
                if file.stat().st_size != size or _digest_of(file) != digest:
                    logger.warning("the file cache's copy of {} is damaged: it is fetched again", meta.source)
                    return False
        except FileNotFoundError:
            return False
        except (OSError, msgspec.DecodeError) as error:
            logger.warning("the file cache's entry {} cannot be read, and is made again: {}", folder, error)
            return False
        self._intact[entry] = found
        return True

    def _touch(self, entry: str, subject: str) -> None:
        with contextlib.suppress(PermissionError):
            os.utime(self._entries / entry / "meta.json")
        pointer = self._newest / subject
        if not pointer.exists() or pointer.read_text() != entry:
            with self._scratch() as scratch:
                (scratch / "newest").write_text(entry)
                (scratch / "newest").rename(pointer)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A new folder beside the entries, gone after the block unless it was renamed."""
        folder = self._making / f"{self._leases.user}-{next(self._numbers)}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _discard(self, entry: str) -> None:
        with self._scratch() as scratch, contextlib.suppress(FileNotFoundError):
            (self._entries / entry).rename(scratch / "gone")

    def _clean(self) -> None:
        """Removes what users that were killed have left half-made."""
        for user in self._leases.bury():
            for folder in self._making.glob(f"{user}-*"):
                shutil.rmtree(folder, ignore_errors=True)

    def _evict(self, wanted: Callable[[int], int]) -> int:
        """Removes entries until no more than the wanted number of bytes is left of the total; how many it removed."""
        entries = sorted(self._scan(), key=lambda each: each.used)
        sizes = {inode: size for each in entries for inode, size in each.inodes.items()}
        links = Counter(inode for each in entries for inode in each.inodes)
        total = sum(sizes.values())
        held, limit, removed = self._leases.everybodys(), wanted(total), 0
        for each in entries:
            if total <= limit:
                break
            if each.name not in held and self._remove_unless_held(each.name):
                removed += 1
                links.subtract(each.inodes.keys())
                total -= sum(sizes[inode] for inode in each.inodes if links[inode] == 0)
        if total > self._limit:
            logger.warning(
                "the file cache {} holds {} bytes, more than MLPKIT_CACHE_SIZE ({}): all of it is in use",
                self._folder,
                total,
                self._limit,
            )
        # Others add too: so look again long before the room that was seen can be full.
        self._room = (self._limit - total) // 16
        return removed

    def _scan(self) -> Iterator[_Entry]:
        for folder in self._entries.iterdir():
            # Entries may be removed meanwhile, by their own user.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                used = (folder / "meta.json").stat().st_mtime
                found = [file.stat() for file in _files_below(folder / "files")]
                yield _Entry(folder.name, used, {each.st_ino: each.st_size for each in found})

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
            meta = msgspec.json.decode((self._entries / entry / "meta.json").read_bytes(), type=Meta)
            if (self._newest / meta.subject).read_text() == entry:
                (self._newest / meta.subject).unlink()
        self._intact.pop(entry, None)
        self._discard(entry)
        (self._entries / f"{entry}.lock").unlink(missing_ok=True)


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


def _fingerprint(folder: Path, files: dict[str, tuple[int, str]]) -> _Fingerprint:
    found = [(folder / name).stat() for name in files]
    return tuple((each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found)


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=20).hexdigest()


def _digest_of(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=20)
    with file.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
