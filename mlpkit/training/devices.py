"""The GPUs of the machine, shared by the jobs that ask for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio

from mlpkit.errors import ArgumentError


class Devices:
    """Gives whole devices to jobs, in the order in which they ask; nobody is passed by one who needs fewer."""

    def __init__(self, names: Sequence[str]) -> None:
        self._count, self._free = len(names), list(names)
        self._turn, self._returned = anyio.Lock(), anyio.Event()

    def check(self, count: int) -> None:
        """Refuses what could never be given.

        Raises:
            ArgumentError: more devices than there are.
        """
        if count > self._count:
            raise ArgumentError(
                f"the algorithm asks for {count} GPU{'s' * (count != 1)}, this service has {self._count}: "
                "MLPKIT_GPUS lists their numbers"
            )

    @asynccontextmanager
    async def held(self, count: int) -> AsyncIterator[tuple[str, ...]]:
        """The names of `count` devices that nobody else has meanwhile; waits for them."""
        if count == 0:
            yield ()
            return
        async with self._turn:
            while len(self._free) < count:
                self._returned = anyio.Event()
                await self._returned.wait()
            taken, self._free = self._free[:count], self._free[count:]
        try:
            yield tuple(taken)
        finally:
            self._free = sorted(self._free + taken)
            self._returned.set()
