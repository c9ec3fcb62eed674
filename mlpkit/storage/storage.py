"""Objects by `bucket/key` in the store of the settings.

Local copies are fetched once and kept.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from mlpkit.errors import ArgumentError, ObjectNotFound, TimeLimitExceeded
from mlpkit.injection import service
from mlpkit.settings import Settings
from mlpkit.storage.paths import ObjectStat, checked_key, checked_path, checked_prefix
from mlpkit.storage.store import Store, Threads, check_store, objects_below, store_of
from mlpkit.tracing import span

if TYPE_CHECKING:
    from anyio import CapacityLimiter

    from mlpkit.storage.copies import Copies

T = TypeVar("T")

_TRANSFERS_AT_A_TIME = 16
"""As many as the pool of connections keeps. A store waits for its disks with every object; with 8 it would idle."""
_LARGE_UPLOAD = 16 << 20
"""Objects of at least this many bytes are uploaded in parallel parts; smaller ones are held in memory, whole."""
_WEEK = 7 * 24 * 3600


@dataclass(frozen=True)
class _Parts:
    """What a storage needs once it is used.

    It belongs to the process that made it.
    """

    store: Store
    copies: Copies
    threads: Threads
    process: int


_OF_PARENTS: list[_Parts] = []
"""What a forked child found of its parent. It is kept, because a connection to SQLite must not be closed in a child."""


@service()
class Storage:
    """The store of the service. Safe from every thread.

    It is cheap to make: it connects when it is first used.

    Every method raises UnsafePath for a path that it cannot use, and the `StorageError` family: ObjectNotFound,
    StorageDenied, and StorageUnavailable when the store is silent for `MLPKIT_STORAGE_TIMEOUT`.
    """

    def __init__(self, settings: Settings) -> None:
        check_store(settings)
        self._settings = settings
        self._lock = threading.Lock()
        self._made: _Parts | None = None

    def fetch(self, path: str, *, ask: bool = False) -> Path:
        """A local, read-only copy of the object, under its own name.

        It is fetched only if the newest is not in the cache yet.

        The copy stays until `release`, `close` or the end of the process. With `MLPKIT_CACHE_OFFLINE` it is the last
        known copy when the store cannot be reached. With `MLPKIT_CACHE_TRUST` the store is not asked again for that
        time, except with `ask`.
        """
        bucket, key = checked_path(path)
        with span("storage fetch", "client", path=path):
            return self._parts().copies.of_object(bucket, key, ask=ask)

    def fetch_dir(self, prefix: str, *, only: Collection[str] | None = None, ask: bool = False) -> Path:
        """A local, read-only folder with the objects below the prefix.

        With `only`, it has exactly those, by their names below the prefix.

        All of them are there, or an error is raised. Objects that are in the cache are not fetched again. The folder
        stays as a copy of `fetch` does.

        Raises:
            ObjectNotFound: there is nothing below the prefix, or one of `only` is missing; the message names it.
        """
        bucket, start = checked_prefix(prefix)
        with span("storage fetch_dir", "client", path=prefix):
            return self._parts().copies.of_folder(bucket, start, only, ask=ask)

    def save(self, local: str | os.PathLike[str], path: str) -> None:
        """Stores a local file under the path.

        Readers see the old object or the new one, never a part.

        The model bucket and the data bucket are made if they are missing; any other bucket must exist.

        Raises:
            FileNotFoundError: the local file does not exist.
        """
        bucket, key = checked_path(path)
        source = Path(local)
        if not source.is_file():
            raise FileNotFoundError(f"{source} cannot be saved to {path}: it is not a file")
        with span("storage save", "client", path=path):
            self._save(source, bucket, key)

    def save_dir(self, local: str | os.PathLike[str], prefix: str, *, only: Collection[str] | None = None) -> None:
        """Stores the files of a local folder below the prefix.

        With `only`, it stores exactly those, by their names in the folder. Each is stored as `save` does it.

        Symbolic links are stored as what they point to. If one file fails, no further one is begun, and what was
        stored remains; `save_model` stores all or nothing.

        Raises:
            FileNotFoundError: there is no such local folder, one of `only` is not in it, or something is not a file.
            UnsafePath: a file's name cannot be a key; nothing was stored.
        """
        bucket, start = checked_prefix(prefix)
        files = local_files(Path(local))
        missing = [name for name in only or () if name not in files]
        if missing:
            raise FileNotFoundError(f"{Path(local, missing[0])} cannot be saved to {prefix}: it does not exist")
        chosen = {checked_key(start + name): files[name] for name in (files if only is None else only)}
        with span("storage save_dir", "client", path=prefix, files=len(chosen)):
            self._parts().threads.transfer(
                list(chosen.items()),
                size=lambda item: item[1].stat().st_size,
                move=lambda item: self._save(item[1], bucket, item[0]),
                large=_LARGE_UPLOAD,
            )

    def open(self, path: str) -> BinaryIO:
        """The object's content, open for reading.

        It is the local copy that `fetch` gives.
        """
        return self.fetch(path).open("rb")

    def exists(self, path: str) -> bool:
        """Whether there is an object of exactly this path."""
        try:
            self.stat(path)
        except ObjectNotFound:
            return False
        return True

    def stat(self, path: str) -> ObjectStat:
        """Size, etag and time of the object."""
        bucket, key = checked_path(path)
        return self._parts().store.stat(bucket, key)

    def list(self, prefix: str, limit: int | None = None) -> builtins.list[ObjectStat]:
        """The objects in `bucket`, or below the folder `bucket/prefix`.

        They are in the order of their keys, at most `limit` of them.
        """
        bucket, start = checked_prefix(prefix)
        return list(itertools.islice(objects_below(self._parts().store, bucket, start), limit))

    def folders(self, bucket: str) -> builtins.list[str]:
        """The names before the first slash of the bucket's keys, in order."""
        return list(self._parts().store.folders(checked_prefix(bucket)[0]))

    def read(self, path: str, most: int) -> tuple[str, bytes]:
        """The etag and the content of a small object.

        It is one request, and does not enter the cache.

        Raises:
            StorageError: it has more than `most` bytes, or the store cannot be used.
        """
        bucket, key = checked_path(path)
        return self._parts().store.read(bucket, key, most)

    def delete(self, path: str, recursive: bool = False) -> int:
        """Removes the object, and with `recursive` everything below it.

        Gives how many there were; 0 is not an error.
        """
        bucket, key = checked_path(path.removesuffix("/") if recursive else path)
        parts = self._parts()
        keys = [key] if self.exists(f"{bucket}/{key}") else []
        if recursive:
            try:
                keys += [stat.key for stat in parts.store.list(bucket, f"{key}/")]
            except ObjectNotFound:
                return 0
        if keys:
            try:
                parts.store.delete(bucket, keys)
            finally:
                parts.copies.changed(bucket, keys)
        return len(keys)

    def check_deletable(self, prefix: str) -> None:
        """Checks that objects below the prefix may be deleted.

        Raises:
            StorageDenied: they may not.
        """
        bucket, start = checked_prefix(prefix)
        # No object has this name: S3 checks the right first, and deleting nothing succeeds.
        with contextlib.suppress(ObjectNotFound):
            self._parts().store.delete(bucket, [f"{start}mlpkit.check"])

    def discard_uploads(self, prefix: str) -> None:
        """Removes what killed uploads below the prefix have left half-written."""
        bucket, start = checked_prefix(prefix)
        self._parts().store.discard_uploads(bucket, start)

    def presign(self, path: str, expires: int = 3600) -> str:
        """A URL that reads the object without credentials.

        It is valid for `expires` seconds. In the folder store it is a `file:` URL.
        """
        bucket, key = checked_path(path)
        if not 1 <= expires <= _WEEK:
            raise ArgumentError(f"a presigned URL can be valid for 1 to {_WEEK} seconds (7 days), not for {expires}")
        return self._parts().store.presign(bucket, key, expires)

    def release(self, path: str | os.PathLike[str]) -> None:
        """Says that a copy is not used any more.

        The cache may remove it for others.
        """
        made = self._made
        if made is not None:
            made.copies.release(Path(path))

    def cached(self) -> int | None:
        """The bytes in the cache.

        None if that is not known, or if this storage was not used yet.
        """
        made = self._made
        return made.copies.total() if made is not None else None

    def check(self) -> builtins.list[str]:
        """Warnings about the store.

        Asks the store, and takes a few seconds at most.

        Raises:
            StorageError: the store cannot be used.
        """
        store = self._parts().store
        data_bucket = self._settings.data_bucket
        store.check(self._settings.model_bucket)
        if store.check(data_bucket):
            return []
        return [f"{store.url}: the data bucket {data_bucket!r} (MLPKIT_DATA_BUCKET) does not exist"]

    def close(self) -> None:
        """Closes connections and threads, and releases all local copies.

        The next use opens them again.
        """
        with self._lock:
            parts = self._made
            self._made = None
        if parts is None:
            return
        if parts.process != os.getpid():
            _OF_PARENTS.append(parts)
            return
        parts.threads.close()
        parts.copies.close()
        parts.store.close()

    def __repr__(self) -> str:
        return f"Storage({self._settings.store})"

    def _parts(self) -> _Parts:
        with self._lock:
            # Neither connections nor threads nor locks survive a fork.
            if self._made is None or self._made.process != os.getpid():
                # SQLite and the locks of files take 2 MiB, in every worker: not before something is fetched or saved.
                from mlpkit.storage.cache import open_cache
                from mlpkit.storage.copies import Copies
                from mlpkit.storage.counts import CountedStore, StorageCounter

                if self._made is not None:
                    _OF_PARENTS.append(self._made)
                counter = StorageCounter(self._settings.home)
                store = CountedStore(store_of(self._settings), counter)
                cache = open_cache(self._settings, counter.cache)
                threads = Threads(_TRANSFERS_AT_A_TIME)
                copies = Copies(
                    store,
                    cache,
                    threads,
                    period=self._settings.cache_trust,
                    offline=self._settings.cache_offline,
                )
                self._made = _Parts(store, copies, threads, os.getpid())
            return self._made

    def _save(self, source: Path, bucket: str, key: str) -> None:
        # Asked for once: a storage that is closed meanwhile is not opened again.
        parts = self._parts()
        try:
            parts.store.upload(source, bucket, key)
        except ObjectNotFound:
            if bucket not in (self._settings.model_bucket, self._settings.data_bucket):
                raise
            parts.store.make_bucket(bucket)
            parts.store.upload(source, bucket, key)
        finally:
            # Even if it failed: the store may have it.
            parts.copies.changed(bucket, [key])


def open_storage(settings: Settings) -> Storage:
    """The storage of these settings.

    Nothing is connected, made or imported before its first use.

    Raises:
        SettingsError: the store's URL cannot be used, or it has no credentials.
    """
    return Storage(settings)


async def in_time(call: Callable[..., T], *arguments: object, limit: float, limiter: CapacityLimiter, late: str) -> T:
    """What a call of the store gives, which runs in a thread.

    Raises:
        TimeLimitExceeded: it took longer than `limit` seconds; `late` is the sentence. Its thread is left behind.
    """
    import anyio
    import anyio.to_thread

    try:
        with anyio.fail_after(limit):
            return await anyio.to_thread.run_sync(call, *arguments, limiter=limiter, abandon_on_cancel=True)
    except TimeoutError:
        raise TimeLimitExceeded(late) from None


def local_files(folder: Path) -> dict[str, Path]:
    """The files below a folder by their relative names, in order.

    Links to folders are followed, but each folder is visited once.

    Raises:
        FileNotFoundError: there is no such folder, or something in it is not a file (a broken link, a socket).
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    files: dict[str, Path] = {}
    seen: set[str] = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(path))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(path, name)) not in seen]
        for name in names:
            file = Path(path, name)
            if not file.is_file():
                raise FileNotFoundError(f"{file} is not a file that can be saved (a broken link, or a socket)")
            files[file.relative_to(folder).as_posix()] = file
    return dict(sorted(files.items()))
