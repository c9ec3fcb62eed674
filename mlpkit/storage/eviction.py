"""Keeps the cache within its limit: the least recently used entries go first, and no fetch waits for a look at all.

Where it is not known what goes first, a small cache is looked through at once, and a large one in a thread. Fetches go
on meanwhile, up to a tenth above the limit; then each removes a few more than it adds. Only what would be more than
that tenth makes a fetch wait.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from mlpkit.errors import StorageError, StorageUnavailable
from mlpkit.log import logger
from mlpkit.storage.leases import Leases
from mlpkit.storage.locks import locked
from mlpkit.storage.room import Room, name_in

_LONGEST_WAIT = 3600.0
_LAST_SECONDS = 5.0
"""How long the end of the thread is waited for; a disk that hangs keeps no process."""
_NOTICEABLE = 0.05
_REST = 20.0
"""How many times as long as a look in vain took there is no other."""
_AT_ONCE = 512
"""Steps of a look that a fetch takes before it leaves the others to the thread: there are two for each entry."""
_STEPS = 128
"""Steps of a look that the thread takes between two pauses."""
_A_FEW = 8
"""Entries that a fetch removes at most, up to the margin."""
_PAUSE = 0.001
_MARGIN = 10
"""One part of so many may be held above the limit while it is not known what goes first."""


class Eviction:
    """Removes entries of a cache of `limit` bytes. Safe from every thread; one process at a time removes.

    `clean` removes what users that were killed have left; `remove` an entry, unless somebody holds it.
    """

    def __init__(
        self,
        lock: Path,
        limit: int,
        room: Room,
        leases: Leases,
        *,
        clean: Callable[[], None],
        remove: Callable[[str], bool],
    ) -> None:
        self._lock, self._limit, self._room, self._leases = str(lock), limit, room, leases
        self._clean, self._remove = clean, remove
        self._full_until = 0.0
        self._thread: threading.Thread | None = None
        self._hurry, self._closed = threading.Event(), threading.Event()

    def keep_limit(self) -> None:
        """Removes what is too much, or sees to it that this happens soon. Cheap where nothing is.

        Raises:
            OSError: the disk of the cache is broken, or read-only.
        """
        if not self._is_too_much or time.monotonic() < self._full_until:
            return
        much = self._is_much
        if self._thread is not None and self._thread.is_alive():
            if not much:
                return
            self._wait_for_the_thread()
        # Another process may be at it: that is waited for where it is much.
        with contextlib.suppress(StorageUnavailable), locked(self._lock, _LONGEST_WAIT if much else 0):
            self._clean()
            began = time.monotonic()
            if not self._is_much:
                if not self._remove_a_few() and not self._look_at_few():
                    return
            elif began >= self._full_until:
                self._remove_until(self._limit, self._all())
            self._rest_if_full(began)

    def halve(self) -> bool:
        """Removes entries that nobody holds until half of the cache is gone; False where there are none."""
        before = self._room.total()
        self._wait_for_the_thread()
        with locked(self._lock, _LONGEST_WAIT):
            now = self._room.total()
            if before is not None and now is not None and now < before:
                # Of all that find the disk full at the same moment, one makes place.
                return True
            self._clean()
            names = self._looked() if now is None else self._all()
            removed = self._remove_until((self._room.total() or 0) // 2, names)
        if removed:
            logger.warning("the disk of the file cache {} is full: {} entries were removed", self._place, removed)
        return removed > 0

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._wait_for_the_thread(_LAST_SECONDS)

    @property
    def _place(self) -> Path:
        return Path(self._lock).parents[1]

    @property
    def _is_too_much(self) -> bool:
        total = self._room.total()
        return total is None or total > self._limit

    @property
    def _is_much(self) -> bool:
        """Whether it is more than may be too much for a while."""
        total = self._room.total()
        return total is not None and total > self._limit + self._limit // _MARGIN

    def _remove_a_few(self) -> bool:
        """Removes what is known to go first, but no more than a few; whether that is enough, or more is known."""
        if self._room.total() is None:
            return False
        self._remove_until(self._limit, itertools.islice(self._room.oldest(), _A_FEW))
        return not self._is_too_much or self._room.knows_more()

    def _look_at_few(self) -> bool:
        """Looks through a cache that is small, and removes what is too much; leaves a large one to the thread."""
        look = self._room.look(self._leases.everybodys())
        if _ends(look, _AT_ONCE):
            self._remove_until(self._limit, self._room.oldest())
            return True
        self._hurry.clear()
        thread = threading.Thread(target=self._work, args=(look,), name="mlpkit-cache", daemon=True)
        thread.start()
        self._thread = thread
        return False

    def _work(self, look: Generator[None, None, list[str]]) -> None:
        """The thread: the rest of a look, with pauses so that others get on."""
        began = time.monotonic()
        try:
            with contextlib.closing(look):
                while not _ends(look, _STEPS) and not self._closed.is_set():
                    if not self._is_much:
                        self._hurry.wait(_PAUSE)
            self._rest_if_full(began)
        except (OSError, StorageError) as error:
            logger.warning("the file cache {} cannot be kept within its limit: {}", self._place, error)

    def _wait_for_the_thread(self, longest: float = _LONGEST_WAIT) -> None:
        if self._thread is not None:
            self._hurry.set()
            self._thread.join(longest)

    def _all(self) -> Iterator[str]:
        """All entries, the least recently used first, without those that were used meanwhile as far as is known."""
        yield from self._room.oldest()
        yield from self._looked()

    def _looked(self) -> Iterator[str]:
        """The same, from a look now."""
        look = self._room.look(self._leases.everybodys(), _LONGEST_WAIT)
        while True:
            try:
                next(look)
            except StopIteration as end:
                return map(name_in, end.value)

    def _remove_until(self, limit: int, names: Iterator[str]) -> int:
        """Removes those entries in turn until no more than the limit is left; how many it removed."""
        removed, held = 0, self._leases.everybodys()
        while (self._room.total() or 0) > limit and (entry := next(names, None)) is not None:
            removed += entry not in held and self._remove(entry)
        return removed

    def _rest_if_full(self, began: float) -> None:
        total = self._room.total()
        if total is None or total <= self._limit or self._room.knows_more():
            return
        logger.warning(
            "the file cache {} holds {} bytes, more than MLPKIT_CACHE_SIZE ({}): all of it is in use",
            self._place,
            total,
            self._limit,
        )
        # A look at a hundred thousand entries in vain is not taken again with every fetch.
        taken = time.monotonic() - began
        self._full_until = time.monotonic() + _REST * taken if taken > _NOTICEABLE else 0.0


def _ends(look: Generator[None, None, list[str]], steps: int) -> bool:
    """Takes so many steps; whether that were all."""
    return sum(1 for _ in itertools.islice(look, steps)) < steps
