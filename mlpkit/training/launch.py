"""The engine of any other scheduler: a command starts each job.

`LaunchEngine` runs the command of `MLPKIT_LAUNCH`, such as `sbatch --wrap {command}`. What that starts somewhere is
`python -m mlpkit.training --job s3://bucket/prefix` (`main`). The store carries what both ends say: they leave notes
below the prefix, and look for those of the other every second.

    lease    the service renews it; if it is old or gone, the job ends
    hello    the launched process is there
    order    the job, without secrets: the launched process has the store's keys in its own environment
    stop     why the job should save and end
    events   what has happened, in numbered pieces; the service removes them
    alive    the launched process renews it; if it is old, the job is lost
    ended    nothing of the job runs any more
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import anyio
import anyio.to_thread
import msgspec

from mlpkit.algorithm import TrainOptions
from mlpkit.errors import JobConflict, NoPlace, ObjectNotFound, SettingsError, StorageError
from mlpkit.log import logger
from mlpkit.settings import Settings, decode_settings, described, encode_settings, load_settings
from mlpkit.storage import ObjectStat, Storage, open_storage, temporary_file
from mlpkit.training.engine import JobRun, Place, ProcessUsage
from mlpkit.training.job import JobOutcome
from mlpkit.training.progress import StopReason
from mlpkit.training.remote import Code, JobOrder, RemoteRun, apply_event, decode_events, pack_code, service_id

_MODULE = "mlpkit.training"
_FOLDER = "mlpkit-launch"
_LOOK = 1.0
_RENEW = 15.0
_LEASE = 120.0
_COMMAND_SECONDS = 60.0
_LONGEST_OUTPUT = 500
_CANCEL_SECONDS = 15.0
_LARGEST_NOTE = 128 << 20
_STORE = ("MLPKIT_STORE", "MLPKIT_S3_REGION", "MINIO_HOST", "MINIO_SECURE")
"""Settings that the launched process takes from its own environment, with all secrets."""


class LaunchEngine:
    """Runs at most `MLP_TRAIN_TASK_NUM` jobs, each started by a command.

    Raises:
        SettingsError: there is no command, or the store is a folder.
    """

    def __init__(self, target: str, settings: Settings) -> None:
        if "{command}" not in settings.launch:
            raise SettingsError(
                "engine 'launch' needs MLPKIT_LAUNCH, with {command} in it, such as: sbatch --wrap {command}"
            )
        if settings.store.startswith("folder://"):
            raise SettingsError(
                "engine 'launch' needs a store that the machines of the jobs reach: set MINIO_HOST or MLPKIT_STORE"
            )
        self._target = target
        self._settings = settings
        self._launching = 0

    async def open(self) -> None:
        self._slots = anyio.CapacityLimiter(self._settings.train_task_num)
        self._service = await anyio.to_thread.run_sync(service_id, self._settings.home)
        self._code = await anyio.to_thread.run_sync(pack_code, self._target, self._settings)
        self._storage = open_storage(self._settings)
        self._root = f"{self._settings.model_bucket}/{_FOLDER}/{self._service}"
        self._earlier = asyncio.create_task(self._end_earlier())

    async def close(self) -> None:
        self._earlier.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._earlier
        await anyio.to_thread.run_sync(self._storage.close)

    def check(self, options: TrainOptions) -> None:
        """Refuses nothing: the scheduler knows what there is."""

    @asynccontextmanager
    async def place(self, options: TrainOptions) -> AsyncIterator[Place]:
        async with self._slots:
            # What an earlier run of this service has launched must have ended.
            await asyncio.shield(self._earlier)
            place = self._place(uuid4().hex[:8])
            try:
                self._launching += 1
                try:
                    await place.launch(options)
                finally:
                    self._launching -= 1
                yield place
            finally:
                with anyio.CancelScope(shield=True):
                    await place.close(_CANCEL_SECONDS)

    def fits(self, asked: TrainOptions, wanted: TrainOptions) -> bool:
        return (asked.cpus, asked.gpus, asked.memory) == (wanted.cpus, wanted.gpus, wanted.memory)

    def why_waiting(self, options: TrainOptions) -> str:
        if not self._earlier.done():
            return "waiting for the end of what an earlier run of this service has launched"
        return "waiting for the scheduler to start it" if self._launching else ""

    def _place(self, name: str) -> _LaunchedPlace:
        notes = _Notes(self._storage, f"{self._root}/{name}")
        return _LaunchedPlace(self._settings, self._service, self._code, notes)

    async def _end_earlier(self) -> None:
        while True:
            try:
                for name in sorted({name.partition("/")[0] for name in await _Notes(self._storage, self._root).all()}):
                    logger.info("ending what an earlier run of this service has launched: {}", name)
                    await self._place(name).close(_LEASE)
                return
            except StorageError as error:
                logger.warning("what an earlier run of this service has launched cannot be seen: {}", error)
            await anyio.sleep(_RENEW)


class _LaunchedPlace:
    """What one command has launched, for one job."""

    def __init__(self, settings: Settings, service: str, code: Code, notes: _Notes) -> None:
        self._settings = settings
        self._service = service
        self._code = code
        self._notes = notes
        self._renewing: asyncio.Task[None] | None = None
        self._closed = False

    async def launch(self, options: TrainOptions) -> None:
        """Runs the command, and waits until what it has launched says hello.

        Raises:
            NoPlace: the command failed, or nothing says hello in time.
        """
        values = {
            "command": shlex.join([sys.executable, "-m", _MODULE, "--job", self._notes.url]),
            "job": f"mlpkit-{self._notes.url.rpartition('/')[2]}",
            "cpus": str(options.cpus or 1),
            "gpus": str(options.gpus),
            "memory": str((options.memory or 0) >> 20),
        }
        try:
            await self._notes.write("lease")
            self._renewing = asyncio.create_task(self._renew())
            launched = await _run(self._settings.launch, values)
            await self._notes.write("launched", msgspec.json.encode({**values, "id": launched}))
        except (OSError, StorageError) as error:
            raise NoPlace(f"the job could not be launched (MLPKIT_LAUNCH): {error}") from error
        limit = self._settings.place_timeout
        with anyio.move_on_after(limit):
            while "hello" not in await self._notes.all_if_possible():  # noqa: ASYNC110 - a store has no events
                await anyio.sleep(_LOOK)
            return
        raise NoPlace(f"what MLPKIT_LAUNCH has launched did not start within {limit:g} s (MLPKIT_PLACE_TIMEOUT)")

    async def run(self, run: JobRun) -> JobOutcome:
        try:
            return await self._follow(run)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.close(_CANCEL_SECONDS)
            raise

    async def usage(self) -> ProcessUsage | None:
        return None

    async def stack(self) -> str:
        raise JobConflict("a job that a command has launched cannot be asked for its stack")

    async def _follow(self, run: JobRun) -> JobOutcome:
        order = JobOrder.of(self._service, run, _without_secrets(self._settings), self._code)
        await self._notes.write("order", msgspec.msgpack.encode(order))
        seen = time.monotonic()
        alive = ""
        applied = ""
        told_to_stop = False
        while True:
            try:
                found = await self._notes.all()
                for name in sorted(name for name in found if name.startswith("events-")):
                    # One that could not be removed is still there.
                    if name > applied:
                        for event in decode_events(await self._notes.read(found[name])).events:
                            outcome = apply_event(event, run)
                            if outcome is not None:
                                return outcome
                        applied = name
                        seen = time.monotonic()
                    await self._notes.remove(name)
                run.log.flush()
                if "alive" in found and found["alive"].etag != alive:
                    alive = found["alive"].etag
                    seen = time.monotonic()
                if "ended" in found:
                    return JobOutcome("error", "the scheduler has ended the launched job", lost=True)
                if run.stop.reason is not None and not told_to_stop:
                    await self._notes.write("stop", run.stop.reason.encode())
                    told_to_stop = True
            except StorageError as error:
                logger.debug("no news of job [{}]: {}", run.job.model_id, error)
            else:
                if time.monotonic() - seen > _LEASE:
                    return JobOutcome("error", f"the launched job gave no sign of life for {_LEASE:g} s", lost=True)
            await anyio.sleep(_LOOK)

    async def close(self, within: float) -> None:
        """Ends what was launched, waits for that, and removes the notes.

        A second call does nothing.
        """
        if self._closed:
            return
        self._closed = True
        if self._renewing is not None:
            self._renewing.cancel()
        found = await self._notes.all_if_possible()
        try:
            # The launched process sees that, and ends its job in order.
            await self._notes.remove("lease")
            with anyio.move_on_after(within):
                while "hello" in found and "ended" not in found:
                    await anyio.sleep(_LOOK)
                    found = await self._notes.all_if_possible()
            # Otherwise it has not started yet, or does not answer.
            if "launched" in found and "ended" not in found and self._settings.launch_cancel:
                values = msgspec.json.decode(await self._notes.read(found["launched"]), type=dict[str, str])
                await _run(self._settings.launch_cancel, values)
            await self._notes.remove_all()
        except (OSError, StorageError) as error:
            logger.warning("a launched job ends only when its lease has: {}", error)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW)
            with contextlib.suppress(StorageError):
                await self._notes.write("lease")


class _Notes:
    """Small objects below one prefix of the store, by their names."""

    def __init__(self, storage: Storage, root: str) -> None:
        self._storage = storage
        self._root = root
        self.url = f"s3://{root}"

    async def write(self, name: str, content: bytes = b"") -> None:
        """Writes a note; one without content has the time."""

        def save() -> None:
            with temporary_file(content or str(time.time()).encode()) as file:
                self._storage.save(file, f"{self._root}/{name}")

        await anyio.to_thread.run_sync(save)

    async def all(self) -> dict[str, ObjectStat]:
        """All notes.

        Raises:
            StorageError: the store cannot be asked.
        """
        try:
            found = await anyio.to_thread.run_sync(self._storage.list, self._root)
        except ObjectNotFound:
            # There is no bucket yet: the first note makes it.
            return {}
        return {stat.path.removeprefix(f"{self._root}/"): stat for stat in found}

    async def all_if_possible(self) -> dict[str, ObjectStat]:
        """All notes; none if the store cannot be asked."""
        try:
            return await self.all()
        except StorageError:
            return {}

    async def read(self, stat: ObjectStat) -> bytes:
        """The content of a note."""
        _, content = await anyio.to_thread.run_sync(self._storage.read, stat.path, _LARGEST_NOTE)
        return content

    async def remove(self, name: str) -> None:
        """Removes a note, if it is there."""
        await anyio.to_thread.run_sync(self._storage.delete, f"{self._root}/{name}")

    async def remove_all(self) -> None:
        """Removes all notes."""
        await anyio.to_thread.run_sync(lambda: self._storage.delete(self._root, recursive=True))


async def _run(template: str, values: dict[str, str]) -> str:
    """Runs a command of the settings; gives the last word it prints.

    Raises:
        OSError: it could not be run, failed, or took longer than a minute.
    """
    words = shlex.split(template)
    for name, value in values.items():
        words = [word.replace(f"{{{name}}}", value) for word in words]

    def run() -> str:
        try:
            done = subprocess.run(  # noqa: S603 - the operator's own command
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=True
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"{words[0]} took longer than {_COMMAND_SECONDS:g} s") from None
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout).strip()[-_LONGEST_OUTPUT:]
            raise OSError(f"{words[0]} ended with code {error.returncode}: {said}") from None
        return (done.stdout.split() or [""])[-1]

    return await anyio.to_thread.run_sync(run)


def _without_secrets(settings: Settings) -> Settings:
    """The settings as they may be in the store."""
    blank: dict[str, Any] = {field.name: field.default for field in described() if field.metadata["secret"]}
    return replace(settings, **blank)


# --- The launched process --------------------------------------------------------------------------------------------


def main(url: str) -> None:
    """Runs the job of these notes, and ends."""
    settings = load_settings()
    storage = open_storage(settings)
    try:
        asyncio.run(_serve(_Notes(storage, url.removeprefix("s3://")), settings))
    finally:
        storage.close()


async def _serve(notes: _Notes, settings: Settings) -> None:
    lease = _Lease(notes)
    await notes.write("hello", os.uname().nodename.encode())
    while "order" not in (found := await lease.look()):
        if not lease.holds:
            return
        await anyio.sleep(_LOOK)
    remote = RemoteRun(_with_secrets(await notes.read(found["order"]), settings))
    working = asyncio.create_task(remote.run())
    try:
        async with anyio.create_task_group() as tasks:
            # A scheduler that cancels or preempts a job sends this signal, and kills the job a little later.
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, tasks.cancel_scope.cancel)
            tasks.start_soon(_obey, notes, lease, remote, tasks.cancel_scope)
            await _report(notes, remote)
            tasks.cancel_scope.cancel()
    finally:
        working.cancel()
        with anyio.CancelScope(shield=True):
            with contextlib.suppress(asyncio.CancelledError):
                await working
            with contextlib.suppress(StorageError):
                await notes.write("ended")


class _Lease:
    """Whether the service still wants the job, as its notes say."""

    def __init__(self, notes: _Notes) -> None:
        self._notes = notes
        self._etag = ""
        self._renewed = time.monotonic()
        self._removed = False

    @property
    def holds(self) -> bool:
        """Whether the job may go on."""
        return not self._removed and time.monotonic() - self._renewed < _LEASE

    async def look(self) -> dict[str, ObjectStat]:
        """All notes of the service; none if the store cannot be asked."""
        try:
            found = await self._notes.all()
        except StorageError:
            return {}
        if "lease" not in found:
            self._removed = True
        elif found["lease"].etag != self._etag:
            self._etag = found["lease"].etag
            self._renewed = time.monotonic()
        return found


async def _obey(notes: _Notes, lease: _Lease, remote: RemoteRun, scope: anyio.CancelScope) -> None:
    """Stops the job if asked, and ends it with its lease."""
    while lease.holds:
        found = await lease.look()
        if "stop" in found:
            remote.stop(msgspec.convert((await notes.read(found["stop"])).decode(), StopReason))
        await anyio.sleep(_LOOK)
    scope.cancel()


async def _report(notes: _Notes, remote: RemoteRun) -> None:
    """Writes what happens, until the job has ended."""
    after = 0
    number = 0
    written = 0.0
    while True:
        taken = await remote.take(after, _LOOK)
        try:
            if taken.events:
                number += 1
                await notes.write(f"events-{number:08}", msgspec.msgpack.encode(taken))
                after = taken.last
                written = time.monotonic()
                if remote.finished and not remote.has_more(after):
                    return
            elif time.monotonic() - written > _RENEW:
                await notes.write("alive")
                written = time.monotonic()
        except StorageError as error:
            number -= 1 if taken.events else 0
            logger.warning("what the job says cannot be written: {}", error)
        await anyio.sleep(_LOOK)


def _with_secrets(order: bytes, own: Settings) -> bytes:
    """The order with the store and the secrets of this machine."""
    decoded = msgspec.msgpack.decode(order, type=JobOrder)
    ours = [field.name for field in described() if field.metadata["secret"] or field.metadata["env"] in _STORE]
    settings = replace(decode_settings(decoded.settings), **{name: getattr(own, name) for name in ours})
    return msgspec.msgpack.encode(msgspec.structs.replace(decoded, settings=encode_settings(settings)))
