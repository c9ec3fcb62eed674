"""Local copies of objects and folders, from the cache if possible.

`Freshness` knows which copies were compared with the store lately, and may be served without asking it again
(MLPKIT_CACHE_TRUST). Every process that saves or deletes an object through the cache changes a stamp for it
and for the folders that it is in, once the store has answered. A comparison counts as long as the stamp that was there
before it is still there. Names that share a stamp by chance cost each other a question to the store, and no more.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlpkit.errors import ObjectNotFound, StorageDenied, StorageError, StorageUnavailable
from mlpkit.log import logger
from mlpkit.storage.cache import FileCache, link_or_copy
from mlpkit.storage.index import CacheIndex
from mlpkit.storage.paths import ObjectStat, checked_key
from mlpkit.storage.store import ObjectChanged, Store, Threads, objects_below

_ATTEMPTS = 10
_STAMPS = 512
_MOST_COMPARISONS = 10_000


@dataclass(frozen=True)
class Comparison:
    """When a copy was compared with the store, and the earlier stamp."""

    subject: str
    place: int
    stamp: bytes
    asked: float


class Freshness:
    """The comparisons of the last `period` seconds in this process.

    A period of 0 keeps none.

    Safe from every thread.
    """

    def __init__(self, index: CacheIndex, store: str, period: float) -> None:
        self._index = index
        self._store = store
        self._period = period
        self._lock = threading.Lock()
        self._fresh: dict[str, tuple[Comparison, Path]] = {}

    def known(self, subject: str) -> Path | None:
        """The copy that was the newest lately.

        None if the store must be asked.
        """
        if not self._period:
            return None
        found = self._fresh.get(subject)
        if found is None:
            return None
        comparison, copy = found
        is_young = time.monotonic() - comparison.asked < self._period
        if is_young and self._index.stamp(comparison.place) == comparison.stamp:
            return copy
        with self._lock:
            self._fresh.pop(subject, None)
        return None

    def begin(self, subject: str, path: str) -> Comparison:
        """Call it before the store is asked for a path.

        The path of a folder ends with a slash.
        """
        place = self._place(path)
        return Comparison(subject, place, self._index.stamp(place) if self._period else b"", time.monotonic())

    def end(self, comparison: Comparison, copy: Path) -> None:
        """The copy was the newest when the store was asked."""
        if self._period:
            with self._lock:
                if len(self._fresh) >= _MOST_COMPARISONS:
                    self._fresh.clear()
                self._fresh[comparison.subject] = (comparison, copy)

    def changed(self, paths: Iterable[str]) -> None:
        """Tells all processes that these objects must be asked for.

        Call it once the store has answered.
        """
        places = {self._place(part) for path in paths for part in _and_its_folders(path)}
        try:
            self._index.change_stamps(places)
        except OSError as error:
            logger.warning("copies may be out of date until MLPKIT_CACHE_TRUST is over ({})", error)

    def _place(self, path: str) -> int:
        return zlib.crc32(f"{self._store}\n{path}".encode()) % _STAMPS


def _and_its_folders(path: str) -> Iterator[str]:
    yield path
    end = path.rfind("/")
    while end > 0:
        yield path[: end + 1]
        end = path.rfind("/", 0, end)


class Copies:
    """Fetches from a store into a cache.

    With `offline`, the last known copy serves when the store cannot be reached. A folder is an entry of its own in the
    cache, whose files are hard links to those of its objects.
    """

    def __init__(self, store: Store, cache: FileCache, threads: Threads, *, period: float, offline: bool) -> None:
        self._store = store
        self._cache = cache
        self._threads = threads
        self._offline = offline
        self._freshness = Freshness(cache.index, store.url, period)

    def of_object(self, bucket: str, key: str, *, ask: bool) -> Path:
        """The copy of one object, under its own name, held until `release`.

        With `ask` the store is always asked.
        """
        path = f"{bucket}/{key}"
        subject = self._subject(path)
        folder = None if ask else self._fresh(subject)
        if folder is None:
            folder = self._or_known(subject, path, lambda fresh: self._object(self._store.stat(bucket, key)))
        return folder / _name(key)

    def of_folder(self, bucket: str, start: str, only: Collection[str] | None, *, ask: bool) -> Path:
        """A folder of copies of what is below `start`.

        With `only`, exactly those are in it. It is held until `release`.

        `start` ends with a slash.
        """
        path = f"{bucket}/{start}"
        subject = self._subject(path, *([] if only is None else ["only", *sorted(only)]))
        folder = None if ask else self._fresh(subject)
        if folder is None:
            folder = self._or_known(subject, path, lambda fresh: self._folder(bucket, start, only, subject, fresh))
        return folder

    def changed(self, bucket: str, keys: Iterable[str]) -> None:
        """The objects may have changed: earlier copies are not the newest."""
        self._freshness.changed(f"{bucket}/{key}" for key in keys)

    def total(self) -> int | None:
        """The bytes of all copies; None if that is not known now."""
        return self._cache.index.total()

    def release(self, path: Path) -> None:
        """The copy is not used any more."""
        self._cache.release(path)

    def close(self) -> None:
        """Releases all copies."""
        self._cache.close()

    def _fresh(self, subject: str) -> Path | None:
        known = self._freshness.known(subject)
        return None if known is None else self._cache.held(known)

    def _or_known(self, subject: str, path: str, obtain: Callable[[bool], Path]) -> Path:
        comparison = self._freshness.begin(subject, path)
        try:
            folder = self._newest(obtain)
        except StorageUnavailable as error:
            known = self._cache.newest(subject) if self._offline else None
            if known is None:
                raise
            logger.warning("{}; the last known copy is used (MLPKIT_CACHE_OFFLINE)", error)
            return known
        self._freshness.end(comparison, folder)
        self._cache.keep_limit()
        return folder

    def _newest(self, obtain: Callable[[bool], Path]) -> Path:
        for attempt in range(1, _ATTEMPTS):
            try:
                return obtain(attempt > 1)
            except ObjectChanged as error:
                logger.debug("{}; attempt {} follows", error, attempt + 1)
        return obtain(True)

    def _object(self, stat: ObjectStat) -> Path:
        subject = self._subject(stat.path)
        name = _name(stat.key)
        return self._cache.obtain(
            f"{subject}\n{_version(stat)}",
            subject=subject,
            source=f"{self._store.url}: {stat.path}",
            make=lambda folder: {name: self._store.download(stat, folder / name, self._threads)},
        )

    def _folder(self, bucket: str, start: str, only: Collection[str] | None, subject: str, fresh: bool) -> Path:
        stats = self._chosen(bucket, start, only)
        if fresh:
            # An object changed since it was listed, or this server lists other etags than it serves.
            found = self._threads.each(lambda stat: self._store.stat(bucket, stat.key), stats.values())
            stats = dict(zip(stats, found, strict=True))

        # Held until the folder is an entry: the files of an object that goes before that would be counted twice.
        copies: list[Path] = []

        def make(folder: Path) -> dict[str, str]:
            digests: dict[str, str] = {}

            def link(item: tuple[str, ObjectStat]) -> None:
                target, stat = item
                copy = self._object(stat)
                copies.append(copy)
                name = _name(stat.key)
                link_or_copy(copy / name, folder / target)
                digests[target] = self._cache.digests(copy)[name]

            self._threads.transfer(list(stats.items()), size=lambda item: item[1].size, move=link)
            return digests

        try:
            return self._cache.obtain(
                "\n".join([subject, *(f"{name}\n{_version(stat)}" for name, stat in stats.items())]),
                subject=subject,
                source=f"{self._store.url}: {bucket}/{start}",
                make=make,
            )
        finally:
            for copy in copies:
                self._cache.release(copy)

    def _chosen(self, bucket: str, start: str, only: Collection[str] | None) -> dict[str, ObjectStat]:
        """What is below `start`, by safe relative names.

        Exactly `only`, if that is given.
        """
        try:
            found = {stat.key[len(start) :]: stat for stat in objects_below(self._store, bucket, start)}
        except StorageDenied:
            if only is None:
                raise
            # Credentials that may read and not list: the names are known, so each object is asked for.
            names = sorted(only)
            stats = self._threads.each(lambda name: self._store.stat(bucket, start + name), names)
            found = dict(zip(names, stats, strict=True))
        if only is None:
            if not found:
                raise ObjectNotFound(f"{self._store.url}: there is nothing below {bucket}/{start}")
            only = found
        missing = sorted(set(only) - found.keys())
        if missing:
            raise ObjectNotFound(f"{self._store.url}: there is no object {bucket}/{start}{missing[0]}")
        for name in only:
            folder = checked_key(name).rpartition("/")[0]
            while folder:
                if folder in only:
                    raise StorageError(
                        f"{self._store.url}: {bucket}/{start}{folder} is an object, and there are objects below it "
                        f"({name}): a local folder cannot hold both, rename one of them"
                    )
                folder = folder.rpartition("/")[0]
        return {name: found[name] for name in sorted(only)}

    def _subject(self, *names: str) -> str:
        return "\n".join((self._store.url, *names))


def _version(stat: ObjectStat) -> str:
    return f"{stat.etag or stat.modified}\n{stat.size}"


def _name(key: str) -> str:
    return key.rpartition("/")[2]
