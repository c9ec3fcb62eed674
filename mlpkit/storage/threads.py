"""The storage's own threads: a bounded number of transfers at a time, and the first failure ends the rest."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGE = 64 << 20
"""Objects of this many bytes and more come in parallel parts, fetched by the threads here."""


class Threads:
    """Runs functions in at most `limit` threads, which start when they are needed.

    A function that runs here must not wait for another one: all threads could be waiting then.
    """

    def __init__(self, limit: int) -> None:
        self._pool = ThreadPoolExecutor(limit, thread_name_prefix="mlpkit-storage")

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The results in the order of the items; the first failure is raised once what has begun is over."""
        futures = [self._pool.submit(contextvars.copy_context().run, function, item) for item in items]
        try:
            failed = [each for each in wait(futures, return_when=FIRST_EXCEPTION).done if each.exception() is not None]
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
        if failed:
            failed[0].result()
        return [future.result() for future in futures]

    def transfer(
        self, items: Sequence[Item], *, size: Callable[[Item], int], move: Callable[[Item], object], large: int = LARGE
    ) -> None:
        """Moves the small items several at a time, then those of `large` bytes and more one by one.

        Those are moved from the caller's thread, because they go in parallel parts themselves.
        """
        small = {index for index, item in enumerate(items) if size(item) < large}
        self.each(lambda index: move(items[index]), sorted(small))
        for index, item in enumerate(items):
            if index not in small:
                move(item)

    def close(self) -> None:
        """Takes no new work and forgets what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
