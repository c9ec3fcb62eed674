"""What is counted of store and cache, in all processes together."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from mlpkit.errors import ObjectNotFound
from mlpkit.metrics import MOMENTS, Histogram, SumOfNumbers, metrics_folder, numbers_of_process
from mlpkit.storage.paths import ObjectStat
from mlpkit.storage.store import Store, Threads

Item = TypeVar("Item")
CacheEvent = Literal["hit", "miss", "eviction"]

_CACHE: tuple[CacheEvent, ...] = ("hit", "miss", "eviction")
_OPERATIONS = (
    *("stat", "download", "read", "upload", "list", "folders"),
    *("delete", "discard_uploads", "make_bucket", "check"),
)
"""The operations of a `Store` that ask it, by the names of their functions."""
_BUCKETS = len(MOMENTS) + 1
_OF_OPERATION = _BUCKETS + 2
"""Numbers of an operation: how often it took how long, the sum of the seconds, and the errors."""
_LENGTH = len(_CACHE) + len(_OPERATIONS) * _OF_OPERATION


class StorageCounter:
    """Counts for this process of the service with this home."""

    def __init__(self, home: Path) -> None:
        self._folder = metrics_folder(home)

    def cache(self, event: CacheEvent, number: int = 1) -> None:
        """Counts what the cache did."""
        self._add({_CACHE.index(event): number})

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """Counts what the block does in the store."""
        began = time.monotonic()
        failed = False
        try:
            yield
        except ObjectNotFound:
            # That is an answer.
            raise
        except Exception:
            failed = True
            raise
        finally:
            self._count(name, time.monotonic() - began, failed)

    def each(self, name: str, items: Iterator[Item]) -> Iterator[Item]:
        """The items; counts the time until they come."""
        seconds = 0.0
        failed = False
        try:
            while True:
                began = time.monotonic()
                try:
                    item = next(items, None)
                except ObjectNotFound:
                    raise
                except Exception:
                    failed = True
                    raise
                finally:
                    seconds += time.monotonic() - began
                if item is None:
                    return
                yield item
        finally:
            self._count(name, seconds, failed)

    def _count(self, name: str, seconds: float, failed: bool) -> None:
        start = _start_of(name)
        self._add(
            {
                start + bisect_left(MOMENTS, seconds): 1,
                start + _BUCKETS: seconds,
                start + _BUCKETS + 1: failed,
            }
        )

    def _add(self, changes: dict[int, float]) -> None:
        numbers_of_process(self._folder, _LENGTH).add(changes)


class CountedStore:
    """A store whose operations are counted."""

    def __init__(self, store: Store, counter: StorageCounter) -> None:
        self.url = store.url
        self.store = store
        self._counter = counter

    def stat(self, bucket: str, key: str) -> ObjectStat:
        with self._counter.operation("stat"):
            return self.store.stat(bucket, key)

    def download(self, stat: ObjectStat, target: Path, threads: Threads) -> str:
        with self._counter.operation("download"):
            return self.store.download(stat, target, threads)

    def read(self, bucket: str, key: str, most: int) -> tuple[str, bytes]:
        with self._counter.operation("read"):
            return self.store.read(bucket, key, most)

    def upload(self, source: Path, bucket: str, key: str) -> None:
        with self._counter.operation("upload"):
            self.store.upload(source, bucket, key)

    def list(self, bucket: str, prefix: str) -> Iterator[ObjectStat]:
        return self._counter.each("list", self.store.list(bucket, prefix))

    def folders(self, bucket: str) -> Iterator[str]:
        return self._counter.each("folders", self.store.folders(bucket))

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        with self._counter.operation("delete"):
            self.store.delete(bucket, keys)

    def discard_uploads(self, bucket: str, prefix: str) -> None:
        with self._counter.operation("discard_uploads"):
            self.store.discard_uploads(bucket, prefix)

    def make_bucket(self, bucket: str) -> None:
        with self._counter.operation("make_bucket"):
            self.store.make_bucket(bucket)

    def presign(self, bucket: str, key: str, expires: int) -> str:
        return self.store.presign(bucket, key, expires)

    def check(self, bucket: str) -> bool:
        with self._counter.operation("check"):
            return self.store.check(bucket)

    def close(self) -> None:
        self.store.close()


@dataclass(frozen=True)
class StorageCounts:
    """What all processes have counted.

    `seconds` and `errors` are by the operation of the store, `cache` by what the cache did.
    """

    cache: dict[CacheEvent, int]
    seconds: dict[str, Histogram]
    errors: dict[str, int]


class StorageTotals:
    """The counts of all processes of the service with this home."""

    def __init__(self, home: Path) -> None:
        self._numbers = SumOfNumbers(metrics_folder(home), _LENGTH)

    def counts(self) -> StorageCounts:
        """What was counted until now.

        It reads a small file for each process.
        """
        numbers = self._numbers.total()
        cache = {event: int(number) for event, number in zip(_CACHE, numbers, strict=False)}
        seconds = {}
        errors = {}
        for name in _OPERATIONS:
            start = _start_of(name)
            histogram = seconds[name] = Histogram(MOMENTS)
            histogram.counts = [int(count) for count in numbers[start : start + _BUCKETS]]
            histogram.sum = numbers[start + _BUCKETS]
            errors[name] = int(numbers[start + _BUCKETS + 1])
        return StorageCounts(cache, seconds, errors)


def _start_of(operation: str) -> int:
    return len(_CACHE) + _OPERATIONS.index(operation) * _OF_OPERATION
