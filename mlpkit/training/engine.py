"""Where training jobs run: the protocol and the table of engines.

The queue decides which job is next, and what a job's end means. An engine gives a job a place with the resources that
it asks for, and runs it there. The engine must never run a job twice at the same time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import anyio

from mlpkit.algorithm import TrainOptions
from mlpkit.errors import SettingsError, did_you_mean
from mlpkit.settings import Settings
from mlpkit.training.job import Job, JobOutcome
from mlpkit.training.joblog import JobLog
from mlpkit.training.progress import Snapshot, StopReason

ENGINES = {
    "local": "mlpkit.training.local:LocalEngine",
    "ray": "mlpkit.training.ray:RayEngine",
    "launch": "mlpkit.training.launch:LaunchEngine",
}
"""The engines by name, as `module:class`; a class is called with the app's target and the settings."""


@dataclass(eq=False)
class StopRequest:
    """Whether a job is asked to save and end, and why."""

    reason: StopReason | None = None
    made: anyio.Event = field(default_factory=anyio.Event)

    def make(self, reason: StopReason) -> None:
        """Asks the job to stop; only the first reason counts."""
        if self.reason is None:
            self.reason = reason
            self.made.set()


@dataclass(frozen=True)
class JobRun:
    """One run of a job, as the queue orders it.

    Attributes:
        folder: for files of the job on this machine; the queue removes it when the job has ended.
        log: takes the lines of the job while it runs.
        on_progress: gets each snapshot of the progress.
        on_storing: called when `train` has made a model, before it is stored.
        stop: what the engine must tell the job's `Progress` when it is made.
        can_continue: the job keeps a checkpoint, so its outcome is `lost` if its process was killed.
    """

    job: Job
    options: TrainOptions
    folder: Path
    log: JobLog
    on_progress: Callable[[Snapshot], None]
    on_storing: Callable[[], None]
    stop: StopRequest = field(default_factory=StopRequest)
    can_continue: bool = False


@dataclass(frozen=True)
class ProcessUsage:
    """The process of a running job.

    `memory` is in bytes, with its children.
    """

    pid: int
    memory: int


class Place(Protocol):
    """Resources that one job has for itself."""

    async def run(self, run: JobRun) -> JobOutcome:
        """Runs the job and returns how it ended; called once.

        A cancellation ends the job first.

        Raises:
            OSError: the job could not be started.
        """
        ...

    async def usage(self) -> ProcessUsage | None:
        """The process of the job; None if there is none now."""
        ...

    async def stack(self) -> str:
        """Where each thread of the job is now, as text.

        Raises:
            JobConflict: it cannot be asked; says why.
            TimeLimitExceeded: it does not answer.
        """
        ...


class Engine(Protocol):
    """Runs training jobs.

    All methods belong to the event loop of the queue.
    """

    async def open(self) -> None:
        """Starts the engine."""
        ...

    async def close(self) -> None:
        """Ends the engine. No job has a place any more."""
        ...

    def check(self, options: TrainOptions) -> None:
        """Refuses resources that this engine can never give.

        Raises:
            ArgumentError: names what is asked for and what there is.
        """
        ...

    def place(self, options: TrainOptions) -> AbstractAsyncContextManager[Place]:
        """Waits for a place with these resources, first come, first served.

        The queue decides which job runs in it: not always the one for which it has asked.

        Raises:
            NoPlace: there will be none.
        """
        ...

    def fits(self, asked: TrainOptions, wanted: TrainOptions) -> bool:
        """Whether a place for `asked` also serves `wanted`."""
        ...

    def why_waiting(self, options: TrainOptions) -> str:
        """Why such a job has no place yet, for its status.

        It is empty if it only waits for others to end.
        """
        ...


def make_engine(name: str, target: str, settings: Settings) -> Engine:
    """The engine of this name.

    Raises:
        SettingsError: the engine does not exist, or a package that it needs is not installed.
    """
    if name not in ENGINES:
        raise SettingsError(f"unknown engine {name!r}{did_you_mean(name, ENGINES)}: one of {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise SettingsError(f"engine {name!r} needs the package {error.name}: install it first") from error
    return cast("Engine", made(target, settings))
