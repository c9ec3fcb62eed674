"""The engine of one machine.

It gives out GPUs and places, and each job runs in a process of this service. A model that was trained and not stored
yet is in the job's folder. It survives a restart of the service.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from mlpkit.algorithm import TrainOptions
from mlpkit.errors import JobConflict
from mlpkit.processes import Devices
from mlpkit.settings import Settings
from mlpkit.training.engine import Place, ProcessUsage
from mlpkit.training.job import Job
from mlpkit.training.process import (
    BEGUN,
    ProcessPlace,
    Script,
    discard_parts,
    folder_of,
    remove,
    trained_in,
)


class LocalEngine:
    """Runs at most `MLP_TRAIN_TASK_NUM` jobs at a time, in processes.

    Args:
        devices: the GPUs that jobs share with models; those of the settings if it is None.
    """

    def __init__(self, target: str, settings: Settings, devices: Devices | None = None) -> None:
        self._target = target
        self._settings = settings
        self._devices = devices or Devices(settings.gpus)
        self._work = settings.home / "work"
        self._running: dict[str, ProcessPlace] = {}

    async def open(self, jobs: Sequence[Job]) -> None:
        self._slots = anyio.CapacityLimiter(self._settings.train_task_num)
        await anyio.to_thread.run_sync(self._remove_others, jobs)

    async def close(self) -> None:
        pass

    def check(self, options: TrainOptions) -> None:
        self._devices.check(options.gpus)

    @asynccontextmanager
    async def place(self, options: TrainOptions) -> AsyncIterator[Place]:
        async with self._devices.held(options.gpus) as devices, self._slots:
            script = Script.of_service(self._target)
            yield ProcessPlace(script, self._settings, self._work, devices, self._running)

    def fits(self, asked: TrainOptions, wanted: TrainOptions) -> bool:
        return asked.gpus == wanted.gpus

    def why_waiting(self, options: TrainOptions) -> str:
        return self._devices.why_waiting(options.gpus)

    def keeps(self, job: Job) -> bool:
        return trained_in(self._folder(job), job) is not None

    async def discard(self, job: Job) -> None:
        folder = self._folder(job)
        if (folder / BEGUN).exists():
            await discard_parts(job, self._settings)
        await anyio.to_thread.run_sync(remove, folder)

    async def usage(self, job: Job) -> ProcessUsage | None:
        place = self._running.get(job.model_id)
        return None if place is None else await place.usage()

    async def stack(self, job: Job) -> str:
        place = self._running.get(job.model_id)
        if place is None:
            raise JobConflict(f"job [{job.model_id}] has no process now: try again in a moment")
        return await place.stack()

    def _folder(self, job: Job) -> Path:
        return folder_of(self._work, job)

    def _remove_others(self, jobs: Sequence[Job]) -> None:
        """Removes the folders of all jobs but these."""
        kept = {self._folder(job) for job in jobs}
        with contextlib.suppress(FileNotFoundError):
            for folder in self._work.absolute().iterdir():
                if folder not in kept:
                    remove(folder)
