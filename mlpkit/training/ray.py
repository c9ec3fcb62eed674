"""The engine of a Ray cluster.

Ray chooses the machine, and mlpkit runs the job there. `RayEngine` keeps a driver (`raydriver.py`), a process that
speaks to Ray. A place is an actor on a node that has the wanted resources. The job's process there is the same as on
one machine, and what it says comes back by a long poll, which survives interruptions (`remote.py`). The queue, its
order and its journal are the service's, as with any engine.

A job never runs twice at the same time: one service has the home, with an id in it that is the namespace of its actors;
a new driver first ends what is in that namespace; and an actor that nobody asks ends its job.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.to_thread
import msgspec

from mlpkit.algorithm import TrainOptions
from mlpkit.errors import JobConflict, NoPlace, SettingsError, TimeLimitExceeded
from mlpkit.log import LogLine, level_of_failure, logger
from mlpkit.processes import AsyncChannel, Child, Message, start_child
from mlpkit.settings import Settings
from mlpkit.training.engine import JobRun, Place, ProcessUsage
from mlpkit.training.job import JobOutcome
from mlpkit.training.raydriver import (
    LEASE_SECONDS,
    POLL_SECONDS,
    ActorNode,
    DriverAnswer,
    DriverCall,
    DriverError,
    Outlook,
    Resources,
    other_version,
    resources_in_words,
)
from mlpkit.training.remote import JobOrder, apply_event, decode_events, pack_code, service_id

_MODULE = "mlpkit.training.raydriver"
_CONNECT_SECONDS = 60.0
_START_SECONDS = 60.0
_OPEN_SECONDS = 30.0
"""How long the start of the service waits for the cluster; after that it goes on without."""
_ASK_SECONDS = 10.0
_CANCEL_SECONDS = 15.0
_GIVE_UP_SECONDS = LEASE_SECONDS + 3 * POLL_SECONDS
"""After this time without an answer of the actor, it has ended its job."""
_CUT_OFF_SECONDS = LEASE_SECONDS + 2 * POLL_SECONDS
"""The same, if no question has been sent since: one is answered after `POLL_SECONDS`."""
_RETRY_FIRST = 1.0
_RETRY_LONGEST = 30.0
_LOOK_FIRST = 0.5
_LOOK = 1.0
_END_SECONDS = 5.0

_answer_decoder = msgspec.msgpack.Decoder(DriverAnswer)


@dataclass(eq=False)
class _Waiting:
    """A place that is asked for.

    `reason` is why it is not there yet, `problem` why it will not be.
    """

    options: TrainOptions
    reason: str = ""
    problem: str = ""


class RayEngine:
    """Runs at most `MLP_TRAIN_TASK_NUM` jobs on the nodes of a cluster.

    `RAY_ADDRESS` says where the cluster is, as for every Ray program; without it, it is the one on this machine.

    Raises:
        SettingsError: Ray is not installed, or the store is a folder, which the nodes do not have.
    """

    def __init__(self, target: str, settings: Settings) -> None:
        if settings.store.startswith("folder://"):
            raise SettingsError(
                f"engine 'ray' needs a store that all nodes reach: set MINIO_HOST or MLPKIT_STORE (it is "
                f"{settings.store})"
            )
        if importlib.util.find_spec("ray") is None:
            raise SettingsError("engine 'ray' needs the package ray: pip install 'mlpkit[ray]'")
        self._target = target
        self._settings = settings
        self._driver: _DriverProcess | None = None
        self._problem = "it has not answered yet"
        self._refusal = ""
        self._waiting: list[_Waiting] = []

    async def open(self) -> None:
        self._slots = anyio.CapacityLimiter(self._settings.train_task_num)
        self._names = [f"place-{number}" for number in range(self._settings.train_task_num)]
        self._service = await anyio.to_thread.run_sync(service_id, self._settings.home)
        self._code = await anyio.to_thread.run_sync(pack_code, self._target, self._settings)
        self._connected = asyncio.Event()
        self._tried = asyncio.Event()
        self._keeping = asyncio.create_task(self._keep_connected())
        # A cluster that is away must not keep the service from predicting; one that never fits must be known now.
        with anyio.move_on_after(_OPEN_SECONDS):
            await self._tried.wait()
        if self._refusal:
            await self.close()
            raise SettingsError(self._refusal)

    async def close(self) -> None:
        self._keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeping

    def check(self, options: TrainOptions) -> None:
        """Refuses nothing: a cluster may grow."""

    @asynccontextmanager
    async def place(self, options: TrainOptions) -> AsyncIterator[Place]:
        async with self._slots:
            name = self._names.pop(0)
            try:
                place = await self._open_place(name, options)
                try:
                    yield place
                finally:
                    with anyio.CancelScope(shield=True):
                        await place.close()
            finally:
                self._names.append(name)

    def fits(self, asked: TrainOptions, wanted: TrainOptions) -> bool:
        return _resources(asked) == _resources(wanted)

    def why_waiting(self, options: TrainOptions) -> str:
        wanted = _resources(options)
        return next((claim.reason for claim in self._waiting if _resources(claim.options) == wanted), "")

    def order(self, run: JobRun) -> bytes:
        """What a node needs to run the job."""
        return msgspec.msgpack.encode(JobOrder.of(self._service, run, self._settings, self._code))

    async def _keep_connected(self) -> None:
        """Keeps a driver that is connected, as long as the service runs."""
        pause = _RETRY_FIRST
        failures = 0
        while True:
            driver = _DriverProcess()
            try:
                await driver.start()
                await driver.ask("connect", self._service, within=_CONNECT_SECONDS)
            except (DriverError, OSError) as error:
                self._problem = str(error)
                if isinstance(error, DriverError) and error.problem == "refused":
                    self._refusal = str(error)
                failures += 1
                logger.log(level_of_failure(failures), "the Ray cluster cannot be used: {}", error)
            else:
                logger.info("jobs run on the Ray cluster, as service {}", self._service)
                self._driver = driver
                self._problem = self._refusal = ""
                self._connected.set()
                self._tried.set()
                pause = _RETRY_FIRST
                failures = 0
                await driver.ended.wait()
                self._problem = "the connection was lost"
                logger.error("the connection to the Ray cluster was lost")
            finally:
                self._driver = None
                self._connected.clear()
                self._tried.set()
                with anyio.CancelScope(shield=True):
                    await driver.end()
            await anyio.sleep(pause)
            pause = min(2 * pause, _RETRY_LONGEST)

    async def _open_place(self, name: str, options: TrainOptions) -> _RayPlace:
        waiting = _Waiting(options)
        place: _RayPlace | None = None
        self._waiting.append(waiting)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, waiting, tasks.cancel_scope)
                place = await self._actor(name, waiting)
                tasks.cancel_scope.cancel()
        finally:
            self._waiting.remove(waiting)
        if place is None:
            raise NoPlace(waiting.problem)
        return place

    async def _actor(self, name: str, waiting: _Waiting) -> _RayPlace | None:
        """An actor on a node with what is wanted; waits for ever.

        It gives None if actors cannot start there, with the problem in `waiting`.
        """
        wanted = msgspec.msgpack.encode(_resources(waiting.options))
        while True:
            await self._connected.wait()
            driver = self._driver
            if driver is None:
                continue
            place = _RayPlace(self, driver, name)
            opened = False
            try:
                node = msgspec.msgpack.decode(await driver.ask("open", name, wanted, within=None), type=ActorNode)
                waiting.problem = other_version(node)
                if waiting.problem:
                    return None
                place.node = node.node
                opened = True
                return place
            except DriverError as error:
                if error.problem in ("actor", "other"):
                    waiting.problem = f"mlpkit cannot be started on a node of the Ray cluster: {error}"
                    return None
            finally:
                if not opened:
                    with anyio.CancelScope(shield=True):
                        await place.close()
            await anyio.sleep(_LOOK)

    async def _watch(self, waiting: _Waiting, scope: anyio.CancelScope) -> None:
        """Says why the place is not there, and may give up.

        It does if there was no chance of it for `MLPKIT_PLACE_TIMEOUT`. While nodes are only busy, it waits as long as
        it takes.
        """
        limit = self._settings.place_timeout
        asked = waiting.options
        node = f"a node with {resources_in_words(asked.cpus, asked.gpus, asked.memory)}"
        since = time.monotonic()
        await anyio.sleep(_LOOK_FIRST)
        while True:
            outlook = await self._outlook(waiting.options)
            if outlook is None:
                waiting.reason = why = f"the Ray cluster cannot be used: {self._problem}"
            elif outlook.chance == "none":
                waiting.reason = f"waiting for {node}: {outlook.text}"
                why = f"there was no {node.removeprefix('a ')}: {outlook.text}"
            elif outlook.chance == "busy":
                waiting.reason = f"waiting for {node}: all are in use"
                why = ""
            else:
                waiting.reason = f"waiting for Ray to start an actor on {node}"
                why = f"Ray has started no actor, although there is {node}"
            now = time.monotonic()
            since = since if why else now
            if now - since > limit:
                waiting.problem = f"{why} (MLPKIT_PLACE_TIMEOUT, {limit:g} s)"
                scope.cancel()
                return
            await anyio.sleep(_LOOK)

    async def _outlook(self, options: TrainOptions) -> Outlook | None:
        driver = self._driver
        if driver is None:
            return None
        try:
            found = await driver.ask("look", argument=msgspec.msgpack.encode(_resources(options)))
        except DriverError as error:
            self._problem = str(error)
            return None
        return msgspec.msgpack.decode(found, type=Outlook)


class _RayPlace:
    """An actor on a node, for one job."""

    def __init__(self, engine: RayEngine, driver: _DriverProcess, name: str) -> None:
        self._engine = engine
        self._driver = driver
        self._name = name
        self._answered = 0.0
        self.node = ""

    async def run(self, run: JobRun) -> JobOutcome:
        run.log.say(f"it runs on node {self.node}")
        self._answered = time.monotonic()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._pass_on_stop, run)
                try:
                    await self._ask("start", self._engine.order(run), within=_START_SECONDS)
                    outcome = await self._follow(run)
                except DriverError as error:
                    outcome = self._ended(error)
                    if error.problem == "node":
                        await self._let_end(run)
                tasks.cancel_scope.cancel()
            return outcome
        except BaseException:
            # The process first: it may be busy in C code, and would live on for a while if only its actor were killed.
            with anyio.CancelScope(shield=True), contextlib.suppress(DriverError):
                await self._ask("cancel", within=_CANCEL_SECONDS)
            raise

    async def close(self) -> None:
        """Ends the actor."""
        with contextlib.suppress(DriverError):
            await self._ask("close")

    async def usage(self) -> ProcessUsage | None:
        try:
            return msgspec.msgpack.decode(await self._ask("usage"), type=ProcessUsage | None)
        except DriverError:
            return None

    async def stack(self) -> str:
        try:
            name, text = msgspec.msgpack.decode(await self._ask("stack"), type=tuple[str, str])
        except DriverError as error:
            raise JobConflict(f"node {self.node} does not answer: {error}") from error
        if name:
            raise (TimeLimitExceeded if name == "TimeLimitExceeded" else JobConflict)(text)
        return text

    async def _follow(self, run: JobRun) -> JobOutcome:
        """Takes the events of the job until the last one."""
        after = 0
        self._answered = time.monotonic()
        while True:
            try:
                data = await self._ask("events", str(after).encode(), within=2 * POLL_SECONDS)
            except DriverError as error:
                if error.problem != "unavailable" or time.monotonic() - self._answered > _GIVE_UP_SECONDS:
                    raise
                await anyio.sleep(_LOOK)
                continue
            self._answered = time.monotonic()
            found = decode_events(data)
            for event in found.events:
                outcome = apply_event(event, run)
                if outcome is not None:
                    return outcome
            run.log.flush()
            after = found.last

    async def _let_end(self, run: JobRun) -> None:
        """Waits until the job has surely ended there.

        Ray also calls a node dead that is only cut off or stalled: the job runs on until its actor is forgotten.
        """
        left = max(0.0, self._answered + _CUT_OFF_SECONDS - time.monotonic())
        run.log.say(f"Ray says that node {self.node} is dead: in {left:.0f} s the job has surely ended there")
        await anyio.sleep(left)

    async def _pass_on_stop(self, run: JobRun) -> None:
        await run.stop.made.wait()
        # If it does not arrive, the job is killed later.
        with contextlib.suppress(DriverError):
            await self._ask("stop", msgspec.msgpack.encode(run.stop.reason))

    async def _ask(self, method: str, argument: bytes = b"", *, within: float = _ASK_SECONDS) -> bytes:
        return await self._driver.ask(method, self._name, argument, within=within)

    def _ended(self, error: DriverError) -> JobOutcome:
        """The outcome of a job whose actor is gone."""
        match error.problem:
            case "node":
                return JobOutcome("error", f"node {self.node} of the Ray cluster died while the job ran", lost=True)
            case "memory":
                return JobOutcome(
                    "error",
                    f"Ray killed the job, because node {self.node} ran out of memory: reserve enough with memory=",
                )
            case "lost":
                return JobOutcome("error", "the connection to the Ray cluster was lost while the job ran", lost=True)
            case "unavailable":
                return JobOutcome("error", f"node {self.node} of the Ray cluster does not answer any more", lost=True)
            case _:
                return JobOutcome("error", f"the job's actor on node {self.node} died: {error}", lost=True)


class _DriverProcess:
    """The driver's process, as the service sees it."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._channel: AsyncChannel | None = None
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0
        self.ended = asyncio.Event()

    async def start(self) -> None:
        """Starts the process.

        Raises:
            OSError: it could not be started.
        """
        with anyio.CancelScope(shield=True):
            self._child = await start_child(_MODULE, on_lines=_log, process="ray")
            self._channel = await AsyncChannel.connect(self._child.channel, self._on_messages, self._on_close)

    async def ask(
        self, method: str, place: str = "", argument: bytes = b"", *, within: float | None = _ASK_SECONDS
    ) -> bytes:
        """What the driver, or the actor of a place, answers.

        Raises:
            DriverError: it could not be done, or there was no answer in time.
        """
        if self._channel is None or self.ended.is_set():
            raise DriverError("lost", "the process that speaks to Ray has ended")
        self._number += 1
        number = self._number
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        self._channel.send(msgspec.msgpack.encode(DriverCall(number, method, place, argument)))
        try:
            with anyio.fail_after(within):
                value: bytes = await answer
                return value
        except TimeoutError:
            raise DriverError("unavailable", f"there was no answer within {within:g} s") from None
        finally:
            del self._answers[number]

    async def end(self) -> None:
        """Ends the process, and so all its actors."""
        if self._channel is not None:
            self._channel.close()
        if self._child is not None:
            await self._child.stop(_END_SECONDS)

    def _on_messages(self, messages: list[Message]) -> None:
        for message in messages:
            answer = _answer_decoder.decode(message)
            waiting = self._answers.get(answer.number)
            if waiting is None or waiting.done():
                continue
            if answer.problem:
                waiting.set_exception(DriverError(answer.problem, answer.text))
            else:
                waiting.set_result(answer.value)

    def _on_close(self) -> None:
        self.ended.set()
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(DriverError("lost", "the process that speaks to Ray has ended"))


def _resources(options: TrainOptions) -> Resources:
    return Resources(options.cpus or 1, options.gpus, options.memory)


def _log(lines: list[LogLine]) -> None:
    for line in lines:
        logger.debug("ray: {}", line.message)
