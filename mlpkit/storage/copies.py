"""Local copies of objects and folders: what the store has newest, from the cache where it is there already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from mlpkit.errors import ObjectNotFound, StorageDenied, StorageError, StorageUnavailable
from mlpkit.log import logger
from mlpkit.storage.cache import FileCache, link_or_copy
from mlpkit.storage.paths import ObjectStat, checked_key
from mlpkit.storage.store import ObjectChanged, Store, Threads, objects_below
from mlpkit.storage.trust import Trust

_ATTEMPTS = 10


class Copies:
    """Fetches from a store into a cache. With `offline`, the last known copy serves when the store cannot be reached.

    A folder is an entry of its own in the cache, whose files are hard links to those of its objects.
    """

    def __init__(self, store: Store, cache: FileCache, threads: Threads, trust: Trust, *, offline: bool) -> None:
        self._store, self._cache, self._threads, self._offline = store, cache, threads, offline
        self._trust = trust

    def of_object(self, bucket: str, key: str, *, ask: bool) -> Path:
        """The copy of one object, under its own name, held until `release`; with `ask` the store is always asked."""
        path = f"{bucket}/{key}"
        subject = self._subject(path)
        folder = None if ask else self._trusted(subject)
        if folder is None:
            folder = self._or_known(subject, path, lambda fresh: self._object(self._store.stat(bucket, key)))
        return folder / _name(key)

    def of_folder(self, bucket: str, start: str, only: Collection[str] | None, *, ask: bool) -> Path:
        """A folder of copies of what is below `start` (it ends with a slash), or `only` those; held until `release`."""
        path = f"{bucket}/{start}"
        subject = self._subject(path, *([] if only is None else ["only", *sorted(only)]))
        folder = None if ask else self._trusted(subject)
        if folder is None:
            folder = self._or_known(subject, path, lambda fresh: self._folder(bucket, start, only, subject, fresh))
        return folder

    def changed(self, bucket: str, keys: Iterable[str]) -> None:
        """The objects were saved or deleted, or may have been: nobody takes earlier copies for the newest."""
        self._trust.changed(f"{bucket}/{key}" for key in keys)

    def release(self, path: Path) -> None:
        """The copy is not used any more."""
        self._cache.release(path)

    def close(self) -> None:
        """Releases all copies."""
        self._cache.close()

    def _trusted(self, subject: str) -> Path | None:
        known = self._trust.known(subject)
        return None if known is None else self._cache.held(known)

    def _or_known(self, subject: str, path: str, obtain: Callable[[bool], Path]) -> Path:
        question = self._trust.asking(subject, path)
        try:
            folder = self._newest(obtain)
        except StorageUnavailable as error:
            known = self._cache.newest(subject) if self._offline else None
            if known is None:
                raise
            logger.warning("{}; the last known copy is used (MLPKIT_CACHE_OFFLINE)", error)
            return known
        self._trust.answered(question, folder)
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
        subject, name = self._subject(stat.path), _name(stat.key)
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
            found = self._threads.each(lambda each: self._store.stat(bucket, each.key), stats.values())
            stats = dict(zip(stats, found, strict=True))

        # Held until the folder is an entry: the files of an object that goes before that would be counted twice.
        copies: list[Path] = []

        def make(folder: Path) -> dict[str, str]:
            digests: dict[str, str] = {}

            def link(each: tuple[str, ObjectStat]) -> None:
                copy, name = self._object(each[1]), _name(each[1].key)
                copies.append(copy)
                link_or_copy(copy / name, folder / each[0])
                digests[each[0]] = self._cache.digests(copy)[name]

            self._threads.transfer(list(stats.items()), size=lambda each: each[1].size, move=link)
            return digests

        try:
            return self._cache.obtain(
                "\n".join([subject, *(f"{name}\n{_version(each)}" for name, each in stats.items())]),
                subject=subject,
                source=f"{self._store.url}: {bucket}/{start}",
                make=make,
            )
        finally:
            for copy in copies:
                self._cache.release(copy)

    def _chosen(self, bucket: str, start: str, only: Collection[str] | None) -> dict[str, ObjectStat]:
        """What is below `start`, by safe relative names; exactly `only` if that is given."""
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
