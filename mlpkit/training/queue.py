"""The training queue: submit, cancel and look at jobs.

Each job that has not ended is a task of one task group: it waits for a place of the engine, and runs there. A job's
change of state is on disk before anything else learns of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
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
    NoPlace,
    Overloaded,
    ServiceStopping,
    StorageUnavailable,
)
from mlpkit.log import LogOutput, logger
from mlpkit.settings import Settings
from mlpkit.storage import checkpoint_place, delete_checkpoint, open_storage, settings_for
from mlpkit.training.engine import Engine, JobRun, Place, ProcessUsage, StopRequest, make_engine
from mlpkit.training.events import Event, Events
from mlpkit.training.job import CANCELLED, RECALLED, EndedJobs, Job, JobOutcome, in_log_of
from mlpkit.training.joblog import JobLog, file_name
from mlpkit.training.journal import JobFilter, Journal
from mlpkit.training.order import Forecast, Turns
from mlpkit.training.process import discard_parts, folder_of, remove, remove_other_folders, trained_in
from mlpkit.training.progress import Curves, Snapshot, read_curves
from mlpkit.training.run import takes_checkpoint

T = TypeVar("T")

_RETRY_FIRST = 0.5
_RETRY_LONGEST = 30.0
"""Seconds between two tries to write a job's state to a full disk."""
_LONGEST_START = 3.0
"""How long `open` waits until the jobs that cannot continue are ended."""
_RECENT = 24 * 3600.0
"""Seconds after which a failed job is no longer news."""
_MOST_RECENT = 100
_REMOVAL_SECONDS = 5.0
"""How long a cancel waits for the removal of a checkpoint."""
_REMOVED_TOGETHER = 500
_REMOVAL_PAUSE_SHORTEST = 0.1
_REMOVAL_PAUSE_LONGEST = 3600.0


@dataclass(eq=False)
class _LiveJob:
    """A job that has not ended, and its task.

    `asked` is why the task was told to stop. `stop_request` is for its process, which may still save a checkpoint.
    `written` is whether the job's latest state is on disk; `reported` is when its run has last sent progress or a line
    of its log, in seconds since the epoch.
    """

    job: Job
    on_disk: bool = False
    asked: Literal["", "cancel", "close"] = ""
    stop_request: StopRequest = field(default_factory=StopRequest)
    storing: bool = False
    written: bool = True
    reported: float | None = None
    curves: Curves = field(default_factory=Curves)
    refusal: MlpkitError | None = None
    place: Place | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    answered: anyio.Event = field(default_factory=anyio.Event)
    left: anyio.Event = field(default_factory=anyio.Event)

    def stop(self, why: Literal["cancel", "close"]) -> None:
        # A cancel counts although the service is closing: the job must not run again after a restart.
        if why == "cancel" or not self.asked:
            self.asked = why
        self.scope.cancel()


class TrainingQueue:
    """Training jobs by priority, then first come, first served.

    All methods belong to one event loop. At most `MLP_TRAIN_TASK_NUM` jobs run and `MLP_TRAIN_QUEUE_SIZE` wait.

    Args:
        engine: runs the jobs; the engine that `MLPKIT_ENGINE` names if it is None.

    Attributes:
        on_end: called with each job that has ended, after that is on disk.
        events: tells what happens to jobs, and to models if it is told.
        ended: how the jobs of each algorithm have ended, and how long they took.
    """

    def __init__(
        self,
        algorithms: Mapping[str, Algorithm],
        target: str,
        settings: Settings,
        log: LogOutput,
        *,
        engine: Engine | None = None,
    ) -> None:
        self._algorithms = algorithms
        self._settings = settings
        self._log = log
        self._engine = engine or make_engine(settings.engine, target, settings)
        self._live: dict[str, _LiveJob] = {}
        self._turns = Turns(self._engine, fair=settings.train_fair == "app_id")
        self._forecast: Forecast | None = None
        self._capacity = settings.train_task_num + settings.train_queue_size
        self.on_end: Callable[[Job], None] | None = None
        self.events = Events()
        self.ended = {name: EndedJobs() for name in algorithms}

    async def open(self) -> None:
        """Opens the journal, and continues with its jobs.

        Raises:
            SettingsError: another service uses the home.
            JournalError: the journal cannot be read.
        """
        self._closing = anyio.Event()
        self._closed = anyio.Event()
        opened = anyio.Event()
        self._disk = anyio.CapacityLimiter(1)
        self._journal = await self._on_disk(lambda: Journal(self._settings.home))
        self.events.open(self._journal)
        unfinished = await self._on_disk(self._journal.unfinished)
        if self._settings.train_fair == "app_id":
            self._turns.last_starts = await self._on_disk(self._journal.last_starts)
        for name, ended in self.ended.items():
            # No service stays closed because an estimate cannot be read.
            with contextlib.suppress(JournalError):
                newest = await self._on_disk(partial(self._journal.jobs, RECALLED, 0, JobFilter("completed", name)))
                ended.recall(reversed(newest))
        await anyio.to_thread.run_sync(remove_other_folders, self._settings.home, unfinished)
        await self._engine.open()
        self._host = asyncio.create_task(self._run_tasks(opened))
        await opened.wait()
        self._tasks.start_soon(self._remove_old)
        self._tasks.start_soon(self.events.keep, self._on_disk)
        resumed = [await self._resume(job) for job in unfinished]
        # Those that cannot continue have ended when this returns, unless the disk is full.
        with anyio.move_on_after(_LONGEST_START):
            for live in resumed:
                if self._why_not_again(live.job):
                    await live.left.wait()

    async def drain(self, grace: float) -> None:
        """Takes no more jobs; running ones get `grace` seconds.

        They are asked to save a checkpoint and end. Those that have not ended go back to waiting. What is known of the
        jobs can still be asked. A cancellation ends the grace: then `close` does the rest.
        """
        self._closing.set()
        for live in list(self._live.values()):
            if live.job.state == "init":
                live.stop("close")
            else:
                live.stop_request.make("drain")
        with anyio.move_on_after(grace):
            await self._all_left()
        for live in list(self._live.values()):
            live.stop("close")
        await self._all_left()

    async def close(self, grace: float = 0.0) -> None:
        """Drains the queue, and closes the journal."""
        await self.drain(grace)
        self.events.close()
        self._closed.set()
        await self._host
        await self._engine.close()
        await self._on_disk(self._journal.close)

    async def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue.

        It is on disk when this returns. An ended job of the same id is replaced. A job that was submitted before with
        the same id and the same content, and has not ended, is accepted again and not started a second time.

        Raises:
            Overloaded: the queue is full.
            ServiceStopping: the service takes no more jobs.
            JobConflict: a job with this model id and other content waits or runs.
            AlgorithmNotFound: this service does not have the algorithm.
            ArgumentError: it asks for more GPUs than there are.
            JournalError: it could not be written; it was not accepted.
        """
        if await self.has_accepted(job):
            return
        if self._closing.is_set():
            raise ServiceStopping("the service is shutting down and takes no new jobs")
        if job.algorithm not in self._algorithms:
            raise AlgorithmNotFound(job.algorithm)
        self._engine.check(self._options(job))
        if len(self._live) >= self._capacity:
            raise Overloaded(
                f"the training queue is full: {self._capacity} jobs run or wait (MLP_TRAIN_TASK_NUM, "
                "MLP_TRAIN_QUEUE_SIZE); try again later",
                retry_after=30,
            )
        live = self._enter(job)
        await live.answered.wait()
        if live.refusal is not None:
            raise live.refusal

    async def has_accepted(self, job: Job) -> bool:
        """Whether a job with this id and this content waits or runs.

        Raises:
            JobConflict: a job with this id and other content waits or runs.
            JournalError: the job with the same content could not be written; it was not accepted.
        """
        live = self._live.get(job.model_id)
        if live is None:
            return False
        # In a thread: a request can have many megabytes.
        if not await anyio.to_thread.run_sync(live.job.asks_the_same, job):
            raise JobConflict(
                f"job [{job.model_id}] exists already and is {live.job.state!r}: cancel it, or use another model id"
            )
        await live.answered.wait()
        if live.refusal is not None:
            raise live.refusal
        return True

    async def cancel(self, model_id: str, *, soft: bool = False) -> Job:
        """Ends the job in any state, and returns it.

        With `soft`, a running job is only asked to end, and this returns immediately. It is killed if it has not ended
        after the grace of a shutdown.

        A job that has ended stays as it is. The end is on disk when this returns, so the job does not run again after
        a restart.

        Raises:
            JobNotFound: nobody knows this id.
            JournalError: the end could not be written.
        """
        live = self._live.get(model_id)
        if live is not None:
            await live.answered.wait()
            if soft and live.job.state == "training":
                return await self._ask_to_stop(live)
            live.stop("cancel")
            await live.left.wait()
            if live.refusal is None and live.written and live.job.has_ended:
                return live.job
        # The service is closing and has put the job back to waiting, or the job has ended.
        job, event = await self._on_disk(lambda: self._cancel_on_disk(model_id))
        if event is not None:
            self.events.publish(event)
            await discard_parts(job, self._algorithms.get(job.algorithm), self._settings)
            await self._remove_checkpoint(job)
            self._tell_end(job)
        return job

    async def _ask_to_stop(self, live: _LiveJob) -> Job:
        async def kill_later() -> None:
            with anyio.move_on_after(self._settings.shutdown_grace):
                await live.left.wait()
            if not live.left.is_set() and not live.storing:
                live.stop("close")

        if not live.job.cancelling:
            live.job = msgspec.structs.replace(live.job, cancelling=True)
            # On disk first: the job must not run again if the service is killed now.
            event = await self._on_disk(lambda: self._note_cancelling(live.job.model_id))
            if event is not None:
                self.events.publish(event)
            live.stop_request.make("cancel")
            self._tasks.start_soon(kill_later)
        return live.job

    def _note_cancelling(self, model_id: str) -> Event | None:
        # What is on disk, not what is known here: the job may just have ended.
        job = self._journal.summary(model_id)
        if job is None or job.has_ended:
            return None
        return self._journal.update(msgspec.structs.replace(job, cancelling=True))

    def _cancel_on_disk(self, model_id: str) -> tuple[Job, Event | None]:
        job = self._journal.job(model_id)
        if job is None:
            raise JobNotFound(model_id)
        if job.has_ended:
            return job, None
        job = job.moved("error", message=CANCELLED, ended=time.time())
        return job, self._journal.update(job)

    def check_deletable(self, model_id: str) -> None:
        """Refuses to delete a model that a job is storing now.

        Raises:
            JobConflict: names the job.
        """
        live = self._live.get(model_id)
        if live is not None and live.storing:
            raise JobConflict(
                f"the model of job [{model_id}] is being stored: cancel the job, or delete the model when it has ended"
            )

    def job(self, model_id: str) -> Job | None:
        """The job with this model id, as it is now."""
        live = self._live.get(model_id)
        return self._seen(live) if live is not None and live.on_disk else self._journal.job(model_id)

    def summary(self, model_id: str) -> Job | None:
        """The same as `job`, but without data, parameters and extend."""
        live = self._live.get(model_id)
        return self._seen(live) if live is not None and live.on_disk else self._journal.summary(model_id)

    def jobs(self, limit: int | None = None, offset: int = 0, chosen: JobFilter | None = None) -> list[Job]:
        """The jobs that are known, newest first.

        They have no data, parameters and extend, which can be very long.
        """
        return [self._current(job) for job in self._journal.jobs(limit, offset, chosen)]

    def count(self, chosen: JobFilter | None = None) -> int:
        """How many jobs are known."""
        return self._journal.count(chosen)

    def recent_failures(self) -> list[Job]:
        """Jobs that failed in the last 24 hours, at most 100."""
        since = time.time() - _RECENT
        failed = self._journal.jobs(_MOST_RECENT, 0, JobFilter(state="error"))
        recent = [job for job in failed if not job.was_cancelled and (job.ended or 0.0) >= since]
        return sorted(recent, key=lambda job: job.ended or 0.0, reverse=True)

    def reported(self, model_id: str) -> float | None:
        """When a running job has last reported, in seconds since the epoch."""
        live = self._live.get(model_id)
        return live.reported if live is not None and live.job.state == "training" else None

    def curves(self, model_id: str) -> dict[str, list[tuple[float, float]]]:
        """The course of each metric: seconds since the start, and value.

        It may read a file.
        """
        live = self._live.get(model_id)
        return read_curves(self._curves_path(model_id)) if live is None else live.curves.points()

    async def usage(self, model_id: str) -> ProcessUsage | None:
        """The process of a job; None if it has none now."""
        live = self._live.get(model_id)
        return None if live is None or live.place is None else await live.place.usage()

    async def stack(self, model_id: str) -> str:
        """Where each thread of a running job is now, as text.

        Raises:
            JobNotFound: nobody knows this id.
            JobConflict: the job does not run, or its process cannot be asked.
            TimeLimitExceeded: its process does not answer.
        """
        live = self._live.get(model_id)
        if live is not None and live.place is not None:
            return await live.place.stack()
        job = self.summary(model_id)
        if job is None:
            raise JobNotFound(model_id)
        raise JobConflict(f"job [{model_id}] is {job.state!r}: only a job that runs has a stack")

    def position(self, model_id: str) -> int | None:
        """The job's position among the waiting ones; 1 is next."""
        return self._newest_forecast().positions.get(model_id)

    def estimated_start(self, model_id: str) -> float | None:
        """When a waiting job will probably start, if that is known."""
        start = self._newest_forecast().starts.get(model_id)
        # If a job before it takes longer than expected, it may start at any moment.
        return None if start is None else max(start, time.time())

    def _newest_forecast(self) -> Forecast:
        if self._forecast is None or self._forecast.is_old:
            jobs = [self._seen(live) for live in self._live.values()]
            self._forecast = self._turns.forecast(jobs, self._settings.train_task_num, self.ended)
        return self._forecast

    def counts(self) -> dict[str, int]:
        """How many jobs are in `init` and `training`."""
        states = [live.job.state for live in self._live.values()]
        return {"init": states.count("init"), "training": states.count("training")}

    def log_path(self, model_id: str) -> Path:
        """The file of the job's own log, whether it exists or not."""
        return self._settings.home / "jobs" / f"{file_name(model_id)}.log"

    def _curves_path(self, model_id: str) -> Path:
        return self.log_path(model_id).with_suffix(".curves")

    def _remove_files(self, model_id: str) -> None:
        self.log_path(model_id).unlink(missing_ok=True)
        self._curves_path(model_id).unlink(missing_ok=True)

    async def _run_tasks(self, opened: anyio.Event) -> None:
        async with anyio.create_task_group() as self._tasks, self._turns.opened():
            opened.set()
            await self._closed.wait()

    async def _resume(self, job: Job) -> _LiveJob:
        if job.state == "training" and not self._why_not_again(job):
            job = job.put_back()
            try:
                self.events.publish(await self._on_disk(lambda: self._journal.update(job)))
            except JournalError as error:
                # After the next start its state on disk leads to the same result.
                logger.error("{}; job [{}] waits all the same", error, job.model_id)
        return self._enter(job, on_disk=True)

    def _why_not_again(self, job: Job) -> str:
        """Why a job of an earlier service cannot continue, or ''."""
        if job.cancelling:
            return CANCELLED
        options = self._options(job)
        attempts = job.counted_attempts
        used_up = job.state == "training" and attempts >= options.max_attempts
        # With a trained model in its folder, the next run only stores that.
        if used_up and trained_in(folder_of(self._settings.home, job), job) is None:
            return f"the service ended while it ran (attempt {attempts} of {options.max_attempts}, max_attempts=)"
        try:
            # It would wait for ever, and all jobs behind it, if there are fewer devices now.
            self._engine.check(options)
        except ArgumentError as error:
            return str(error)
        return ""

    def _enter(self, job: Job, *, on_disk: bool = False) -> _LiveJob:
        live = self._live[job.model_id] = _LiveJob(job, on_disk)
        self._forecast = None
        self._tasks.start_soon(self._attend, live)
        return live

    async def _attend(self, live: _LiveJob) -> None:
        """The task of one job, from its acceptance until it leaves."""
        try:
            with in_log_of(live.job):
                if live.on_disk or await self._accept(live):
                    live.answered.set()
                    problem = self._why_not_again(live.job)
                    outcome = JobOutcome("error", problem) if problem else await self._take_turns(live)
                    await self._finish(live, outcome)
        finally:
            del self._live[live.job.model_id]
            self._forecast = None
            live.answered.set()
            live.left.set()

    async def _accept(self, live: _LiveJob) -> bool:
        def write() -> Event:
            self._remove_files(live.job.model_id)
            return self._journal.add(live.job)

        try:
            self.events.publish(await self._on_disk(write))
        except (MlpkitError, OSError) as error:
            live.refusal = (
                error if isinstance(error, MlpkitError) else JournalError(f"the job cannot be stored: {error}")
            )
            return False
        live.on_disk = True
        logger.info("job [{}] of {} was accepted", live.job.model_id, live.job.algorithm)
        return True

    async def _take_turns(self, live: _LiveJob) -> JobOutcome | None:
        """Runs the job, again if a run is lost; None if stopped.

        A lost run is the job's outcome if it may not run again. If the service closes, it counts as stopped.
        """
        while True:
            outcome = await self._take_turn(live)
            if outcome is None or not outcome.lost or self._why_not_again(live.job):
                return outcome
            if self._closing.is_set():
                return None
            logger.warning("{}: job [{}] runs again", outcome.message, live.job.model_id)
            live.job = live.job.put_back()
            self._forecast = None
            await self._write(live, live.job)

    async def _take_turn(self, live: _LiveJob) -> JobOutcome | None:
        """Waits for the job's turn and runs it; None if stopped."""
        if live.asked:
            return None
        with anyio.CancelScope() as live.scope:
            try:
                async with self._turns.place(live.job, self._options(live.job)) as live.place:
                    started = live.job.moved(
                        "training", attempt=live.job.attempt + 1, started=time.time(), progress=None
                    )
                    await self._write(live, started)
                    live.job = started
                    self._forecast = None
                    if started.attempt == 1:
                        self.ended.setdefault(started.algorithm, EndedJobs()).count_start(started)
                    return await self._run(live, live.place)
            except NoPlace as error:
                return JobOutcome("error", str(error))
        return None

    async def _run(self, live: _LiveJob, place: Place) -> JobOutcome:
        def on_progress(progress: Snapshot) -> None:
            live.reported = time.time()
            live.job = msgspec.structs.replace(live.job, progress=progress)
            live.curves.add(progress)
            self.events.progress(live.job)

        def on_line() -> None:
            live.reported = time.time()
            self.events.log_grew(live.job.model_id)

        def on_storing() -> None:
            live.storing = True

        job = live.job
        path = self.log_path(job.model_id)
        try:
            with JobLog(path, self._settings.job_log_size, self._log, job.log_uuid, on_line) as log:
                log.say(f"job [{job.model_id}] of {job.algorithm} starts, attempt {job.attempt}")
                run = JobRun(
                    job,
                    self._options(job),
                    folder_of(self._settings.home, job),
                    log,
                    on_progress,
                    on_storing,
                    stop=live.stop_request,
                    can_continue=self._takes_checkpoint(job),
                )
                return await place.run(run)
        except Exception as error:
            logger.exception("job [{}] could not be run", job.model_id)
            return JobOutcome("error", f"the training process could not be run: {error}")
        finally:
            live.storing = False
            with anyio.CancelScope(shield=True):
                await self._on_disk(lambda: live.curves.write(self._curves_path(job.model_id)))

    async def _finish(self, live: _LiveJob, outcome: JobOutcome | None) -> None:
        job = live.job.after(outcome, cancelled=live.asked == "cancel")
        if job.state == "error":
            # An earlier attempt may have been killed.
            if outcome is None or not outcome.told or job.attempt > 1:
                await discard_parts(job, self._algorithms.get(job.algorithm), self._settings)
            if live.asked == "cancel":
                await self._remove_checkpoint(job)
        elif job.state == "completed" and job.progress is not None:
            job = msgspec.structs.replace(job, progress=job.progress.completed())
        await self._write(live, job)
        if job.has_ended and live.written:
            await anyio.to_thread.run_sync(remove, folder_of(self._settings.home, job))
        live.job = job
        if job.has_ended:
            self._tell_end(job)

    def _tell_end(self, job: Job) -> None:
        failed = job.state == "error" and not job.was_cancelled
        ended = self.ended.setdefault(job.algorithm, EndedJobs())
        ended.count_end(job, "cancelled" if job.was_cancelled else job.state)
        words = f": {job.message}" if job.message else ""
        level = "WARNING" if failed else "INFO"
        logger.log(level, "job [{}] of {} ended: {}{}", job.model_id, job.algorithm, job.state, words)
        if self.on_end is not None:
            try:
                self.on_end(job)
            except Exception:
                logger.exception("what follows the end of job [{}] failed", job.model_id)

    async def _write(self, live: _LiveJob, job: Job) -> None:
        """Writes a job's new state.

        If the disk is full, it tries again until the service closes.
        """
        pause = _RETRY_FIRST
        live.written = False
        while True:
            try:
                event = await self._on_disk(lambda: self._journal.update(job))
            except JournalError as error:
                if self._closing.is_set():
                    logger.error("{}; job [{}] stays as it was on disk", error, job.model_id)
                    return
                logger.error("{}; trying again in {:g} s", error, pause)
            else:
                live.written = True
                self.events.publish(event)
                return
            with anyio.move_on_after(pause):
                await self._closing.wait()
            pause = min(2 * pause, _RETRY_LONGEST)

    async def _remove_old(self) -> None:
        """Removes jobs that ended longer ago than they are kept."""
        keep = self._settings.jobs_keep
        if not keep:
            return
        pause = min(max(keep / 10, _REMOVAL_PAUSE_SHORTEST), _REMOVAL_PAUSE_LONGEST)
        while not self._closing.is_set():
            try:
                while await self._on_disk(self._remove_some) and not self._closing.is_set():
                    pass
            except (MlpkitError, OSError) as error:
                logger.error("old jobs cannot be removed: {}", error)
            with anyio.move_on_after(pause):
                await self._closing.wait()

    def _remove_some(self) -> bool:
        """Removes some hundreds of old jobs; False if none is left."""
        before = time.time() - self._settings.jobs_keep
        jobs = self._journal.oldest_ended(_REMOVED_TOGETHER)
        old = []
        for job in jobs:
            if (job.ended or job.created) < before:
                if job.state == "error" and self._takes_checkpoint(job):
                    # It is not of a model, and nobody else would ever remove it.
                    self._delete_last_checkpoint(job.model_id)
                old.append(job.model_id)
        for model_id in old:
            # The files first, so that none remains without its job.
            self._remove_files(model_id)
        if old:
            self._journal.remove(old)
        return bool(old)

    def _takes_checkpoint(self, job: Job) -> bool:
        algorithm = self._algorithms.get(job.algorithm)
        return algorithm is not None and takes_checkpoint(algorithm)

    async def _remove_checkpoint(self, job: Job) -> None:
        """Removes the job's checkpoint, if the store answers soon."""
        if not self._takes_checkpoint(job):
            return
        try:
            with anyio.fail_after(_REMOVAL_SECONDS):
                await anyio.to_thread.run_sync(self._delete_checkpoint, job, abandon_on_cancel=True)
        except (MlpkitError, OSError, TimeoutError) as error:
            logger.warning("the checkpoint of job [{}] may be left in the store: {}", job.model_id, error)

    def _delete_last_checkpoint(self, model_id: str) -> None:
        job = self._journal.job(model_id)
        try:
            if job is not None:
                self._delete_checkpoint(job)
        except StorageUnavailable:
            raise  # the job is removed another time
        except MlpkitError as error:
            logger.warning("the checkpoint of job [{}] is left in the store: {}", model_id, error)

    def _delete_checkpoint(self, job: Job) -> None:
        with contextlib.closing(open_storage(settings_for(self._settings, job.extend))) as storage:
            delete_checkpoint(storage, checkpoint_place(self._settings, job.model_id))

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(call, limiter=self._disk)

    async def _all_left(self) -> None:
        for live in list(self._live.values()):
            await live.left.wait()

    def _options(self, job: Job) -> TrainOptions:
        algorithm = self._algorithms.get(job.algorithm)
        return algorithm.train_options if algorithm is not None else TrainOptions()

    def _current(self, job: Job) -> Job:
        live = self._live.get(job.model_id)
        return job if live is None else self._seen(live).without_request()

    def _seen(self, live: _LiveJob) -> Job:
        """The job as people see it: while it waits, with the reason."""
        if live.job.state != "init" or live.job.note:
            return live.job
        return msgspec.structs.replace(live.job, message=self._engine.why_waiting(self._options(live.job)))
