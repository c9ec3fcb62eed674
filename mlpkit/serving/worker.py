"""Both ends of a worker: the server's `Worker`, and `main`, which runs in the process `python -m mlpkit.serving`.

The channel carries several requests at a time; an `Answer` finds its request by id. A worker that ends, however it
ends, closes the channel: then every request that it held fails at once, with how the process ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from mlpkit.app import App
from mlpkit.channel import AsyncChannel, Message
from mlpkit.errors import ArgumentError, MlpkitError, TimeLimitExceeded, WorkerLost
from mlpkit.log import LogOutput, LogRecord, capture_streams, configure_child
from mlpkit.process import Child, channel_of_child, start_child
from mlpkit.serving.host import Host
from mlpkit.serving.messages import (
    Answer,
    Broken,
    Failure,
    Load,
    Log,
    Predict,
    Ready,
    RunHook,
    Start,
    Stop,
    Unload,
    decode_report,
    decode_request,
    encode,
    parts_of,
)
from mlpkit.settings import Settings, decode_settings, encode_settings

Work = Load | Unload | Predict | RunHook
Answered = Callable[["Answer | MlpkitError"], None]

_STOP_SECONDS = 5.0
"""How long a worker gets to close its models after it was asked to stop."""
_MOST_OVERDUE = 4
"""Hooks that outlive their limit keep their threads, and would leave none for loads: so many end the worker."""


class Worker(Protocol):
    """Something that holds models: a process, or the server itself."""

    index: int
    ready: bool

    async def start(self) -> None:
        """Starts it; returns when it takes requests. Raises WorkerLost when it cannot."""

    async def ended(self) -> str:
        """Waits until it has ended, and says how."""

    async def stop(self, grace: float) -> None:
        """Ends it, within `grace` seconds where it can."""

    def begin(self, work: Work, limit: float, answered: Answered, at_once: int = 1) -> None:
        """Sends a request; `answered` is called once, with the answer or with why there is none.

        `limit` is in seconds, and does not count while the worker is busy with `at_once` predictions of the same model.
        """

    def watch(self, now: float) -> None:
        """Ends what has taken longer than its limit."""


class _Held:
    """A request that a worker has, and who waits for it. `began` is when its time began, in monotonic seconds."""

    __slots__ = ("answered", "at_once", "began", "limit", "work")

    def __init__(self, work: Work, limit: float, answered: Answered, at_once: int) -> None:
        self.work, self.limit, self.answered, self.at_once = work, limit, answered, at_once
        self.began: float | None = None

    def is_late(self, now: float) -> bool:
        """Whether it has run longer than its limit; its time begins with the first question."""
        if self.began is None:
            self.began = now
        return now - self.began > self.limit


class ProcessWorker:
    """A worker in a process of its own: the server's end."""

    def __init__(self, index: int, target: str, settings: Settings, log: LogOutput, *, name: str) -> None:
        self.index, self.name = index, name
        self.ready = False
        self._target, self._settings, self._log = target, settings, log
        self._held: dict[int, _Held] = {}
        self._child: Child | None = None
        self._channel: AsyncChannel | None = None
        self._started: asyncio.Future[None] | None = None
        self._why = self._asked = ""
        self._overdue = 0
        self._closing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._started = asyncio.get_running_loop().create_future()
        self._child = await start_child("mlpkit.serving", on_line=self._on_line)
        self._channel = await AsyncChannel.connect(self._child.channel, self._on_messages, self._on_close)
        settings = encode_settings(self._settings)
        self._channel.send(encode(Start(self._target, sys.path, settings, self.name)))
        try:
            await asyncio.wait_for(self._started, self._settings.start_timeout)
        except asyncio.TimeoutError:
            limit = f"{self._settings.start_timeout:g} s (MLPKIT_START_TIMEOUT)"
            self._child.kill(f"did not import the script within {limit}")
            raise WorkerLost(f"{self.name} did not start: importing the script took longer than {limit}") from None
        self.ready = True

    async def ended(self) -> str:
        assert self._child is not None
        end = await self._child.wait()
        self._lose(end.words)
        return self._why or end.words

    async def stop(self, grace: float) -> None:
        self.ready, self._asked = False, "was stopped"
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

    def begin(self, work: Work, limit: float, answered: Answered, at_once: int = 1) -> None:
        if self._channel is None or not self.ready:
            answered(WorkerLost(f"{self.name} is not running"))
            return
        self._held[work.id] = _Held(work, limit, answered, at_once)
        try:
            self._channel.send(*parts_of(work))
        except ValueError as error:
            del self._held[work.id]
            answered(ArgumentError(f"the request is too large for a worker: {error}"))

    def watch(self, now: float) -> None:
        for held in _running(self._held.values()):
            if not held.is_late(now):
                continue
            what = f"{type(held.work).__name__.lower()} took longer than {held.limit:g} s"
            del self._held[held.work.id]
            if isinstance(held.work, RunHook):
                held.answered(TimeLimitExceeded(f"{held.work.hook} took longer than {held.limit:g} s"))
                self._overdue += 1
                if self._overdue >= _MOST_OVERDUE:
                    self.kill(f"was ended because {self._overdue} hooks took longer than {held.limit:g} s")
                    return
                continue
            held.answered(TimeLimitExceeded(f"{what}: {self.name} was ended and is started again"))
            self.kill(f"was ended because a {what}")
            return

    def _on_messages(self, messages: list[Message]) -> None:
        for message in messages:
            report = decode_report(message)
            if type(report) is Answer:
                held = self._held.pop(report.id, None)
                if held is not None:
                    held.answered(report)
                else:
                    self._overdue -= 1
            elif isinstance(report, Log):
                self._log.write(report.record)
            elif isinstance(report, Ready):
                if self._started is not None and not self._started.done():
                    self._started.set_result(None)
            elif isinstance(report, Broken):
                self._why = report.text

    def _on_close(self) -> None:
        self.ready = False
        if self._held or not self._is_started():
            # The exit code is a moment away; what the callers are told should hold it.
            self._closing = asyncio.get_running_loop().create_task(self._say_why())

    async def _say_why(self) -> None:
        if self._child is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                end = await asyncio.wait_for(asyncio.shield(self._child.wait()), 0.5)
                self._lose(end.words)
                return
        self._lose("closed its channel")
        # Nothing can be asked of it any more, and only its end makes place for another.
        self.kill("closed its channel")

    def _is_started(self) -> bool:
        return self._started is not None and self._started.done()

    def _lose(self, how: str) -> None:
        self.ready = False
        if self._started is not None and not self._started.done():
            self._started.set_exception(WorkerLost(f"{self.name} did not start: {self._why or how}"))
        held, self._held = self._held, {}
        for each in held.values():
            each.answered(WorkerLost(f"{self.name} {self._asked or how} while it held the request"))

    def _on_line(self, line: str) -> None:
        self._log.write(LogRecord(time.time(), "INFO", line, "-", self.name, "output"))


class LocalWorker:
    """Models in the server process (`--workers 0`): for debugging, where a breakpoint in a handler must work."""

    def __init__(self, index: int, app: App, settings: Settings) -> None:
        self.index, self.name, self.ready = index, "server", False
        self._app, self._settings = app, settings
        self._held: dict[int, _Held] = {}
        self._host: Host | None = None
        self._ended: asyncio.Future[str] | None = None

    async def start(self) -> None:
        self._ended = asyncio.get_running_loop().create_future()
        self._host = Host(self._app, self._settings, self._answer, inline=False)
        await self._host.start()
        self.ready = True

    async def ended(self) -> str:
        assert self._ended is not None
        return await self._ended

    async def stop(self, grace: float) -> None:
        self.ready = False
        if self._host is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._host.stop(), max(grace, 0.1))
        if self._ended is not None and not self._ended.done():
            self._ended.set_result("was stopped")

    def begin(self, work: Work, limit: float, answered: Answered, at_once: int = 1) -> None:
        if self._host is None or not self.ready:
            answered(WorkerLost("the server's own worker is not running"))
            return
        self._held[work.id] = _Held(work, limit, answered, at_once)
        self._host.take(work)

    def watch(self, now: float) -> None:
        for held in _running(self._held.values()):
            if held.is_late(now):
                del self._held[held.work.id]
                held.answered(TimeLimitExceeded(f"{type(held.work).__name__} took longer than {held.limit:g} s"))

    def _answer(self, answer: Answer) -> None:
        held = self._held.pop(answer.id, None)
        if held is not None:
            held.answered(answer)


def _running(held: Iterable[_Held]) -> list[_Held]:
    """Those that the worker can have begun: of one model it runs `at_once` predictions, first come, first served."""
    found: list[_Held] = []
    counts: dict[str, int] = {}
    for each in held:
        if isinstance(each.work, Predict):
            place = counts[each.work.model_id] = counts.get(each.work.model_id, 0) + 1
            if place > each.at_once:
                continue
        found.append(each)
    return found


request_ids = itertools.count(1)
"""Numbers for requests, unique in this server."""


async def ask(worker: Worker, work: Work, limit: float) -> bytes:
    """Sends a request of one item and waits for its result, as JSON.

    Raises:
        MlpkitError: whatever the worker failed with, WorkerLost, TimeLimitExceeded.
    """
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def answered(answer: Answer | MlpkitError) -> None:
        if future.done():
            return
        if isinstance(answer, MlpkitError):
            future.set_exception(answer)
        elif isinstance(answer.results[0], Failure):
            future.set_exception(answer.results[0].to_error())
        else:
            future.set_result(answer.results[0])

    worker.begin(work, limit, answered)
    return await future


def main() -> None:
    """Runs a worker process until it is told to stop, or the server is gone."""
    # Ctrl-C goes to the whole terminal; the server decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve())
    else:
        uvloop.run(_serve())


async def _serve() -> None:
    stopped = asyncio.Event()
    requests: asyncio.Queue[Message] = asyncio.Queue()
    take: list[Callable[[Any], None]] = []

    def on_messages(messages: list[Message]) -> None:
        for message in messages:
            if take:
                take[0](decode_request(message))
            else:
                requests.put_nowait(message)

    def on_close() -> None:
        stopped.set()

    channel = await AsyncChannel.connect(channel_of_child(), on_messages, on_close)
    start = decode_request(await requests.get())
    assert isinstance(start, Start)
    loop = asyncio.get_running_loop()

    def send_record(record: LogRecord) -> None:
        # Handlers log from threads too; the channel belongs to the loop.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(channel.send, encode(Log(record)))

    settings = decode_settings(start.settings)
    configure_child(send_record, process=start.name, level=settings.log_level)
    capture_streams()
    sys.path[:] = start.sys_path
    host = await _host(start, settings, channel)
    if host is None:
        return

    def take_request(request: Any) -> None:
        if isinstance(request, Stop):
            stopped.set()
        else:
            host.take(request)

    while not requests.empty():
        take_request(decode_request(requests.get_nowait()))
    take.append(take_request)
    channel.send(encode(Ready()))
    await stopped.wait()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(host.stop(), _STOP_SECONDS)
    channel.close()
    # Threads of handlers that never return must not keep the process.
    await asyncio.sleep(0)
    os._exit(0)


async def _host(start: Start, settings: Settings, channel: AsyncChannel) -> Host | None:
    from mlpkit.script import import_app

    try:
        host = Host(import_app(start.target), settings, lambda answer: channel.send(encode(answer)))
        await host.start()
    except MlpkitError as error:
        channel.send(encode(Broken(str(error))))
        channel.close()
        return None
    return host
