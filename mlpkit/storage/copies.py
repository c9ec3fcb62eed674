"""Local copies of objects and folders: what the store has newest, from the cache where it is there already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from loguru import logger

from mlpkit.errors import ObjectNotFound, StorageUnavailable
from mlpkit.storage.cache import FileCache, link_or_copy
from mlpkit.storage.paths import ObjectStat, checked_key
from mlpkit.storage.store import ObjectChanged, Store
from mlpkit.storage.threads import Threads

_ATTEMPTS = 10


class Copies:
    """Fetches from a store into a cache. With `offline`, the last known copy serves when the store cannot be reached.

    A folder is an entry of its own in the cache, whose files are hard links to those of its objects.
    """

    def __init__(self, store: Store, cache: FileCache, threads: Threads, *, offline: bool) -> None:
        self._store, self._cache, self._threads, self._offline = store, cache, threads, offline

    def of_object(self, bucket: str, key: str) -> Path:
        """The copy of one object, under its own name, held until `release`."""
        subject = self._subject(f"{bucket}/{key}")
        folder = self._or_known(subject, lambda fresh: self._object(self._store.stat(bucket, key)))
        return folder / _name(key)

    def of_folder(self, bucket: str, start: str, only: Collection[str] | None) -> Path:
        """A folder of copies of what is below `start` (it ends with a slash), or `only` those; held until `release`."""
        subject = self._subject(f"{bucket}/{start}", *([] if only is None else ["only", *sorted(only)]))
        return self._or_known(subject, lambda fresh: self._folder(bucket, start, only, subject, fresh))

    def release(self, path: Path) -> None:
        """The copy is not used any more."""
        self._cache.release(path)

    def close(self) -> None:
        """Releases all copies."""
        self._cache.close()

    def _or_known(self, subject: str, obtain: Callable[[bool], Path]) -> Path:
        try:
            folder = self._newest(obtain)
        except StorageUnavailable as error:
            known = self._cache.newest(subject) if self._offline else None
            if known is None:
                raise
            logger.warning("{}; the last known copy is used (MLPKIT_CACHE_OFFLINE)", error)
            return known
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
        return self._cache.obtain(
            f"{subject}\n{_version(stat)}",
            subject=subject,
            source=f"{self._store.place}: {stat.path}",
            make=lambda folder: self._store.download(stat, folder / _name(stat.key), self._threads),
        )

    def _folder(self, bucket: str, start: str, only: Collection[str] | None, subject: str, fresh: bool) -> Path:
        stats = self._chosen(bucket, start, only)
        if fresh:
            # An object changed since it was listed, or this server lists other etags than it serves.
            found = self._threads.each(lambda each: self._store.stat(bucket, each.key), stats.values())
            stats = dict(zip(stats, found, strict=True))

        def make(folder: Path) -> None:
            self._threads.transfer(
                list(stats.items()),
                size=lambda each: each[1].size,
                move=lambda each: self._link(each[1], folder / each[0]),
            )

        return self._cache.obtain(
            "\n".join([subject, *(f"{name}\n{_version(each)}" for name, each in stats.items())]),
            subject=subject,
            source=f"{self._store.place}: {bucket}/{start}",
            make=make,
        )

    def _link(self, stat: ObjectStat, target: Path) -> None:
        copy = self._object(stat)
        link_or_copy(copy / _name(stat.key), target)
        self._cache.release(copy)

    def _chosen(self, bucket: str, start: str, only: Collection[str] | None) -> dict[str, ObjectStat]:
        """What is below `start`, by safe relative names; exactly `only` where that is given."""
        found = {each.key[len(start) :]: each for each in objects_below(self._store, bucket, start)}
        if only is None:
            if not found:
                raise ObjectNotFound(f"{self._store.place}: there is nothing below {bucket}/{start}")
            return {checked_key(name): each for name, each in found.items()}
        missing = sorted(set(only) - found.keys())
        if missing:
            raise ObjectNotFound(f"{self._store.place}: there is no object {bucket}/{start}{missing[0]}")
        return {checked_key(name): found[name] for name in sorted(only)}

    def _subject(self, *names: str) -> str:
        return "\n".join((self._store.place, *names))


def objects_below(store: Store, bucket: str, start: str) -> Iterator[ObjectStat]:
    """The objects whose keys begin with `start`, without the empty ones that some consoles make to show a folder."""
    return (each for each in store.list(bucket, start) if not each.path.endswith("/"))


def _version(stat: ObjectStat) -> str:
    return f"{stat.etag or stat.modified}\n{stat.size}"


def _name(key: str) -> str:
    return key.rpartition("/")[2]
