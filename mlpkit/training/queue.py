"""The training queue, the front door of everything about jobs: submit, cancel, look at.

Every job that has not ended is a task of one task group. A job takes its GPUs, then a place of the limiter (both first
come, first served), and runs in a process of its own. A move is on disk before anybody hears of it.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import anyio
import anyio.to_thread
import msgspec

from mlpkit.algorithm import Algorithm, TrainOptions
from mlpkit.errors import (
    AlgorithmNotFound,
    ArgumentError,
    JobConflict,
    JobNotFound,
    JournalError,
    MlpkitError,
    Overloaded,
    ServiceStopping,
)
from mlpkit.log import LogOutput, logger, with_request_id
from mlpkit.settings import Settings
from mlpkit.training.devices import Devices
from mlpkit.training.job import Job
from mlpkit.training.joblog import JobLog, file_name
from mlpkit.training.journal import Journal
from mlpkit.training.local import Trainer
from mlpkit.training.progress import Snapshot
from mlpkit.training.retention import Retention
from mlpkit.training.run import JobOutcome

T = TypeVar("T")

_RETRY_FIRST, _RETRY_LONGEST = 0.5, 30.0
_LONGEST_START = 3.0
_PATIENCE = 3.0
"""How long a job may wait for a place in a full queue, and how long the running ones may have run that it waits for."""


@dataclass(eq=False)
class _Place:
    """A job that has not ended, and its task. `asked` is why the task was told to stop."""

    job: Job
    on_disk: bool = False
    asked: Literal["", "cancel", "close"] = ""
    refusal: MlpkitError | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    answered: anyio.Event = field(default_factory=anyio.Event)
    left: anyio.Event = field(default_factory=anyio.Event)

    def stop(self, why: Literal["cancel", "close"]) -> None:
        self.asked = self.asked or why
        self.scope.cancel()


class TrainingQueue:
    """Training jobs: first come, first served; at most `MLP_TRAIN_TASK_NUM` run. All methods belong to one event loop.

    `on_end` is called with every job that has ended, after that is on disk.
    """

    def __init__(self, algorithms: Mapping[str, Algorithm], target: str, settings: Settings, log: LogOutput) -> None:
        self._algorithms, self._target, self._settings, self._log = algorithms, target, settings, log
        self._places: dict[str, _Place] = {}
        self._capacity = settings.train_task_num + settings.train_queue_size + 1
        self.on_end: Callable[[Job], None] | None = None

    async def open(self) -> None:
        """Takes possession of the home, and goes on with the jobs that an earlier service left.

        Raises:
            SettingsError: another service uses the home.
            JournalError: the journal cannot be read.
        """
        self._closing, self._closed, opened = anyio.Event(), anyio.Event(), anyio.Event()
        self._one_left = anyio.Event()
        self._slots = anyio.CapacityLimiter(self._settings.train_task_num)
        self._disk = anyio.CapacityLimiter(1)
        self._devices = Devices(self._settings.gpus)
        self._journal = await self._on_disk(lambda: Journal(self._settings.home))
        await self._on_disk(lambda: shutil.rmtree(self._settings.home / "work", ignore_errors=True))
        self._host = asyncio.create_task(self._run_tasks(opened))
        await opened.wait()
        self._tasks.start_soon(self._remove_old)
        resumed = [await self._resume(job) for job in await self._on_disk(self._journal.unfinished)]
        # Those that cannot go on have ended when this returns, unless the disk is full.
        with anyio.move_on_after(_LONGEST_START):
            for place in resumed:
                if self._why_not_again(place.job):
                    await place.left.wait()

    async def drain(self, grace: float) -> None:
        """Takes no more jobs, gives the running ones `grace` seconds, and puts the others back to waiting.

        What is known of the jobs can still be asked. A cancellation ends the grace: then `close` does the rest.
        """
        self._closing.set()
        for place in list(self._places.values()):
            if place.job.state == "init":
                place.stop("close")
        with anyio.move_on_after(grace):
            await self._all_left()
        for place in list(self._places.values()):
            place.stop("close")
        await self._all_left()

    async def close(self, grace: float = 0.0) -> None:
        """Drains the queue, where that was not done before, and lets go of the home."""
        await self.drain(grace)
        self._closed.set()
        await self._host
        await self._on_disk(self._journal.close)

    async def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue; it is on disk when this returns. An ended job of the same id is replaced.

        Raises:
            Overloaded: the queue is full; at once, unless jobs have just started, which may be short.
            ServiceStopping: the service takes no more jobs.
            JobConflict: a job with this model id waits or runs.
            AlgorithmNotFound: this service does not have the algorithm.
            ArgumentError: it asks for more GPUs than there are.
            JournalError: it could not be written; it was not accepted.
        """
        has_place = await self._has_place()
        if self._closing.is_set():
            raise ServiceStopping("the service is shutting down and takes no new jobs")
        if job.algorithm not in self._algorithms:
            raise AlgorithmNotFound(job.algorithm)
        if job.model_id in self._places:
            state = self._places[job.model_id].job.state
            raise JobConflict(
                f"job [{job.model_id}] exists already and is {state!r}: cancel it, or use another model id"
            )
        self._devices.check(self._options(job).gpus)
        if not has_place:
            raise Overloaded(
                f"the training queue is full: {self._capacity} jobs run or wait (MLP_TRAIN_TASK_NUM, "
                "MLP_TRAIN_QUEUE_SIZE); try again later",
                retry_after=30,
            )
        place = self._enter(job)
        await place.answered.wait()
        if place.refusal is not None:
            raise place.refusal

    async def _has_place(self) -> bool:
        """Whether one more job can be taken, now or in a moment: a burst of short jobs need not be refused.

        A job that has run for `_PATIENCE` seconds is not short; where no other runs, nobody waits.
        """
        with anyio.move_on_after(_PATIENCE):
            while len(self._places) >= self._capacity and (left := self._time_left()) > 0:
                with anyio.move_on_after(left):
                    await self._one_left.wait()
        return len(self._places) < self._capacity

    def _time_left(self) -> float:
        """For how many seconds the job that was started last still counts as short."""
        running = [place.job for place in self._places.values() if place.job.state == "training"]
        youngest = max((job.started or 0.0 for job in running), default=time.time())
        return min(_PATIENCE, youngest + _PATIENCE - time.time())

    async def cancel(self, model_id: str) -> Job:
        """Ends the job wherever it stands, and returns it; a job that has ended already stays as it is.

        Raises:
            JobNotFound: nobody knows this id.
        """
        place = self._places.get(model_id)
        if place is not None:
            await place.answered.wait()
            place.stop("cancel")
            await place.left.wait()
            if place.refusal is None:
                return place.job
        job = self._journal.job(model_id)
        if job is None:
            raise JobNotFound(model_id)
        return job

    def job(self, model_id: str) -> Job | None:
        """The job with this model id, as it stands now; None where nobody knows it."""
        place = self._places.get(model_id)
        return place.job if place is not None and place.on_disk else self._journal.job(model_id)

    def jobs(
        self, limit: int | None = None, offset: int = 0, *, state: str | None = None, algorithm: str | None = None
    ) -> list[Job]:
        """The jobs that the home remembers, newest first: all of them, or those in one state, or of one algorithm."""
        return [self._current(job) for job in self._journal.jobs(limit, offset, state=state, algorithm=algorithm)]

    def position(self, model_id: str) -> int | None:
        """The job's position among the waiting ones, 1 is next; None where it does not wait."""
        waiting = [place.job.model_id for place in self._places.values() if place.job.state == "init"]
        return waiting.index(model_id) + 1 if model_id in waiting else None

    def counts(self) -> dict[str, int]:
        """How many jobs are in `init` and `training`."""
        states = [place.job.state for place in self._places.values()]
        return {"init": states.count("init"), "training": states.count("training")}

    def log_path(self, model_id: str) -> Path:
        """The file of the job's own log, whether it exists or not."""
        return self._settings.home / "jobs" / f"{file_name(model_id)}.log"

    async def _run_tasks(self, opened: anyio.Event) -> None:
        async with anyio.create_task_group() as self._tasks:
            opened.set()
            await self._closed.wait()

    async def _resume(self, job: Job) -> _Place:
        if job.state == "training" and not self._why_not_again(job):
            job = job.moved("init", started=None, progress=None)
            try:
                await self._on_disk(lambda: self._journal.update(job))
            except JournalError as error:
                # As it stands on disk it would be put back in the same way after the next start.
                logger.error("{}; job [{}] waits all the same", error, job.model_id)
        return self._enter(job, on_disk=True)

    def _why_not_again(self, job: Job) -> str:
        """Why a job that an earlier service left cannot go on; an empty string where it can."""
        options = self._options(job)
        if job.state == "training" and job.attempt >= options.max_attempts:
            return f"the service ended while it ran (attempt {job.attempt} of {options.max_attempts}, max_attempts=)"
        try:
            # It would wait for ever, and everybody behind it, where there are fewer devices now.
            self._devices.check(options.gpus)
        except ArgumentError as error:
            return str(error)
        return ""

    def _enter(self, job: Job, *, on_disk: bool = False) -> _Place:
        place = self._places[job.model_id] = _Place(job, on_disk)
        self._tasks.start_soon(self._attend, place)
        return place

    async def _attend(self, place: _Place) -> None:
        """The task of one job, from its acceptance until it leaves."""
        try:
            with with_request_id(place.job.log_uuid):
                if place.on_disk or await self._accept(place):
                    place.answered.set()
                    problem = self._why_not_again(place.job)
                    outcome = JobOutcome("error", problem) if problem else await self._take_turn(place)
                    while outcome is not None and outcome.lost and not self._why_not_again(place.job):
                        if self._closing.is_set():
                            outcome = None
                            break
                        place.job = place.job.moved("init", started=None, progress=None)
                        await self._write(place.job)
                        outcome = await self._take_turn(place)
                    await self._finish(place, outcome)
        finally:
            del self._places[place.job.model_id]
            self._one_left.set()
            self._one_left = anyio.Event()
            place.answered.set()
            place.left.set()

    async def _accept(self, place: _Place) -> bool:
        def write() -> None:
            self.log_path(place.job.model_id).unlink(missing_ok=True)
            self._journal.add(place.job)

        try:
            await self._on_disk(write)
        except (MlpkitError, OSError) as error:
            place.refusal = (
                error if isinstance(error, MlpkitError) else JournalError(f"the job cannot be stored: {error}")
            )
            return False
        place.on_disk = True
        logger.info("job [{}] of {} was accepted", place.job.model_id, place.job.algorithm)
        return True

    async def _take_turn(self, place: _Place) -> JobOutcome | None:
        """Waits for the job's turn and runs it; None when it was told to stop."""
        if place.asked:
            return None
        with anyio.CancelScope() as place.scope:
            async with self._devices.held(self._options(place.job).gpus) as devices, self._slots:
                started = place.job.moved("training", attempt=place.job.attempt + 1, started=time.time())
                await self._write(started)
                place.job = started
                return await self._run(place, devices)
        return None

    async def _run(self, place: _Place, devices: tuple[str, ...]) -> JobOutcome:
        def on_progress(progress: Snapshot) -> None:
            place.job = msgspec.structs.replace(place.job, progress=progress)

        job, path = place.job, self.log_path(place.job.model_id)
        try:
            with JobLog(path, self._settings.job_log_size, self._log, job.log_uuid) as log:
                log.say(f"job [{job.model_id}] of {job.algorithm} starts, attempt {job.attempt}")
                trainer = Trainer(
                    job,
                    self._options(job),
                    self._target,
                    self._settings,
                    log=log,
                    log_path=path,
                    on_progress=on_progress,
                    devices=devices,
                )
                return await trainer.run()
        except Exception as error:
            logger.exception("job [{}] could not be run", job.model_id)
            return JobOutcome("error", f"the training process could not be run: {error}")

    async def _finish(self, place: _Place, outcome: JobOutcome | None) -> None:
        job, now = place.job, time.time()
        if outcome is not None:
            job = job.moved(outcome.state, message=outcome.message, ended=now)
        elif place.asked == "cancel":
            job = job.moved("error", message="cancelled", ended=now)
        elif job.state == "training":
            job = job.waiting_again()
        await self._write(job)
        place.job = job
        if job.has_ended:
            self._tell_end(job)

    def _tell_end(self, job: Job) -> None:
        words = f": {job.message}" if job.message else ""
        logger.info("job [{}] of {} ended: {}{}", job.model_id, job.algorithm, job.state, words)
        if self.on_end is not None:
            try:
                self.on_end(job)
            except Exception:
                logger.exception("what follows the end of job [{}] failed", job.model_id)

    async def _write(self, job: Job) -> None:
        """Writes the job's move; a full disk may have room later, so it is tried until the service closes."""
        pause = _RETRY_FIRST
        while True:
            try:
                return await self._on_disk(lambda: self._journal.update(job))
            except JournalError as error:
                if self._closing.is_set():
                    logger.error("{}; job [{}] stays as it was on disk", error, job.model_id)
                    return None
                logger.error("{}; trying again in {:g} s", error, pause)
            with anyio.move_on_after(pause):
                await self._closing.wait()
            pause = min(2 * pause, _RETRY_LONGEST)

    async def _remove_old(self) -> None:
        """Removes the jobs that ended longer ago than they are kept; now, and again and again."""
        if not self._settings.jobs_keep:
            return
        retention = Retention(self._journal, self.log_path, self._settings.jobs_keep)
        while not self._closing.is_set():
            try:
                while await self._on_disk(retention.remove_some) and not self._closing.is_set():
                    pass
            except (MlpkitError, OSError) as error:
                logger.error("old jobs cannot be removed: {}", error)
            with anyio.move_on_after(retention.pause):
                await self._closing.wait()

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(call, limiter=self._disk)

    async def _all_left(self) -> None:
        for place in list(self._places.values()):
            await place.left.wait()

    def _options(self, job: Job) -> TrainOptions:
        algorithm = self._algorithms.get(job.algorithm)
        return algorithm.train_options if algorithm is not None else TrainOptions()

    def _current(self, job: Job) -> Job:
        place = self._places.get(job.model_id)
        return job if place is None else place.job
