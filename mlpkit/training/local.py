"""The engine of one machine.

It gives out GPUs and places, and each job runs in a process of this service.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from mlpkit.algorithm import TrainOptions
from mlpkit.processes import Devices
from mlpkit.settings import Settings
from mlpkit.training.engine import Place
from mlpkit.training.process import ProcessPlace, Script


class LocalEngine:
    """Runs at most `MLP_TRAIN_TASK_NUM` jobs at a time, in processes.

    Args:
        devices: the GPUs that jobs share with models; those of the settings if it is None.
    """

    def __init__(self, target: str, settings: Settings, devices: Devices | None = None) -> None:
        self._target = target
        self._settings = settings
        self._devices = devices or Devices(settings.gpus)

    async def open(self) -> None:
        self._slots = anyio.CapacityLimiter(self._settings.train_task_num)

    async def close(self) -> None:
        pass

    def check(self, options: TrainOptions) -> None:
        self._devices.check(options.gpus)

    @asynccontextmanager
    async def place(self, options: TrainOptions) -> AsyncIterator[Place]:
        async with self._devices.held(options.gpus) as devices, self._slots:
            yield ProcessPlace(Script.of_service(self._target), self._settings, devices)

    def fits(self, asked: TrainOptions, wanted: TrainOptions) -> bool:
        return asked.gpus == wanted.gpus

    def why_waiting(self, options: TrainOptions) -> str:
        return self._devices.why_waiting(options.gpus)
