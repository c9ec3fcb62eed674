"""Both ends of a job's process: `Trainer` starts it and sees to its end, `main` is what runs in it.

What: a process that imports the script by its import string, runs one job, and ends.
How: one start message down, then messages up (lines of the log, snapshots of the progress, the outcome); msgpack.
Who ends it: it ends by itself; `Trainer` kills it at a limit and when it is cancelled, the guard when the server dies.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, Literal

import anyio
import anyio.to_thread
import msgspec

from mlpkit.algorithm import TrainOptions
from mlpkit.errors import MlpkitError
from mlpkit.log import LogLine, capture_streams, configure_child, printable, with_request_id
from mlpkit.processes import AsyncChannel, BlockingChannel, Child, Exit, Message, channel_of_child, start_child
from mlpkit.script import absolute_search_path, import_app
from mlpkit.settings import Settings, decode_settings, encode_settings
from mlpkit.training.job import Job
from mlpkit.training.joblog import JobLog
from mlpkit.training.progress import Progress, Snapshot
from mlpkit.training.run import JobOutcome, run_train

_MODULE = "mlpkit.training"
_MEMORY_INTERVAL = 0.5
_EXIT_GRACE = 10.0
_LOCK_WAIT = 3.0
_LAST_WORDS = 5.0
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class StartTraining(msgspec.Struct, frozen=True, array_like=True):
    """What a child gets: all that it needs, and nothing more ever."""

    target: str
    sys_path: list[str]
    settings: bytes
    job: Job
    folder: str
    lock: str
    log_room: int


class Started(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The script is imported; the time limit begins."""


class Line(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A line of the log."""

    record: LogLine


class Dropped(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """How much log the child has kept to itself so far, because the log is full."""

    lines: int
    size: int


class Moved(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """How far the job is."""

    progress: Snapshot


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """How the job ended; nothing but lines comes after it."""

    state: Literal["completed", "error"]
    message: str
    trace: str


_start_decoder = msgspec.msgpack.Decoder(StartTraining)
_decoder = msgspec.msgpack.Decoder(Started | Line | Dropped | Moved | Ended)


class Trainer:
    """The server's end of one job's process. Make one for every run.

    Args:
        on_progress: gets every snapshot that arrives.
        devices: the GPUs that the process may see; none leaves its environment as it is.
    """

    def __init__(
        self,
        job: Job,
        options: TrainOptions,
        target: str,
        settings: Settings,
        *,
        log: JobLog,
        log_path: Path,
        on_progress: Callable[[Snapshot], None],
        devices: tuple[str, ...] = (),
    ) -> None:
        self._job, self._options, self._settings, self._log = job, options, settings, log
        self._target, self._log_path, self._on_progress = target, log_path, on_progress
        self._devices = devices
        self._started, self._closed, self._done = anyio.Event(), anyio.Event(), anyio.Event()
        self._ended: Ended | None = None

    async def run(self) -> JobOutcome:
        """Runs the job in a process of its own, and says how it ended. A cancellation kills the process.

        Raises:
            OSError: no process could be started.
        """
        async with _temporary_folder(self._settings.home / "work") as folder:
            with anyio.CancelScope(shield=True):
                child = await start_child(_MODULE, on_line=self._log.write_raw, environment=self._environment())
                channel = await AsyncChannel.connect(child.channel, self._on_messages, self._closed.set)
            try:
                channel.send(msgspec.msgpack.encode(self._start_message(folder)))
                exit = await self._wait(child)
            finally:
                with anyio.CancelScope(shield=True):
                    if child.running:
                        child.kill("was cancelled")
                        await child.wait()
                channel.close()
            outcome = self._outcome(exit)
            if outcome.trace:
                self._log.say(f"train failed: {outcome.message}", "ERROR", outcome.trace)
            return outcome

    async def _wait(self, child: Child) -> Exit:
        async with anyio.create_task_group() as limits:
            for limit in (self._limit_time, self._limit_memory, self._limit_exit):
                limits.start_soon(limit, child)
            exit = await child.wait()
            limits.cancel_scope.cancel()
        # What the process sent just before its end may still be in the socket.
        with anyio.move_on_after(_LAST_WORDS):
            await self._closed.wait()
        return exit

    def _outcome(self, exit: Exit) -> JobOutcome:
        if self._ended is not None:
            return JobOutcome(self._ended.state, self._ended.message, self._ended.trace)
        if exit.asked:
            return JobOutcome(
                "error", f"the training process {exit.asked}" if exit.lost else exit.asked, lost=exit.lost
            )
        return JobOutcome("error", f"the training process {exit.words} before train returned")

    async def _limit_time(self, child: Child) -> None:
        limit = self._settings.start_timeout
        with anyio.move_on_after(limit):
            await self._started.wait()
        if not self._started.is_set():
            child.kill(f"the script was not imported within {limit:g} s (MLPKIT_START_TIMEOUT): the process was killed")
        elif self._options.timeout is not None:
            await anyio.sleep(self._options.timeout)
            if self._ended is None:
                limit = self._options.timeout
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
        for each in messages:
            match _decoder.decode(each):
                case Line(record):
                    self._log.write(record)
                case Moved(progress):
                    self._on_progress(progress)
                case Dropped(lines, size):
                    self._log.count_dropped(lines, size)
                case Started():
                    self._started.set()
                case Ended() as ended:
                    self._ended = ended
                    self._done.set()
        self._log.flush()

    def _start_message(self, folder: str) -> StartTraining:
        return StartTraining(
            target=self._target,
            sys_path=absolute_search_path(),
            settings=encode_settings(self._settings),
            job=self._job,
            folder=folder,
            lock=str(self._log_path.resolve()),
            log_room=self._log.room,
        )

    def _environment(self) -> dict[str, str]:
        environment = {}
        if self._options.cpus is not None:
            environment.update(dict.fromkeys(_THREADS, str(self._options.cpus)))
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices)
        return environment


@asynccontextmanager
async def _temporary_folder(parent: Path) -> AsyncIterator[str]:
    folder = await anyio.to_thread.run_sync(_make_folder, parent)
    try:
        yield folder
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


def _make_folder(parent: Path) -> str:
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return tempfile.mkdtemp(dir=parent.resolve(), prefix="train-")


class Reporter:
    """The child's end of the channel. Lines past `room` bytes are only counted: they cost the server nothing."""

    def __init__(self, channel: BlockingChannel, uuid: str, room: int) -> None:
        self._channel, self._uuid, self._room = channel, uuid, room
        self._lock = threading.Lock()
        self._lines, self._bytes, self._told = 0, 0, 0.0
        self._pid = os.getpid()
        self.progress: Progress | None = None

    def line(self, record: LogLine) -> None:
        """Sends a line of the log; in a forked process, which must not use the socket, it goes to the pipe."""
        if self.progress is not None and record.source == "stderr:0":
            self.progress.redrawn(record.message)
        size = len(record.message) + len(record.trace) + 1
        if os.getpid() != self._pid:
            os.write(1, (record.message + record.trace + "\n").encode())
        elif size <= self._room:
            self._room -= size
            self._send(Line(record if record.uuid != "-" else msgspec.structs.replace(record, uuid=self._uuid)))
        else:
            self._drop(size)

    def moved(self, progress: Snapshot) -> None:
        """Sends how far the job is."""
        self._send(Moved(progress))

    def started(self) -> None:
        """Says that the script is imported."""
        self._send(Started())

    def ended(self, outcome: JobOutcome) -> None:
        """Sends the outcome, and how much log was dropped."""
        self._send(Dropped(self._lines, self._bytes))
        self._send(Ended(outcome.state, outcome.message, printable(outcome.trace)))

    def _drop(self, size: int) -> None:
        with self._lock:
            self._room = 0
            self._lines += 1
            self._bytes += size
            now = time.monotonic()
            tell, self._told = now - self._told > 1, now if now - self._told > 1 else self._told
        if tell:
            self._send(Dropped(self._lines, self._bytes))

    def _send(self, message: Any) -> None:
        self._channel.send(msgspec.msgpack.encode(message))


def main() -> None:
    """Runs the one job that the start message brings, and ends."""
    channel = BlockingChannel(channel_of_child())
    message = channel.receive()
    if message is None:
        return
    start = _start_decoder.decode(message)
    settings = decode_settings(start.settings)
    report = Reporter(channel, start.job.log_uuid, start.log_room)
    progress = report.progress = Progress(report.moved)
    configure_child(report.line, process="train", level=settings.log_level)
    capture_streams(on_redrawn=progress.redrawn)
    # The handler may put others in their place, which need not even have a `close`.
    ours = (sys.stdout, sys.stderr, progress)
    os.register_at_fork(after_in_child=_use_pipe)
    sys.argv = [start.target]
    sys.path[:] = start.sys_path
    with with_request_id(start.job.log_uuid):
        outcome = _run(start, settings, report, progress)
    for each in ours:
        each.close()
    report.ended(outcome)


def _run(start: StartTraining, settings: Settings, report: Reporter, progress: Progress) -> JobOutcome:
    try:
        lock = _hold(Path(start.lock))
        app = import_app(start.target)
        report.started()
        with lock:
            return run_train(app, start.job, settings, Path(start.folder), progress)
    except MlpkitError as error:
        return JobOutcome("error", str(error))


def _hold(path: Path) -> IO[bytes]:
    """Locks the job for the life of this process: no second one runs it meanwhile, whatever becomes of the server."""
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


def _use_pipe() -> None:
    # A forked process must not write into its parent's socket, and the locks of the streams may be held for ever there.
    sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115
