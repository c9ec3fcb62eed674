"""Objects in a folder: the store without an S3 server.

An object is the file `<root>/<bucket>/<key>`.

A file is written next to the buckets and renamed into its place, so that nobody sees half of one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat as modes
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlpkit.errors import ObjectNotFound, StorageDenied, StorageError, UnsafePath
from mlpkit.settings import Settings
from mlpkit.storage.paths import ObjectStat
from mlpkit.storage.store import BlockDigest, ObjectChanged, Threads, combined, folder_of, is_full

_CHUNK = 256 << 10
_HALF_WRITTEN = ".writing"
_LOCKED = "locked-"
"""A half-written file of this name is locked as long as its writer lives."""
_ABANDONED_SECONDS = 24 * 3600
"""Any other half-written file is removed if nobody has written to it for this long."""


class FolderStore:
    """The store in a folder, which is made with the first save.

    The etag is made of inode, size and time of change.
    """

    def __init__(self, settings: Settings) -> None:
        root = folder_of(settings)
        assert root is not None
        self.url = settings.store
        self._root = root
        self._place = f"folder {root}"

    def stat(self, bucket: str, key: str) -> ObjectStat:
        with self._translated(bucket, key):
            try:
                found = self._file(bucket, key).stat()
            except NotADirectoryError:
                # A part of the key is an object: below that there is nothing.
                raise self._missing(bucket, key) from None
        if not modes.S_ISREG(found.st_mode):
            raise self._missing(bucket, key)
        return _described(bucket, key, found)

    def download(self, stat: ObjectStat, target: Path, threads: Threads) -> str:
        digest = BlockDigest()
        with target.open("wb") as copy:
            # The target is not of this store: what is wrong with its disk is not translated here.
            for chunk in self._content(stat):
                digest.update(chunk)
                copy.write(chunk)
        return combined(digest.blocks)

    def read(self, bucket: str, key: str, most: int) -> tuple[str, bytes]:
        stat = self.stat(bucket, key)
        if stat.size > most:
            raise StorageError(f"{self._place}: {stat.path} has more than {most} bytes")
        return stat.etag, b"".join(self._content(stat))

    def upload(self, source: Path, bucket: str, key: str) -> None:
        with self._translated(bucket, key):
            if not (self._root / bucket).is_dir():
                raise self._missing(bucket, key)
            target = self._file(bucket, key)
            with self._half_written() as copy:
                with source.open("rb") as original:
                    shutil.copyfileobj(original, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
                os.chmod(copy.name, 0o644)
                _move(copy.name, target)

    def list(self, bucket: str, prefix: str) -> Iterator[ObjectStat]:
        with self._translated(bucket, prefix):
            base = self._root / bucket
            if not base.is_dir():
                raise self._missing(bucket, prefix)
            start = self._file(bucket, prefix.rstrip("/")) if prefix else base
            keys = [file.relative_to(base).as_posix() for file in _files_below(start)]
        for key in sorted(keys, key=str.encode):
            # A file may be deleted between the listing and this line.
            with contextlib.suppress(ObjectNotFound):
                yield self.stat(bucket, key)

    def folders(self, bucket: str) -> Iterator[str]:
        with self._translated(bucket, ""), os.scandir(self._root / bucket) as found:
            names = [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
        yield from sorted(names, key=str.encode)

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        for key in keys:
            with self._translated(bucket, key):
                file = self._file(bucket, key)
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    file.unlink()
                self._remove_empty_folders(file.parent, self._root / bucket)

    def discard_uploads(self, bucket: str, prefix: str) -> None:
        with self._translated(bucket, prefix):
            self._remove_abandoned()

    def make_bucket(self, bucket: str) -> None:
        with self._translated(bucket, ""):
            (self._root / bucket).mkdir(parents=True, exist_ok=True)

    def presign(self, bucket: str, key: str, expires: int) -> str:
        return self._file(bucket, key).as_uri()

    def check(self, bucket: str) -> bool:
        with self._translated(bucket, ""):
            self._root.mkdir(parents=True, exist_ok=True)
            with self._half_written():
                pass
        # A bucket that is missing is made like any other folder, so it is not worth a warning.
        return True

    def close(self) -> None:
        pass

    def _content(self, stat: ObjectStat) -> Iterator[bytes]:
        bucket = stat.bucket
        key = stat.key
        with self._translated(bucket, key), self._file(bucket, key).open("rb") as source:
            # Of the open file, not of its name: a save in between replaces the name only.
            if _described(bucket, key, os.fstat(source.fileno())).etag != stat.etag:
                raise ObjectChanged(f"{self._place}: {stat.path} was replaced while it was read: try again")
            while chunk := source.read(_CHUNK):
                yield chunk
            if _described(bucket, key, os.fstat(source.fileno())).etag != stat.etag:
                raise ObjectChanged(f"{self._place}: {stat.path} was edited while it was read: try again")

    def _file(self, bucket: str, key: str) -> Path:
        """The file of a key.

        Its folder is inside the bucket, even if there are symbolic links.
        """
        file = self._root / bucket / key
        real_root = os.path.realpath(self._root / bucket)
        inside = os.path.commonpath([real_root, os.path.realpath(file)]) == real_root
        if not inside or real_root != os.path.join(os.path.realpath(self._root), bucket):
            raise UnsafePath(
                f"{self._place}: {bucket}/{key} is a symbolic link that leaves the bucket, or lies behind one"
            )
        return file

    @contextlib.contextmanager
    def _half_written(self) -> Iterator[tempfile._TemporaryFileWrapper[bytes]]:
        folder = self._root / _HALF_WRITTEN
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            try:
                # Locked before it gets this name: others remove what has the name and is unlocked.
                with contextlib.suppress(OSError):
                    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.name = _renamed(file.name, _LOCKED)
                yield file
            finally:
                # It has been renamed by then, unless something failed.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file.name)

    def _remove_abandoned(self) -> None:
        """Removes what writers that were killed have left."""
        with contextlib.suppress(FileNotFoundError):
            for file in (self._root / _HALF_WRITTEN).iterdir():
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    if _is_abandoned(file):
                        file.unlink()

    def _missing(self, bucket: str, key: str) -> ObjectNotFound:
        if not (self._root / bucket).is_dir():
            return ObjectNotFound(
                f"{self._place}: bucket {bucket!r} does not exist (asked for {bucket}/{key}): make that folder"
            )
        return ObjectNotFound(f"{self._place}: there is no object {bucket}/{key}")

    def _remove_empty_folders(self, folder: Path, stop: Path) -> None:
        while folder != stop:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    @contextlib.contextmanager
    def _translated(self, bucket: str, key: str) -> Iterator[None]:
        where = f"{self._place}: {bucket}/{key}"
        try:
            yield
        except FileNotFoundError:
            raise self._missing(bucket, key) from None
        except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
            raise StorageError(
                f"{where}: a folder cannot hold an object and objects below it: use another key ({error.strerror})"
            ) from error
        except PermissionError as error:
            raise StorageDenied(f"{where}: {error.strerror}: check the owner and mode of {error.filename}") from error
        except OSError as error:
            advice = ": free some space" if is_full(error) else ""
            raise StorageError(f"{where}: {error.strerror or error}{advice}") from error


def _renamed(file: str, prefix: str) -> str:
    folder, name = os.path.split(file)
    renamed = os.path.join(folder, prefix + name)
    os.rename(file, renamed)
    return renamed


def _is_abandoned(file: Path) -> bool:
    if not file.name.startswith(_LOCKED):
        return time.time() - file.stat().st_mtime > _ABANDONED_SECONDS
    descriptor = os.open(file, os.O_RDONLY)
    try:
        # Shared, so that two who look at the same time do not take each other for the writer.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _move(file: str, target: Path) -> None:
    for _ in range(10):
        target.parent.mkdir(parents=True, exist_ok=True)
        # A delete at the same time may remove the folder, which is empty, in between.
        with contextlib.suppress(FileNotFoundError):
            return os.replace(file, target)
    return os.replace(file, target)


def _files_below(folder: Path) -> Iterator[Path]:
    for path, _, names in os.walk(folder):
        for name in names:
            if not (file := Path(path, name)).is_symlink():
                yield file


def _described(bucket: str, key: str, found: os.stat_result) -> ObjectStat:
    etag = f"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"
    return ObjectStat(path=f"{bucket}/{key}", etag=etag, size=found.st_size, modified=found.st_mtime_ns / 1e9)
