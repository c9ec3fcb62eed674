"""The process of one job, and what watches it.

It is the same wherever a job runs: under the service, in an actor on a Ray node, or below another launcher.

The watching end is `ProcessPlace`: it starts the process, watches its limits and says how it ended. The process imports
the script by its target, runs one job and ends (`main`). Between them goes one message down with all that the job
needs, then messages up (lines of the log, progress, the outcome) in msgpack. The process ends by itself; the watching
end kills it at a limit and when the job is cancelled, and keeper and guard kill it if the watching end dies.

In the job's folder, `out` is what `train` writes, and `trained.json` is the manifest of a model that has been trained
and not been stored yet. The next process only stores it. If a process ends while it evaluates the model, the next one
evaluates it again, and then stores it in any case.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import anyio
import anyio.to_thread
import msgspec

from mlpkit import start_folder
from mlpkit.algorithm import Algorithm
from mlpkit.errors import JobConflict, MlpkitError
from mlpkit.injection import ending_forked_copies
from mlpkit.log import LogLine, context_fields, logger, printable
from mlpkit.metrics import metrics_environment
from mlpkit.processes import (
    THREAD_SETTINGS,
    AsyncChannel,
    BlockingChannel,
    Child,
    Exit,
    Message,
    capture_output,
    channel_of_child,
    device_settings,
    flush_streams,
    leave_signals_to_the_server,
    listen_for_debugger,
    start_child,
    thread_settings,
)
from mlpkit.script import absolute_search_path, import_app
from mlpkit.settings import Settings, decode_settings, encode_settings
from mlpkit.storage import (
    Manifest,
    decode_json,
    discard_model,
    open_storage,
    replace_file,
    settings_for,
    write_through,
)
from mlpkit.tracing import note_failure, span
from mlpkit.training.engine import JobRun, ProcessUsage
from mlpkit.training.job import Job, JobOutcome, in_log_of
from mlpkit.training.joblog import BARS_SHARE, file_name
from mlpkit.training.progress import BarLines, Progress, Snapshot, StopReason
from mlpkit.training.run import (
    algorithm_of,
    destination,
    run_train,
    store_trained,
    stores_model,
    takes_checkpoint,
)
from mlpkit.training.stack import answer_stack_signal, forget_stack, stack_of

_MODULE = "mlpkit.training"
_MEMORY_INTERVAL = 0.5
_EXIT_GRACE = 10.0
_LOCK_WAIT = 3.0
_LAST_WORDS = 5.0
_DRAIN_OF_CANCELLED = 0.2
"""How long a cancel waits for lines that the job has written last."""
_DISCARD_SECONDS = 5.0
"""How long a cancel waits for the removal of a model that was stored in part."""
_STREAMS = ("stdout:0", "stderr:0")
_OUT = "out"
_TRAINED = "trained.json"
_MOST_EVALUATIONS = 2
"""After how many processes that ended in it the evaluation is given up."""


class StartTraining(msgspec.Struct, frozen=True, array_like=True):
    """What the job's process gets.

    `folder` is the job's; `lock` is the file that the process locks while it runs.
    """

    target: str
    sys_path: list[str]
    settings: bytes
    job: Job
    folder: str
    lock: str
    log_room: int


class StopTraining(msgspec.Struct, frozen=True, array_like=True):
    """Asks the job to save a checkpoint and end."""

    reason: StopReason


class Started(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The script is imported; the time limit begins."""


class Line(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A line of the log."""

    record: LogLine


class Dropped(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """How much the child has dropped, because the log is full."""

    lines: int
    size: int


class Moved(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """How far the job is."""

    progress: Snapshot


class Trained(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """`train` has made a model; the time limit ends."""


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """How the job ended; nothing but lines comes after it."""

    state: Literal["completed", "error"]
    message: str
    trace: str
    stopped: bool


_stop_decoder = msgspec.msgpack.Decoder(StopTraining)
_start_decoder = msgspec.msgpack.Decoder(StartTraining)
_decoder = msgspec.msgpack.Decoder(Started | Line | Dropped | Moved | Ended | Trained)


@dataclass(frozen=True)
class Script:
    """The author's script as this machine has it.

    Its processes start in the folder, with these entries of `sys.path`.
    """

    target: str
    folder: str
    sys_path: tuple[str, ...]

    @classmethod
    def of_service(cls, target: str) -> Script:
        """The script as this process has imported it."""
        return cls(target, start_folder, tuple(absolute_search_path()))


def folder_of(home: Path, job: Job) -> Path:
    """The folder of a job on this machine."""
    return (home / "work" / f"train-{file_name(job.model_id)}").absolute()


def remove_other_folders(home: Path, jobs: Sequence[Job]) -> None:
    """Removes the folders of all jobs but these."""
    kept = {folder_of(home, job) for job in jobs}
    with contextlib.suppress(FileNotFoundError):
        for folder in (home / "work").absolute().iterdir():
            if folder not in kept:
                remove(folder)


def _prepare_folder(folder: Path, job: Job) -> None:
    if trained_in(folder, job) is None:
        remove(folder)
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        (folder / _OUT).mkdir(mode=0o700)
    forget_stack(folder)


def remove(folder: Path) -> None:
    """Removes what can be removed of a folder."""
    shutil.rmtree(folder, ignore_errors=True)


async def discard_parts(job: Job, algorithm: Algorithm | None, settings: Settings) -> None:
    """Removes what a killed job may have stored of its model.

    A complete model stays. It is given up, with a warning, if the store is silent for 5 seconds. `algorithm` is None if
    the script does not have it any more.
    """
    if not job.attempt or (algorithm is not None and not stores_model(algorithm)):
        return

    def discard() -> None:
        try:
            with contextlib.closing(open_storage(settings_for(settings, job.extend))) as storage:
                discard_model(storage, destination(job, settings), was_killed=True)
        except (MlpkitError, OSError) as error:
            logger.warning("parts of the model of job [{}] may be left in the store: {}", job.model_id, error)

    with anyio.move_on_after(_DISCARD_SECONDS) as limit:
        await anyio.to_thread.run_sync(discard, abandon_on_cancel=True)
    if limit.cancelled_caught:
        logger.warning("the store is silent: parts of the model of job [{}] may be left there", job.model_id)


class _Trained(msgspec.Struct, frozen=True):
    """What is in `trained.json`.

    `job_created` tells a job from an earlier one of the same id. `keep_checkpoint` is whether the checkpoint stays when
    the model is stored. `evaluations` counts the processes that have begun to evaluate the model; it is 0 if nothing is
    to be evaluated.
    """

    job_created: float
    manifest: Manifest
    keep_checkpoint: bool = True
    evaluations: int = 0


def trained_in(folder: Path, job: Job) -> _Trained | None:
    """What is known of a model that is trained and not stored."""
    try:
        found = decode_json((folder / _TRAINED).read_bytes(), _Trained)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.job_created == job.created else None


class ProcessPlace:
    """Runs one job in a process, which sees these GPUs."""

    def __init__(self, script: Script, settings: Settings, devices: tuple[str, ...]) -> None:
        self._script = script
        self._settings = settings
        self._devices = devices
        self._started = anyio.Event()
        self._trained = anyio.Event()
        self._closed = anyio.Event()
        self._done = anyio.Event()
        self._ended: Ended | None = None
        self._child: Child | None = None

    async def usage(self) -> ProcessUsage | None:
        child = self._child
        if child is None or not child.running:
            return None
        return ProcessUsage(child.pid, await anyio.to_thread.run_sync(child.memory))

    async def stack(self) -> str:
        if self._child is None or not self._child.running:
            raise JobConflict("the job has no process now: try again in a moment")
        return await stack_of(self._child.pid, self._run.folder)

    async def run(self, run: JobRun) -> JobOutcome:
        self._run = run
        self._options = run.options
        self._log = run.log
        await anyio.to_thread.run_sync(_prepare_folder, run.folder, run.job)
        with anyio.CancelScope(shield=True):
            self._child = child = await start_child(
                _MODULE,
                on_lines=self._log.write_output,
                process="train",
                environment=self._environment(),
                drop=self._log.drop_output,
                folder=self._script.folder,
            )
            channel = await AsyncChannel.connect(child.channel, self._on_messages, self._closed.set)
        try:
            channel.send(msgspec.msgpack.encode(self._start_message()))
            exit = await self._wait(child, channel)
        finally:
            with anyio.CancelScope(shield=True):
                if child.running:
                    child.kill("was cancelled", drain=_DRAIN_OF_CANCELLED)
                    await child.wait()
            channel.close()
        outcome = self._outcome(exit)
        if outcome.trace:
            self._log.say(f"train failed: {outcome.message}", "ERROR", outcome.trace)
        return outcome

    async def _wait(self, child: Child, channel: AsyncChannel) -> Exit:
        async with anyio.create_task_group() as limits:
            for limit in (self._limit_time, self._limit_memory, self._limit_exit):
                limits.start_soon(limit, child)
            limits.start_soon(self._pass_on_stop, channel)
            exit = await child.wait()
            limits.cancel_scope.cancel()
        # What the process sent just before its end may still be in the socket.
        with anyio.move_on_after(_LAST_WORDS):
            await self._closed.wait()
        return exit

    def _outcome(self, exit: Exit) -> JobOutcome:
        if self._ended is not None:
            ended = self._ended
            return JobOutcome(ended.state, ended.message, ended.trace, stopped=ended.stopped, told=True)
        note = trained_in(self._run.folder, self._run.job)
        # The model is trained: another process evaluates it, or only stores it.
        was_evaluating = note is not None and note.evaluations > 0
        lost = exit.lost or was_evaluating
        if exit.asked:
            return JobOutcome("error", f"the training process {exit.asked}" if exit.lost else exit.asked, lost=lost)
        was_killed = exit.code < 0
        when = "while it evaluated the model" if was_evaluating else "before train returned"
        return JobOutcome(
            "error",
            f"the training process {exit.words} {when}",
            lost=lost or (was_killed and self._run.can_continue),
        )

    async def _pass_on_stop(self, channel: AsyncChannel) -> None:
        await self._run.stop.made.wait()
        if self._run.stop.reason is not None:
            channel.send(msgspec.msgpack.encode(StopTraining(self._run.stop.reason)))

    async def _limit_time(self, child: Child) -> None:
        limit = self._settings.start_timeout
        with anyio.move_on_after(limit):
            await self._started.wait()
        if not self._started.is_set():
            child.kill(f"the script was not imported within {limit:g} s (MLPKIT_START_TIMEOUT): the process was killed")
        elif self._options.timeout is not None:
            limit = self._options.timeout
            # The limit is for `train`: what is trained may be stored later, when the store can be used again.
            with anyio.move_on_after(limit):
                await self._trained.wait()
            if self._ended is None and not self._trained.is_set():
                child.kill(f"train took longer than its time limit of {limit:g} s (timeout=): the process was killed")

    async def _limit_memory(self, child: Child) -> None:
        allowed = self._options.memory
        threads = anyio.CapacityLimiter(1)
        while allowed is not None:
            used = await anyio.to_thread.run_sync(child.memory, limiter=threads)
            if used > allowed and self._ended is None:
                child.kill(
                    f"train used {used / 2**20:,.0f} MiB of memory, its limit is {allowed / 2**20:,.0f} MiB (memory=): "
                    "the process was killed"
                )
            await anyio.sleep(_MEMORY_INTERVAL)

    async def _limit_exit(self, child: Child) -> None:
        await self._done.wait()
        await anyio.sleep(_EXIT_GRACE)
        self._log.say(
            f"the process did not exit within {_EXIT_GRACE:g} s after train had ended: it was killed", "WARNING"
        )
        child.kill()

    def _on_messages(self, messages: list[Message]) -> None:
        for message in messages:
            match _decoder.decode(message):
                case Line(record):
                    self._log.write(record)
                case Moved(progress):
                    self._run.on_progress(progress)
                case Dropped(lines, size):
                    self._log.count_dropped(lines, size)
                case Started():
                    self._started.set()
                case Trained():
                    self._trained.set()
                    self._run.on_storing()
                case Ended() as ended:
                    self._ended = ended
                    self._done.set()
        self._log.flush()

    def _start_message(self) -> StartTraining:
        return StartTraining(
            target=self._script.target,
            sys_path=list(self._script.sys_path),
            settings=encode_settings(self._settings),
            job=self._run.job,
            folder=str(self._run.folder),
            lock=str(self._log.path.absolute()),
            log_room=self._log.room,
        )

    def _environment(self) -> dict[str, str]:
        environment = thread_settings(self._settings.workers + self._settings.train_task_num)
        if self._options.cpus is not None:
            environment.update(dict.fromkeys(THREAD_SETTINGS, str(self._options.cpus)))
        return environment | device_settings(self._devices) | metrics_environment(self._settings.home)


class Reporter:
    """The child's end of the channel.

    Lines past `room` bytes are only counted: they cost the server nothing.
    """

    def __init__(self, channel: BlockingChannel, uuid: str, room: int) -> None:
        self._channel = channel
        self._uuid = uuid
        self._room = room
        self._lock = threading.Lock()
        self._dropped_lines = 0
        self._dropped_bytes = 0
        self._told = 0.0
        self._process = os.getpid()
        self._bars = BarLines(self._bar_line, room // BARS_SHARE)
        self.progress = Progress(lambda snapshot: self._send(Moved(snapshot)), self._asked_to_stop)

    def _asked_to_stop(self) -> StopReason | None:
        message = self._channel.receive_now()
        return _stop_decoder.decode(message).reason if message is not None else None

    def line(self, record: LogLine) -> None:
        """Sends a line of the log."""
        if record.source not in _STREAMS or not self.redrawn(record.message):
            self._send_line(record)

    def redrawn(self, text: str) -> bool:
        """Takes what may be a progress bar; whether it is one."""
        self.progress.redrawn(text)
        return self._bars.take(text)

    def _bar_line(self, text: str) -> None:
        fields = context_fields()
        self._send_line(LogLine(time.time(), "INFO", printable(text), process="train", source="bar", fields=fields))

    def _send_line(self, record: LogLine) -> None:
        size = len(record.message) + len(record.trace) + 1
        if size <= self._room:
            self._room -= size
            self._send(Line(record if record.uuid != "-" else msgspec.structs.replace(record, uuid=self._uuid)))
        else:
            self._drop(size)

    def started(self) -> None:
        """Says that the script is imported."""
        self._send(Started())

    def trained(self) -> None:
        """Says that the model is trained, and will be stored now."""
        self._send(Trained())

    def ended(self, outcome: JobOutcome) -> None:
        """Sends the outcome, after what is left of the log."""
        self._bars.flush()
        self._send(Dropped(self._dropped_lines, self._dropped_bytes))
        self._send(Ended(outcome.state, outcome.message, printable(outcome.trace), outcome.stopped))

    def _drop(self, size: int) -> None:
        with self._lock:
            self._room = 0
            self._dropped_lines += 1
            self._dropped_bytes += size
            now = time.monotonic()
            is_due = now - self._told > 1
            if is_due:
                self._told = now
        if is_due:
            self._send(Dropped(self._dropped_lines, self._dropped_bytes))

    def _send(self, message: Any) -> None:
        # A process that the author's code has forked does not speak for the job.
        if os.getpid() == self._process:
            self._channel.send(msgspec.msgpack.encode(message))


def main() -> None:
    """Runs the one job that the start message brings, and ends."""
    leave_signals_to_the_server()
    channel = BlockingChannel(channel_of_child())
    message = channel.receive()
    if message is None:
        return
    start = _start_decoder.decode(message)
    settings = decode_settings(start.settings)
    report = Reporter(channel, start.job.log_uuid, start.log_room)
    capture_output(report.line, process="train", level=settings.log_level, on_redrawn=report.redrawn)
    sys.argv = [start.target]
    sys.path[:] = start.sys_path
    with in_log_of(start.job), span("train", model_id=start.job.model_id, attempt=start.job.attempt):
        outcome = _run(start, settings, report)
        if outcome.state == "error":
            note_failure(MlpkitError(outcome.message))
    flush_streams()
    report.progress.close()
    report.ended(outcome)


def _run(start: StartTraining, settings: Settings, report: Reporter) -> JobOutcome:
    def on_trained(manifest: Manifest, is_to_evaluate: bool) -> None:
        evaluations = 1 + (note.evaluations if note is not None else 0) if is_to_evaluate else 0
        note_of_model = _Trained(start.job.created, manifest, keep_checkpoint, evaluations)
        # After a crash of the machine, the note must not be there without the files of the model.
        write_through(folder / _OUT)
        replace_file(folder / _TRAINED, msgspec.json.encode(note_of_model))
        report.trained()

    folder = Path(start.folder)
    progress = report.progress
    try:
        with _hold(Path(start.lock)):
            answer_stack_signal(folder)
            note = trained_in(folder, start.job)
            if note is not None and not note.evaluations:
                # An earlier run has trained the model: only storing is left, and the script is not needed.
                report.started()
                report.trained()
                return store_trained(
                    start.job,
                    settings,
                    folder / _OUT,
                    note.manifest,
                    progress,
                    keep_checkpoint=note.keep_checkpoint,
                )
            listen_for_debugger(settings.debugpy)
            with ending_forked_copies():
                app = import_app(start.target)
            report.started()
            algorithm = algorithm_of(app, start.job)
            keep_checkpoint = algorithm.train_options.keep_checkpoint or not takes_checkpoint(algorithm)
            problem = ""
            if note is not None and note.evaluations >= _MOST_EVALUATIONS:
                problem = "the process ended each time while it evaluated the model"
            return run_train(
                app,
                start.job,
                settings,
                folder / _OUT,
                progress,
                on_trained=on_trained,
                trained=note.manifest if note is not None else None,
                evaluation_problem=problem,
            )
    except MlpkitError as error:
        return JobOutcome("error", str(error))


def _hold(path: Path) -> IO[bytes]:
    """Locks the job for the life of this process.

    So no second process runs it meanwhile, also if the server is killed.
    """
    file = path.open("rb")
    deadline = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise MlpkitError("another process still runs this job, so it was not run again") from None
            time.sleep(0.05)
        else:
            return file
