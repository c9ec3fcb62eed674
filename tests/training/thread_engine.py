"""An engine from outside the package: it runs jobs in threads of the service, one at a time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.from_thread
import anyio.to_thread

from mlpkit.algorithm import TrainOptions
from mlpkit.errors import ArgumentError, JobConflict
from mlpkit.log import LogLine
from mlpkit.script import import_app
from mlpkit.settings import Settings
from mlpkit.training import JobOutcome, Progress, run_train
from mlpkit.training.engine import JobRun, Place, ProcessUsage


class ThreadEngine:
    """Has one place and no GPUs. It notes what it is asked in `calls`."""

    def __init__(self, target: str, settings: Settings) -> None:
        self._target = target
        self._settings = settings
        self.calls: list[str] = []

    async def open(self) -> None:
        self._slots = anyio.CapacityLimiter(1)
        self.calls.append("open")

    async def close(self) -> None:
        self.calls.append("close")

    def check(self, options: TrainOptions) -> None:
        if options.gpus:
            raise ArgumentError("threads have no GPUs")

    @asynccontextmanager
    async def place(self, options: TrainOptions) -> AsyncIterator[Place]:
        async with self._slots:
            yield _Thread(self._target, self._settings)

    def fits(self, asked: TrainOptions, wanted: TrainOptions) -> bool:
        return True

    def why_waiting(self, options: TrainOptions) -> str:
        return "the one thread is busy"


class _Thread:
    def __init__(self, target: str, settings: Settings) -> None:
        self._target = target
        self._settings = settings

    async def run(self, run: JobRun) -> JobOutcome:
        run.log.write(LogLine(time.time(), "INFO", "runs in a thread", run.job.log_uuid))
        return await anyio.to_thread.run_sync(self._train, run, abandon_on_cancel=True)

    async def usage(self) -> ProcessUsage | None:
        return None

    async def stack(self) -> str:
        raise JobConflict("a thread of the service has no stack of its own")

    def _train(self, run: JobRun) -> JobOutcome:
        def in_loop(call: Callable[[], None]) -> None:
            anyio.from_thread.run_sync(call)

        sent: list[Callable[[], None]] = []
        progress = Progress(lambda snapshot: sent.append(partial(run.on_progress, snapshot)))
        run.folder.mkdir(parents=True)
        outcome = run_train(
            import_app(self._target),
            run.job,
            self._settings,
            run.folder,
            progress,
            on_trained=lambda manifest, is_to_evaluate: in_loop(run.on_storing),
        )
        progress.close()
        for call in sent:
            in_loop(call)
        return outcome
