"""The GPUs of this machine, and who has which.

Jobs and models share them, whole or in parts. A part is a promise: nothing limits what a process takes of its device.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio

from mlpkit.errors import ArgumentError

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
"""What CUDA reads when it is loaded: the devices that a process sees."""
_WHOLE = 1000
"""A device in thousandths, because shares such as 0.1 are not exact as floats."""


def device_settings(devices: Sequence[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What lets a process see only these devices.

    It is empty if the process has none, or if the user has said which devices to see.
    """
    if not devices or VISIBLE_DEVICES in environment:
        return {}
    return {VISIBLE_DEVICES: ",".join(devices)}


class Devices:
    """Gives devices to jobs and models.

    Jobs wait for them, models do not.

    Used on one event loop.

    Args:
        names: the numbers of the GPUs, as in `MLPKIT_GPUS`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._free = dict.fromkeys(names, _WHOLE)
        self._turn = anyio.Lock()
        self._returned: anyio.Event | None = None

    def check(self, gpus: float) -> None:
        """Refuses a number of devices that could never be given.

        Raises:
            ArgumentError: more devices than there are.
        """
        if gpus > len(self._free):
            raise ArgumentError(
                f"the algorithm asks for {gpus_in_words(gpus)}, this service has {len(self._free)}: "
                "MLPKIT_GPUS lists their numbers"
            )

    def take(self, gpus: float) -> tuple[str, ...] | None:
        """Devices for a process; None if there are not enough now.

        A share below 1 is of one device.
        """
        size = round(gpus * _WHOLE)
        if 0 < size < _WHOLE:
            fitting = [name for name, free in self._free.items() if free >= size]
            # The fullest one, so that whole devices stay free.
            taken = sorted(fitting, key=self._free.__getitem__)[:1]
        else:
            taken = [name for name, free in self._free.items() if free == _WHOLE][: size // _WHOLE]
        if sum(min(size, _WHOLE) for _ in taken) < size:
            return None
        for name in taken:
            self._free[name] -= min(size, _WHOLE)
        return tuple(taken)

    def give_back(self, devices: Iterable[str], gpus: float) -> None:
        """Takes back what `take(gpus)` has given."""
        for name in devices:
            self._free[name] += min(round(gpus * _WHOLE), _WHOLE)
        if self._returned is not None:
            self._returned.set()

    @asynccontextmanager
    async def held(self, gpus: float) -> AsyncIterator[tuple[str, ...]]:
        """Waits for devices, and gives their names.

        First come, first served: nobody is overtaken by a job that needs fewer.
        """
        if gpus == 0:
            yield ()
            return
        async with self._turn:
            while (taken := self.take(gpus)) is None:
                self._returned = anyio.Event()
                await self._returned.wait()
        try:
            yield taken
        finally:
            self.give_back(taken, gpus)

    def why_waiting(self, gpus: float) -> str:
        """Why a job waits for devices; empty if it does not."""
        whole = sum(free == _WHOLE for free in self._free.values())
        most = max(self._free.values(), default=0) / _WHOLE
        if gpus <= (most if gpus < 1 else whole):
            return ""
        return f"waits for {gpus_in_words(gpus)}: {whole} of {len(self._free)} are free now"


def gpus_in_words(gpus: float) -> str:
    """A number of devices, such as `2 GPUs`."""
    return f"{gpus:g} GPU{'s' * (gpus > 1)}"
