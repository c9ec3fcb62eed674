"""The server's end of a worker; `runtime.py` is the other end.

The channel carries several requests at a time; a `Reply` finds its request by id. A worker that ends, however it
ends, closes the channel: then every request that it held fails at once, with how the process ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from mlpkit.algorithm import LoadOptions
from mlpkit.app import App
from mlpkit.errors import ArgumentError, MlpkitError, TimeLimitExceeded, UserCodeError, WorkerLost, WorkerNotReady
from mlpkit.log import LogOutput
from mlpkit.metrics import metrics_environment
from mlpkit.processes import LONG, AsyncChannel, Child, Message, device_settings, start_child, thread_settings
from mlpkit.script import absolute_search_path
from mlpkit.serving.messages import (
    Broken,
    Cancel,
    Failure,
    Logged,
    Placed,
    Predict,
    Ready,
    Reply,
    RunHook,
    StartWorker,
    Stop,
    Work,
    decode_worker_message,
    encode,
    parts_of,
)
from mlpkit.settings import Settings, encode_settings

if TYPE_CHECKING:
    from mlpkit.serving.execution import ThreadState

OnReply = Callable[["Reply | MlpkitError"], None]
"""Told each reply to a request: parts (`final=False`), and at last the final one or an error."""

_MOST_OVERDUE = 4
"""Hooks that outlive their limit keep their threads: this many of them end the worker, before no thread is left."""


class Worker(Protocol):
    """Something that holds models: a process, or the server itself.

    `ready`: it takes requests. `node` is where it is on a cluster, empty if it is here. `held_at_end` is how many
    requests it held when it died.
    """

    index: int
    node: str
    ready: bool
    held_at_end: int

    @property
    def pid(self) -> int | None:
        """The process id; None before its start."""

    async def start(self) -> None:
        """Starts it; returns when it takes requests. Raises WorkerLost when it cannot."""

    async def ended(self) -> str:
        """Waits until it has ended, and says how."""

    async def stop(self, grace: float) -> None:
        """Ends it, within `grace` seconds if it can."""

    def put(self, work: Work, limit: float, on_reply: OnReply, parallel: int = 1) -> None:
        """Takes a request, which `flush` sends.

        `on_reply` is told the reply, or why there is none.

        `limit` is in seconds. It does not count while the worker is busy with `parallel` predictions of the same model.
        """

    def cancel(self, id: int, model_id: str) -> None:
        """Says that nobody waits for the parts of a prediction."""

    def flush(self) -> None:
        """Sends what was put."""

    def watch(self, now: float) -> None:
        """Ends what has taken longer than its limit."""


class InFlight(msgspec.Struct, eq=False):
    """A request that a worker has, and who waits for it.

    `began` is when its time began, in monotonic seconds.
    """

    work: Work
    limit: float
    on_reply: OnReply
    parallel: int
    began: float | None = None

    def is_late(self, now: float) -> bool:
        """Whether it has run longer than its limit.

        Its time begins with the first question.
        """
        if self.began is None:
            self.began = now
        return now - self.began > self.limit


class ProcessWorker:
    """A worker in a process of its own: the server's end.

    `single`: it is to hold one model, which gets the process's main thread. `devices` are the GPUs that it sees; with
    none it sees what the service sees. `cluster` are the options of its model if it is to be on a node of the Ray
    cluster: then the process here only passes messages on (`ray.py`).
    """

    def __init__(
        self,
        index: int,
        target: str,
        settings: Settings,
        log: LogOutput,
        *,
        name: str,
        single: bool = False,
        devices: Sequence[str] = (),
        cluster: LoadOptions | None = None,
    ) -> None:
        self.index = index
        self.name = name
        self.node = ""
        self.ready = False
        self.held_at_end = 0
        self._target = target
        self._settings = settings
        self._log = log
        self._single = single
        self._devices = devices
        self._cluster = cluster
        self._held: dict[int, InFlight] = {}
        self._child: Child | None = None
        self._channel: AsyncChannel | None = None
        self._started: asyncio.Future[None] | None = None
        self._why = self._asked = ""
        self._overdue = 0
        self._closing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._started = asyncio.get_running_loop().create_future()
        settings = self._settings
        start = StartWorker(self._target, absolute_search_path(), encode_settings(settings), self.name, self._single)
        message = encode(start)
        module = "mlpkit.serving"
        environment = thread_settings(settings.workers + settings.train_task_num)
        environment |= device_settings(self._devices) | metrics_environment(settings.home)
        seconds = settings.start_timeout
        limit = f"{seconds:g} s (MLPKIT_START_TIMEOUT)"
        if self._cluster is not None:
            from mlpkit.serving.ray import order_for  # only for models on a cluster

            message = await order_for(start, self._cluster, settings)
            module = "mlpkit.serving.ray"
            environment = {}
            seconds += settings.place_timeout
            limit = f"{seconds:g} s (MLPKIT_PLACE_TIMEOUT and MLPKIT_START_TIMEOUT)"
        self._child = await start_child(
            module, on_lines=self._log.write_all, process=self.name, environment=environment
        )
        self._channel = await AsyncChannel.connect(self._child.channel, self._on_messages, self._on_close)
        if self._asked:
            raise WorkerLost(f"{self.name} {self._asked}")
        self._channel.send(message)
        try:
            await asyncio.wait_for(self._started, seconds)
        except asyncio.TimeoutError:
            self._child.kill(f"did not import the script within {limit}")
            raise WorkerLost(f"{self.name} did not start: importing the script took longer than {limit}") from None
        self.ready = True

    async def ended(self) -> str:
        assert self._child is not None
        end = await self._child.wait()
        self._lose(end.words)
        return self._why or end.words

    async def stop(self, grace: float) -> None:
        self.ready = False
        self._asked = "was stopped"
        if self._child is None:
            return
        if self._channel is not None:
            self._channel.send(encode(Stop()))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._child.wait()), max(grace, 0.1))
        await self._child.stop(0.5, self._asked)
        self._lose(self._asked)

    def kill(self, why: str) -> None:
        """Ends the process at once; `why` is what its callers are told."""
        self.ready = False
        if self._child is not None:
            self._child.kill(why)

    @property
    def pid(self) -> int | None:
        """The process id, once it is started."""
        return self._child.pid if self._child else None

    def put(self, work: Work, limit: float, on_reply: OnReply, parallel: int = 1) -> None:
        if self._channel is None or not self.ready:
            on_reply(WorkerNotReady(f"{self.name} is not running"))
            return
        self._held[work.id] = InFlight(work, limit, on_reply, parallel)
        try:
            if type(work) is Predict and len(work.items[0].features) >= LONG:
                self._channel.put(*parts_of(work))
            else:
                self._channel.put(encode(work))
        except ValueError as error:
            del self._held[work.id]
            on_reply(ArgumentError(f"the request is too large for a worker: {error}"))

    def cancel(self, id: int, model_id: str) -> None:
        if self._channel is not None and id in self._held:
            self._channel.send(encode(Cancel(id, model_id)))

    def flush(self) -> None:
        if self._channel is not None:
            self._channel.flush()

    def watch(self, now: float) -> None:
        for held in running(self._held.values()):
            if not held.is_late(now):
                continue
            what = f"{type(held.work).__name__.lower()} took longer than {held.limit:g} s"
            del self._held[held.work.id]
            if isinstance(held.work, RunHook):
                held.on_reply(TimeLimitExceeded(f"{held.work.hook} took longer than {held.limit:g} s"))
                self._overdue += 1
                if self._overdue >= _MOST_OVERDUE:
                    self.kill(f"was ended because {self._overdue} hooks took longer than {held.limit:g} s")
                    return
                continue
            # Before the answer, which lets the next in the queue begin: that one is for the worker's replacement.
            self.kill(f"was ended because a {what}")
            held.on_reply(TimeLimitExceeded(f"{what}: {self.name} was ended and is started again"))
            return

    def _on_messages(self, messages: list[Message]) -> None:
        for message in messages:
            received = decode_worker_message(message)
            if type(received) is Reply:
                held = self._held.get(received.id)
                if held is None:
                    # A hook that has outlived its limit has ended.
                    self._overdue -= received.final
                    continue
                if received.final:
                    # After a part it keeps its place: `running` counts from the first.
                    del self._held[received.id]
                held.on_reply(received)
            elif isinstance(received, Logged):
                self._log.write(received.line)
            elif isinstance(received, Ready):
                if self._started is not None and not self._started.done():
                    self._started.set_result(None)
            elif isinstance(received, Placed):
                self.node = received.node
            elif isinstance(received, Broken):
                self._why = self._why or received.text

    def _on_close(self) -> None:
        self.ready = False
        if not self._asked:
            # The exit code is known in a moment; the error that callers get should contain it.
            self._closing = asyncio.get_running_loop().create_task(self._say_why())

    async def _say_why(self) -> None:
        if self._child is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                end = await asyncio.wait_for(asyncio.shield(self._child.wait()), 0.5)
                self._lose(end.words)
                return
        self._lose("closed its channel")
        # Nothing can be asked of it any more, and only its end makes room for another.
        self.kill("closed its channel")

    def _lose(self, how: str) -> None:
        self.ready = False
        if self._started is not None and not self._started.done():
            self._started.set_exception(WorkerLost(f"{self.name} did not start: {self._why or how}"))
        lost = self._held
        self._held = {}
        self.held_at_end = max(self.held_at_end, len(lost))
        for held in lost.values():
            held.on_reply(WorkerLost(f"{self.name} {self._asked or self._why or how} while it held the request"))


class LocalWorker:
    """Models in the server process (`--workers 0`).

    This is for debugging: a breakpoint in a handler works.

    Handlers run in threads of their own as in a worker process. What would run in the main thread of that has a thread
    here too, which begins with `state`: the server's loop never waits for the user's code.
    """

    def __init__(self, index: int, app: App, settings: Settings, state: ThreadState) -> None:
        from mlpkit.serving.execution import WorkerThreads
        from mlpkit.serving.runtime import WorkerRuntime

        self.index = index
        self.node = ""
        self.ready = False
        self.held_at_end = 0
        self._held: dict[int, InFlight] = {}
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._main = WorkerThreads("mlpkit-main", state)
        self._runtime = WorkerRuntime(app, settings, self._send)

    @staticmethod
    def state_here() -> ThreadState:
        """The `state` for a worker: what this thread has set."""
        # A server whose models live in workers needs none of this module.
        from mlpkit.serving.execution import ThreadState

        return ThreadState()

    @property
    def pid(self) -> int | None:
        """The server's own process id."""
        return os.getpid()

    async def start(self) -> None:
        await self._in_main(self._runtime.start)
        self.ready = True

    async def ended(self) -> str:
        return await self._ended

    async def stop(self, grace: float) -> None:
        self.ready = False
        limit = max(grace, 0.1)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._in_main(partial(self._runtime.stop, limit)), limit)
        self._main.close()
        if not self._ended.done():
            self._ended.set_result("was stopped")

    def put(self, work: Work, limit: float, on_reply: OnReply, parallel: int = 1) -> None:
        if not self.ready:
            on_reply(WorkerNotReady("the server's own worker is not running"))
            return
        self._held[work.id] = InFlight(work, limit, on_reply, parallel)
        self._runtime.take(work)

    def cancel(self, id: int, model_id: str) -> None:
        self._runtime.cancel(Cancel(id, model_id))

    def flush(self) -> None:
        pass

    def watch(self, now: float) -> None:
        for held in running(self._held.values()):
            if held.is_late(now):
                del self._held[held.work.id]
                held.on_reply(TimeLimitExceeded(f"{type(held.work).__name__} took longer than {held.limit:g} s"))

    def _send(self, reply: Reply) -> None:
        # A handler may outlive the loop of a service that stops; nobody waits for its answer then.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take, reply)

    def _take(self, reply: Reply) -> None:
        held = self._held.get(reply.id)
        if held is not None:
            if reply.final:
                del self._held[reply.id]
            held.on_reply(reply)

    async def _in_main(self, function: Callable[[], None]) -> None:
        ended: Future[None] = Future()
        # Nobody can cancel it any more: the thread may still be at work when a caller has stopped waiting.
        ended.set_running_or_notify_cancel()

        def run(_: None) -> None:
            try:
                function()
            except Exception as error:
                ended.set_exception(error)
            else:
                ended.set_result(None)

        self._main.put(run, None)
        await asyncio.wrap_future(ended)


def running(held: Iterable[InFlight]) -> list[InFlight]:
    """The requests that the worker can have begun.

    Of one model it runs `parallel` predictions, first come, first served.
    """
    found: list[InFlight] = []
    counts: dict[str, int] = {}
    for request in held:
        if isinstance(request.work, Predict):
            number = counts[request.work.model_id] = counts.get(request.work.model_id, 0) + 1
            if number > request.parallel:
                continue
        found.append(request)
    return found


request_ids = itertools.count(1)
"""Numbers for requests, unique in this server."""


async def ask(worker: Worker, work: Work, limit: float) -> bytes:
    """Sends a request of one item and gives its result, as JSON.

    Raises:
        MlpkitError: the worker's own error, WorkerLost or TimeLimitExceeded.
    """
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_reply(reply: Reply | MlpkitError) -> None:
        if future.done() or (isinstance(reply, Reply) and not reply.final):
            return
        if isinstance(reply, MlpkitError):
            future.set_exception(reply)
        elif isinstance(reply.results[0], Failure):
            future.set_exception(reply.results[0].to_error())
        else:
            future.set_result(reply.results[0])

    worker.put(work, limit, on_reply)
    worker.flush()
    return await future


async def all_of(loads: Iterable[Any]) -> None:
    """Waits for all, and then raises the first failure."""
    results = await asyncio.gather(*loads, return_exceptions=True)
    for result in results:
        if isinstance(result, MlpkitError):
            raise result
        if isinstance(result, BaseException):
            raise UserCodeError(f"internal error: {result!r}")
