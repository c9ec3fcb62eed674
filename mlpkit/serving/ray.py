"""Workers on the nodes of a Ray cluster.

The server has a `ProcessWorker` for such a worker, as for any other. But its process here is only a messenger (`main`):
it asks Ray for an actor on a node with the wanted resources, and passes messages on, each time all that have come. The
actor has an ordinary worker process (`runtime.py`) on its node.

    ProcessWorker <-socket-> messenger <-Ray-> WorkerActor <-socket-> worker

If the worker, the actor or the node is lost, the messenger says so and ends. Then the pool replaces it, as it does with
every worker, and Ray chooses another node. If the messenger ends, however it ends, Ray ends its actor. An actor that
nobody has asked for a minute ends by itself: its node may be cut off from the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import anyio
import anyio.to_thread
import msgspec

from mlpkit.algorithm import LoadOptions
from mlpkit.log import LogLine
from mlpkit.processes import (
    THREAD_SETTINGS,
    AsyncChannel,
    Child,
    Message,
    channel_of_child,
    leave_signals_to_the_server,
    start_child,
)
from mlpkit.serving.messages import Broken, Logged, Placed, StartWorker, encode
from mlpkit.settings import Settings, decode_settings, encode_settings
from mlpkit.training.raydriver import (
    POLL_SECONDS,
    ActorNode,
    DriverError,
    NodeActor,
    Resources,
    connect,
    driver_error,
    look,
    new_actor,
    other_version,
    resources_in_words,
)
from mlpkit.training.remote import Code, node_home, pack_code, unpack

_NAMESPACE = "mlpkit-models"
_LOOK = 1.0
_CONNECT_SECONDS = 60.0
_START_SECONDS = 60.0
_SILENCE = 3 * POLL_SECONDS
"""After this time without an answer of the actor, its node is lost."""
_CLOSE_SECONDS = 5.0


class WorkerOrder(msgspec.Struct, frozen=True, array_like=True):
    """The first message to a messenger: what the worker needs.

    `archive` is the folder of the script, or empty if the script is installed on the nodes.
    """

    wanted: Resources
    start: StartWorker
    archive: bytes


class WorkerNews(msgspec.Struct, frozen=True, array_like=True):
    """Messages of a worker; `ended` says how it ended, if it has."""

    messages: list[bytes]
    ended: str = ""


_order_decoder = msgspec.msgpack.Decoder(WorkerOrder)
_messages_decoder = msgspec.msgpack.Decoder(list[bytes])
_news_decoder = msgspec.msgpack.Decoder(WorkerNews)


async def order_for(start: StartWorker, options: LoadOptions, settings: Settings) -> bytes:
    """The first message to a messenger, with the folder of the script.

    Raises:
        SettingsError: the folder cannot be packed.
    """
    code = await anyio.to_thread.run_sync(pack_code, start.target, settings)
    # The folders of this machine mean nothing there.
    start = msgspec.structs.replace(start, target=code.target, sys_path=[])
    return encode(WorkerOrder(Resources(1, options.gpus, options.memory), start, code.archive))


class _Inbox:
    """Messages that wait to be passed on."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._come = asyncio.Event()

    def add(self, messages: list[Message]) -> None:
        """Adds messages; with none, `take` ends its wait."""
        self._messages += messages
        self._come.set()

    async def take(self, wait: float | None = None) -> list[Message]:
        """All messages; waits for the first, at most `wait` seconds."""
        if not self._messages:
            self._come.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._come.wait(), wait)
        messages = self._messages
        self._messages = []
        return messages


# --- On the node -----------------------------------------------------------------------------------------------------


class WorkerActor(NodeActor):
    """Has one worker's process on a node."""

    def __init__(self) -> None:
        super().__init__()
        self._child: Child | None = None
        self._channel: AsyncChannel | None = None
        self._said = _Inbox()
        self._ended = ""
        self._watching: asyncio.Task[None] | None = None

    async def start(self, order: bytes) -> bytes:
        """Starts the worker's process; gives why it could not, or nothing."""
        try:
            await self._start(_order_decoder.decode(order))
        except (OSError, zipfile.BadZipFile) as error:
            return str(error).encode()
        return b""

    async def put(self, messages: bytes) -> bytes:
        """Passes messages on to the worker."""
        assert self._channel is not None
        for message in _messages_decoder.decode(messages):
            self._channel.put(message)
        self._channel.flush()
        return b""

    async def take(self) -> bytes:
        """What the worker has sent; waits a while for the first message."""
        self._asked = time.monotonic()
        messages = await self._said.take(0 if self._ended else POLL_SECONDS)
        return msgspec.msgpack.encode([messages, self._ended])

    async def cancel(self, nothing: bytes = b"") -> bytes:
        if self._child is not None:
            self._child.kill("was ended")
            await self._child.wait()
        return b""

    async def _start(self, asked: WorkerOrder) -> None:
        home = await anyio.to_thread.run_sync(node_home)
        folder = home / f"worker-{uuid4().hex}"
        script = await anyio.to_thread.run_sync(unpack, Code(asked.start.target, asked.archive), folder)
        lock = _locked(folder / "log")
        self._child = await start_child(
            "mlpkit.serving",
            on_lines=self._take_lines,
            process=asked.start.name,
            environment=dict.fromkeys(THREAD_SETTINGS, str(asked.wanted.cpus)),
            folder=script.folder,
        )
        self._channel = await AsyncChannel.connect(self._child.channel, self._said.add, lambda: None)
        settings = encode_settings(decode_settings(asked.start.settings).with_options(home=home))
        start = msgspec.structs.replace(asked.start, sys_path=list(script.sys_path), settings=settings)
        self._channel.send(encode(start))
        self._watching = asyncio.create_task(self._watch(self._child, folder, lock))

    def _take_lines(self, lines: list[LogLine]) -> None:
        self._said.add([encode(Logged(line)) for line in lines])

    async def _watch(self, child: Child, folder: Path, lock: IO[bytes]) -> None:
        with lock:
            end = await child.wait()
            await anyio.to_thread.run_sync(partial(shutil.rmtree, folder, ignore_errors=True))
        self._ended = end.words
        self._said.add([])


def _locked(file: Path) -> IO[bytes]:
    """A file with a lock, which says that its folder is used."""
    opened = file.open("ab")
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return opened


# --- The messenger ---------------------------------------------------------------------------------------------------


class _Messenger:
    """Passes messages on between the server and one actor."""

    def __init__(self) -> None:
        self._asked = _Inbox()
        self._closed = asyncio.Event()
        self._node = ""

    async def serve(self) -> None:
        """Ends this process when the worker or the server is gone."""
        channel = await AsyncChannel.connect(channel_of_child(), self._asked.add, self._closed.set)
        serving = asyncio.create_task(self._serve(channel))
        closed = asyncio.create_task(self._closed.wait())
        await asyncio.wait([serving, closed], return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            channel.send(encode(Broken(await serving)))
            # Until the server has read it.
            channel.close()
            await asyncio.wait([closed], timeout=_CLOSE_SECONDS)
        # Ray ends the actor of a driver that ends. A thread may still wait for the cluster.
        os._exit(0)

    async def _serve(self, channel: AsyncChannel) -> str:
        """Has a worker on a node; gives how that ended."""
        first, *rest = await self._asked.take()
        self._asked.add(rest)
        order = _order_decoder.decode(first)
        try:
            await _connected()
            actor = await self._place(order, channel)
            problem = await _answer(actor.start.remote(bytes(first)), _START_SECONDS)
            if problem:
                return f"could not be started on node {self._node}: {problem.decode()}"
            channel.send(encode(Placed(self._node)))
            putting = asyncio.create_task(self._put(actor))
            taking = asyncio.create_task(self._take(actor, channel))
            ended, _ = await asyncio.wait([putting, taking], return_when=asyncio.FIRST_COMPLETED)
            return f"{ended.pop().result()} on node {self._node}"
        except DriverError as error:
            return self._loss(error)

    async def _place(self, order: WorkerOrder, channel: AsyncChannel) -> Any:
        """An actor on a node with what is wanted.

        Raises:
            DriverError: there is none within `MLPKIT_PLACE_TIMEOUT`; says why.
        """
        limit = decode_settings(order.start.settings).place_timeout
        wanted = order.wanted
        words = resources_in_words(None, wanted.gpus, wanted.memory)
        end = time.monotonic() + limit
        actor = new_actor(WorkerActor, wanted)
        hello = asyncio.create_task(_answer(actor.hello.remote(), None))
        said = ""
        while not (await asyncio.wait([hello], timeout=_LOOK))[0]:
            outlook = await asyncio.to_thread(look, wanted)
            why = {
                "none": f"there is no node with {words}: {outlook.text}",
                "busy": f"all nodes with {words} are in use",
                "free": f"Ray starts no actor, although there is a node with {words}",
            }[outlook.chance]
            if time.monotonic() > end:
                raise DriverError("other", f"{why} (MLPKIT_PLACE_TIMEOUT, {limit:g} s)")
            if why != said and outlook.chance != "free":
                said = why
                channel.send(encode(Logged(LogLine(time.time(), "INFO", f"waits: {why}", process=order.start.name))))
        node = msgspec.msgpack.decode(hello.result(), type=ActorNode)
        if problem := other_version(node):
            raise DriverError("other", problem)
        self._node = node.node
        return actor

    async def _put(self, actor: Any) -> str:
        # One call after the other, because Ray keeps no order: what comes meanwhile travels together.
        while True:
            messages = await self._asked.take()
            await _answer(actor.put.remote(msgspec.msgpack.encode(messages)), _SILENCE)

    async def _take(self, actor: Any, channel: AsyncChannel) -> str:
        while True:
            news = _news_decoder.decode(await _answer(actor.take.remote(), _SILENCE))
            for message in news.messages:
                channel.put(message)
            channel.flush()
            if news.ended:
                return news.ended

    def _loss(self, error: DriverError) -> str:
        """What has happened to a worker whose actor is lost."""
        match error.problem:
            case "node":
                return f"lost its node {self._node}, which died"
            case "memory":
                return f"was killed by Ray, because node {self._node} ran out of memory: reserve enough with memory="
            case "unavailable":
                return f"lost its node {self._node}, which does not answer any more"
            case "actor":
                return f"lost its actor on node {self._node}: {error}"
            case "refused" | "unreachable":
                return f"cannot use the Ray cluster: {error}"
            case _:
                return str(error)


async def _connected() -> None:
    """Becomes a driver of the cluster.

    Raises:
        DriverError: the cluster cannot be used.
    """
    try:
        # A thread, because Ray waits for a long time for a cluster that is gone.
        await asyncio.wait_for(asyncio.to_thread(connect, _NAMESPACE), _CONNECT_SECONDS)
    except asyncio.TimeoutError as error:
        raise DriverError("unreachable", f"it did not answer within {_CONNECT_SECONDS:g} s") from error


async def _answer(reference: Any, within: float | None) -> bytes:
    """What an actor answers.

    Raises:
        DriverError: it is lost, or does not answer in time.
    """
    try:
        return bytes(await asyncio.wait_for(reference, within))
    except asyncio.TimeoutError as error:
        raise DriverError("unavailable", f"there was no answer within {within:g} s") from error
    except Exception as error:
        raise driver_error(error) from error


def main() -> None:
    """Runs the messenger of the worker that has started this process."""
    leave_signals_to_the_server()
    asyncio.run(_Messenger().serve())


if __name__ == "__main__":
    # By its name: the actor's class must be one that nodes can import.
    from mlpkit.serving import ray

    ray.main()
