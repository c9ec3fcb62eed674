"""A job on another machine.

What travels is a `JobOrder`: the job, the settings with their secrets, and the folder of the script as an archive.
There, a `RemoteRun` runs it in a process as the service would (`process.py`), and keeps what happens as numbered events
until the service has taken them. The service applies each event to its own `JobRun` (`apply_event`).
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import site
import stat
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import anyio
import anyio.to_thread
import msgspec

from mlpkit.algorithm import TrainOptions
from mlpkit.errors import JobConflict, MlpkitError, SettingsError
from mlpkit.log import LogLine
from mlpkit.settings import Settings, decode_settings, encode_settings
from mlpkit.training.engine import JobRun, ProcessUsage
from mlpkit.training.job import Job, JobOutcome, in_log_of
from mlpkit.training.joblog import JobLog, file_name
from mlpkit.training.process import Line, Moved, ProcessPlace, Script, Trained, remove
from mlpkit.training.progress import Snapshot, StopReason

_LARGEST_FOLDER = 64 << 20
_MOST_FILES = 5000
_LEFT_OUT = ("__pycache__", "node_modules", "site-packages")
_MOST_EVENTS_BYTES = 1 << 20
"""Bytes of events that are taken together."""
_ABANDONED = 3600.0
"""Seconds after which a job's folder that nobody uses is removed from a node."""


class JobOrder(msgspec.Struct, frozen=True, array_like=True):
    """All that another machine needs to run a job.

    `service` tells jobs of several services apart. `archive` is the folder of the script, or empty if the script is
    installed there. `log_used` is how many bytes the job's log has already.
    """

    service: str
    job: Job
    options: TrainOptions
    settings: bytes
    target: str
    archive: bytes
    log_used: int
    can_continue: bool

    @classmethod
    def of(cls, service: str, run: JobRun, settings: Settings, code: Code) -> JobOrder:
        """The order for this run."""
        used = settings.job_log_size - run.log.room
        return cls(
            service,
            run.job,
            run.options,
            encode_settings(settings),
            code.target,
            code.archive,
            used,
            run.can_continue,
        )


class Finished(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The last event: how the run ended."""

    outcome: JobOutcome


class RunEvents(msgspec.Struct, frozen=True, array_like=True):
    """Some events of a run; `last` is the last one's number."""

    last: int
    events: list[bytes]


_event_decoder = msgspec.msgpack.Decoder(Line | Moved | Trained | Finished)
_events_decoder = msgspec.msgpack.Decoder(RunEvents)
_order_decoder = msgspec.msgpack.Decoder(JobOrder)


# --- What travels ----------------------------------------------------------------------------------------------------


def service_id(home: Path) -> str:
    """The id of the service in the home, made if needed."""
    file = home / "service"
    with contextlib.suppress(FileNotFoundError):
        return file.read_text().strip()
    made = uuid4().hex[:12]
    file.write_text(made)
    return made


class Code(msgspec.Struct, frozen=True):
    """The script as it travels: its target there, and an archive."""

    target: str
    archive: bytes


def pack_code(target: str, settings: Settings) -> Code:
    """The folder of the script, as a zip archive.

    The folder is the one from which Python imports the script. Hidden files and folders, `*.env`, virtual environments
    and the home of the service stay here. Of an installed script nothing travels.

    Raises:
        SettingsError: the folder is too large, or a file cannot be read.
    """
    script, _, name = target.rpartition(":")
    folder, inside = _folder_of_script(script)
    if folder is None:
        return Code(target, b"")
    packed = io.BytesIO()
    total = 0
    files = 0
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in _files(folder, (settings.home, settings.cache_path)):
            try:
                total += file.stat().st_size
                files += 1
                if total > _LARGEST_FOLDER or files > _MOST_FILES:
                    raise SettingsError(
                        f"the folder of the script, {folder}, travels to the machine that runs a job, and may have at "
                        f"most {_LARGEST_FOLDER >> 20} MiB and {_MOST_FILES:,} files: keep data in the store, or "
                        "install the script on the nodes"
                    )
                archive.write(file, file.relative_to(folder))
            except (OSError, ValueError) as error:
                raise SettingsError(f"{file} cannot be packed for the machine that runs a job: {error}") from error
    return Code(f"{inside}:{name}", packed.getvalue())


def _folder_of_script(script: str) -> tuple[Path | None, str]:
    """The folder to import from, and the script's name in it.

    The folder is None if the script is installed.
    """
    module = sys.modules.get(script)
    if script.endswith(".py") or "/" in script:
        file = Path(script).resolve()
        folder = file.parent
        while (folder / "__init__.py").is_file():
            folder = folder.parent
        return folder, str(file.relative_to(folder))
    if module is None or not module.__file__:
        return None, script
    file = Path(module.__file__).resolve()
    depth = script.count(".") + (file.name == "__init__.py")
    folder = file.parents[depth]
    installed = [Path(packages).resolve() for packages in (*site.getsitepackages(), site.getusersitepackages())]
    return (None if folder in installed else folder), script


def _files(folder: Path, left_out: tuple[Path, ...]) -> Iterator[Path]:
    """The files that travel, in a fixed order."""
    for base, names, files in os.walk(folder):
        kept = []
        for name in sorted(names):
            inner = Path(base, name)
            is_environment = (inner / "pyvenv.cfg").exists()
            if not (name.startswith(".") or name in _LEFT_OUT or inner in left_out or is_environment):
                kept.append(name)
        names[:] = kept
        for name in sorted(files):
            file = Path(base, name)
            if not name.startswith(".") and not name.endswith((".env", ".pyc")) and file.is_file():
                yield file


# --- On the other machine --------------------------------------------------------------------------------------------


class RemoteRun:
    """One run of a job on this machine, for a service elsewhere.

    All methods belong to one event loop.
    """

    def __init__(self, order: bytes) -> None:
        self._order = _order_decoder.decode(order)
        self._settings = decode_settings(self._order.settings)
        self._place: ProcessPlace | None = None
        self._run: JobRun | None = None
        self._stop_reason: StopReason | None = None
        self._events: list[bytes] = []
        self._taken = 0
        """How many events the service has taken for good: they are not kept."""
        self._shown = 0
        """The number of the last event that was given out, perhaps in vain."""
        self._last_moved = 0
        self._added = anyio.Event()
        self.finished = False

    async def run(self) -> None:
        """Runs the job; the last event says how it ended.

        A cancellation ends its process first, and then there is no last event.
        """
        try:
            with in_log_of(self._order.job):
                outcome = await self._run_in_folder()
        except MlpkitError as error:
            outcome = JobOutcome("error", str(error))
        except (OSError, zipfile.BadZipFile) as error:
            outcome = JobOutcome("error", f"the job could not be started on {os.uname().nodename}: {error}")
        self.finished = True
        self._add(msgspec.msgpack.encode(Finished(outcome)))

    async def take(self, after: int, wait: float) -> RunEvents:
        """The events after a number, at most 1 MiB of them.

        It waits `wait` seconds for the first. Those up to the number are forgotten, because the service has them.
        """
        if after > self._taken:
            del self._events[: after - self._taken]
            self._taken = after
        if not self._events:
            self._added = anyio.Event()
            with anyio.move_on_after(wait):
                await self._added.wait()
        count = 0
        size = 0
        for event in self._events:
            size += len(event)
            if count and size > _MOST_EVENTS_BYTES:
                break
            count += 1
        self._shown = max(self._shown, self._taken + count)
        return RunEvents(self._taken + count, self._events[:count])

    def has_more(self, after: int) -> bool:
        """Whether there are events after this number."""
        return self._taken + len(self._events) > after

    def stop(self, reason: StopReason) -> None:
        """Asks the job to save a checkpoint and end."""
        self._stop_reason = reason
        if self._run is not None:
            self._run.stop.make(reason)

    async def usage(self) -> ProcessUsage | None:
        """As `Place.usage`."""
        return None if self._place is None else await self._place.usage()

    async def stack(self) -> str:
        """As `Place.stack`."""
        if self._place is None:
            raise JobConflict("the job is starting: try again in a moment")
        return await self._place.stack()

    async def _run_in_folder(self) -> JobOutcome:
        order = self._order
        home = await anyio.to_thread.run_sync(node_home)
        folder = home / f"job-{order.service}-{file_name(order.job.model_id)}"
        script = await anyio.to_thread.run_sync(unpack, Code(order.target, order.archive), folder)
        settings = self._settings.with_options(home=home)
        try:
            with JobLog(folder / "log", settings.job_log_size, self, order.job.log_uuid, used=order.log_used) as log:
                self._run = JobRun(
                    order.job,
                    order.options,
                    folder / "job",
                    log,
                    self._on_progress,
                    lambda: self._add(msgspec.msgpack.encode(Trained())),
                    can_continue=order.can_continue,
                )
                if self._stop_reason is not None:
                    self._run.stop.make(self._stop_reason)
                self._place = ProcessPlace(script, settings, ())
                return await self._place.run(self._run)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(remove, folder)

    def write_soon(self, record: LogLine) -> None:
        """Takes a line of the job's log."""
        self._add(msgspec.msgpack.encode(Line(record)))

    write = write_soon

    def flush(self) -> None:
        """Does nothing: the service takes lines when it wants."""

    def _on_progress(self, progress: Snapshot) -> None:
        event = msgspec.msgpack.encode(Moved(progress))
        number = self._taken + len(self._events)
        # Nobody has seen the snapshot before it: only the newest counts.
        if self._last_moved == number > self._shown:
            self._events[-1] = event
        else:
            self._add(event)
            self._last_moved = number + 1

    def _add(self, event: bytes) -> None:
        self._events.append(event)
        self._added.set()


def node_home() -> Path:
    """The folder of mlpkit on this node, for this user only.

    Folders that jobs and workers have left there are removed if nobody holds the lock of their `log`.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    home = Path(tempfile.gettempdir(), f"mlpkit-{os.getuid()}")
    home.mkdir(mode=0o700, exist_ok=True)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{home} belongs to somebody else")
    for folder in (*home.glob("job-*"), *home.glob("worker-*")):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED and _is_free(folder / "log"):
                remove(folder)
    return home


def _is_free(log: Path) -> bool:
    """Whether no process of a job or worker holds this log."""
    try:
        with log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def unpack(code: Code, folder: Path) -> Script:
    """Makes a folder on this node, with the script in it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    inner = folder / "code"
    shutil.rmtree(inner, ignore_errors=True)
    inner.mkdir()
    if code.archive:
        with zipfile.ZipFile(io.BytesIO(code.archive)) as archive:
            archive.extractall(inner)
    return Script(code.target, str(inner), (str(inner), *sys.path))


# --- Back at the service ---------------------------------------------------------------------------------------------


def decode_events(data: bytes) -> RunEvents:
    """The events that `RemoteRun.take` gave."""
    return _events_decoder.decode(data)


def apply_event(event: bytes, run: JobRun) -> JobOutcome | None:
    """Does with the event what a process here would have done.

    It gives the outcome, if that was the last event.
    """
    match _event_decoder.decode(event):
        case Line(record):
            # What is too much was dropped there.
            run.log.write(record, always=True)
        case Moved(progress):
            run.on_progress(progress)
        case Trained():
            run.on_storing()
        case Finished(outcome):
            return outcome
    return None
