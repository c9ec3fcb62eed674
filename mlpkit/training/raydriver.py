"""The process that speaks to Ray, and the actor on a node.

The driver is a process of its own, because Ray ends its driver when the head of the cluster was away for a minute: that
must not end a service that answers predictions. It does what a `DriverCall` says, and keeps one actor for each place.
When it ends, Ray ends its actors.

The actor (`JobActor`) runs its job as the service would. It ends the job by itself if nobody has asked for events for a
minute: a node that is cut off from the cluster must not run a job that has been started again elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import re
import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from mlpkit import __version__
from mlpkit.errors import JobConflict, MlpkitError
from mlpkit.processes import (
    AsyncChannel,
    Message,
    channel_of_child,
    gpus_in_words,
    leave_signals_to_the_server,
    prepare,
)
from mlpkit.training.progress import StopReason
from mlpkit.training.remote import RemoteRun

POLL_SECONDS = 10.0
"""How long the actor waits for the next event before it answers that there is none."""
LEASE_SECONDS = 60.0
"""After this time without a question for events the actor ends its job."""
_CANCEL_SECONDS = 10.0
_EARLIER_SECONDS = 60.0
"""How long actors of an earlier driver of the service may take to end."""
_STEP = 0.1

Problem = Literal["", "refused", "unreachable", "lost", "unavailable", "node", "memory", "actor", "taken", "other"]
"""Why a request could not be done. After `unavailable` it may be asked again; `refused` will not change by itself."""


class DriverCall(msgspec.Struct, frozen=True, array_like=True):
    """What the service asks of the driver.

    `connect`, `look`, `open` and `close` are the driver's own; other methods are those of the actor at the place.
    """

    number: int
    method: str
    place: str = ""
    argument: bytes = b""


class DriverAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a call: a value, or a problem."""

    number: int
    value: bytes = b""
    problem: Problem = ""
    text: str = ""


class Resources(msgspec.Struct, frozen=True):
    """What a place has; `memory` is in bytes."""

    cpus: int
    gpus: float
    memory: int | None


class Outlook(msgspec.Struct, frozen=True):
    """Whether a place can be had: now, later, or never.

    It is later if nodes are busy. `text` says what the nodes have.
    """

    chance: Literal["free", "busy", "none"]
    text: str


class ActorNode(msgspec.Struct, frozen=True):
    """What a node says of itself.

    Other versions of mlpkit must understand it, so only fields with defaults may be added.
    """

    node: str
    mlpkit: str
    python: str


class DriverError(Exception):
    """A request could not be done; `problem` is the kind."""

    def __init__(self, problem: Problem, text: str) -> None:
        super().__init__(text)
        self.problem = problem


def other_version(node: ActorNode) -> str:
    """What is wrong with the node, or an empty string."""
    if node.mlpkit == __version__:
        return ""
    return f"node {node.node} has mlpkit {node.mlpkit}, this service has {__version__}: both must be the same"


def resources_in_words(cpus: int | None, gpus: float, memory: int | None) -> str:
    """What is asked for, such as `2 GPUs and 4 CPUs`."""
    found = []
    if gpus:
        found.append(gpus_in_words(gpus))
    if cpus or not found:
        found.append(f"{cpus or 1} CPU{'s' * ((cpus or 1) != 1)}")
    if memory:
        found.append(f"{memory / 2**30:.1f} GiB of memory")
    return " and ".join(found)


_request_decoder = msgspec.msgpack.Decoder(DriverCall)


# --- The actor -------------------------------------------------------------------------------------------------------


class NodeActor:
    """An actor that has a process on its node.

    Its methods take and give bytes: nothing of the author's is pickled.
    """

    def __init__(self) -> None:
        self._lease: asyncio.Task[None] | None = None
        self._asked = time.monotonic()

    async def hello(self) -> bytes:
        """Who this is; the first answer says that the actor is ready."""
        import ray

        # It imports what the process needs, while the order is on its way.
        prepare()
        self._lease = asyncio.create_task(self._end_if_forgotten())
        node = f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"
        return msgspec.msgpack.encode(ActorNode(node, __version__, platform.python_version()))

    async def cancel(self, nothing: bytes = b"") -> bytes:
        """Ends the process, and all that it has started."""
        raise NotImplementedError

    async def _end_if_forgotten(self) -> None:
        while (left := self._asked + LEASE_SECONDS - time.monotonic()) > 0:  # noqa: ASYNC110 - a clock has no event
            await asyncio.sleep(left)
        await self.cancel()
        os._exit(1)


class JobActor(NodeActor):
    """Runs one job on a node."""

    def __init__(self) -> None:
        super().__init__()
        self._run: RemoteRun | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, order: bytes) -> bytes:
        """Starts the job; a second call changes nothing."""
        if self._run is None:
            self._run = RemoteRun(order)
            self._task = asyncio.create_task(self._run.run())
        return b""

    async def events(self, after: bytes) -> bytes:
        """The events after this number; waits a while for the first."""
        self._asked = time.monotonic()
        assert self._run is not None
        events = await self._run.take(int(after), POLL_SECONDS)
        self._asked = time.monotonic()
        return msgspec.msgpack.encode(events)

    async def stop(self, reason: bytes) -> bytes:
        """Asks the job to save a checkpoint and end."""
        if self._run is not None:
            self._run.stop(msgspec.msgpack.decode(reason, type=StopReason))
        return b""

    async def cancel(self, nothing: bytes = b"") -> bytes:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._task
        return b""

    async def usage(self, nothing: bytes) -> bytes:
        """The process of the job, or None."""
        return msgspec.msgpack.encode(None if self._run is None else await self._run.usage())

    async def stack(self, nothing: bytes) -> bytes:
        """The stack of the job's process, or an error and its name."""
        try:
            if self._run is None:
                raise JobConflict("the job is starting: try again in a moment")
            return msgspec.msgpack.encode(("", await self._run.stack()))
        except MlpkitError as error:
            return msgspec.msgpack.encode((type(error).__name__, str(error)))


# --- The driver ------------------------------------------------------------------------------------------------------


class _Driver:
    """Does what the service asks, each call in a task."""

    def __init__(self) -> None:
        self._actors: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._channel: AsyncChannel | None = None

    async def serve(self) -> None:
        """Answers requests until the service is gone.

        It ends the process then.
        """
        self._channel = await AsyncChannel.connect(channel_of_child(), self._on_messages, self._ended.set)
        await self._ended.wait()
        # Ray ends the actors of a driver that ends. A thread may still wait for the cluster.
        os._exit(0)

    def _on_messages(self, messages: list[Message]) -> None:
        for message in messages:
            task = asyncio.create_task(self._answer(_request_decoder.decode(message)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: DriverCall) -> None:
        try:
            answer = DriverAnswer(request.number, await self._do(request))
        except DriverError as error:
            answer = DriverAnswer(request.number, b"", error.problem, str(error))
        except Exception as error:
            failure = driver_error(error)
            answer = DriverAnswer(request.number, b"", failure.problem, str(failure))
        if self._channel is not None:
            self._channel.send(msgspec.msgpack.encode(answer))

    async def _do(self, request: DriverCall) -> bytes:
        match request.method:
            case "connect":
                await asyncio.to_thread(connect, f"mlpkit-{request.place}")
                await self._end_earlier()
                return b""
            case "look":
                wanted = msgspec.msgpack.decode(request.argument, type=Resources)
                return msgspec.msgpack.encode(await asyncio.to_thread(look, wanted))
            case "open":
                return await self._open(request.place, msgspec.msgpack.decode(request.argument, type=Resources))
            case "close":
                self._close(request.place)
                return b""
            case method:
                actor = self._actors.get(request.place)
                if actor is None:
                    raise DriverError("actor", "its place is closed")
                return bytes(await getattr(actor, method).remote(request.argument))

    async def _open(self, place: str, wanted: Resources) -> bytes:
        try:
            actor = new_actor(JobActor, wanted, place)
        except ValueError as error:
            raise DriverError("taken", str(error)) from error
        self._actors[place] = actor
        return bytes(await actor.hello.remote())

    def _close(self, place: str) -> None:
        import ray

        actor = self._actors.pop(place, None)
        if actor is not None:
            ray.kill(actor)

    async def _end_earlier(self) -> None:
        """Ends the actors of an earlier driver of this service."""
        import ray

        deadline = time.monotonic() + _EARLIER_SECONDS
        while names := await asyncio.to_thread(ray.util.list_named_actors):
            for name in names:
                with contextlib.suppress(Exception):
                    earlier = ray.get_actor(name)
                    with contextlib.suppress(Exception):
                        await asyncio.wait_for(earlier.cancel.remote(), _CANCEL_SECONDS)
                    ray.kill(earlier)
            if time.monotonic() > deadline:
                raise DriverError(
                    "unreachable", f"jobs of an earlier run of this service do not end: {', '.join(names)}"
                )
            await asyncio.sleep(_STEP)


def connect(namespace: str) -> None:
    """Becomes a driver of the cluster; not in the main thread.

    There, Ray would let SIGTERM end the process. But that is for the server, which drains.

    Raises:
        DriverError: there is no cluster, or it has other versions.
    """
    import ray

    if os.environ.get("RAY_ADDRESS", "").startswith("ray://"):
        raise DriverError(
            "refused",
            "RAY_ADDRESS is the address of a Ray client (ray://): mlpkit must run on a node of the cluster, with "
            "RAY_ADDRESS=host:6379 or auto",
        )
    # It warns of the thread.
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
    try:
        ray.init(
            address="auto",
            namespace=namespace,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except RuntimeError as error:
        if "mismatch" in str(error):
            raise DriverError("refused", _mismatch(str(error))) from error
        raise DriverError("unreachable", _first_line(error)) from error
    except Exception as error:
        raise DriverError("unreachable", _first_line(error)) from error


def _mismatch(text: str) -> str:
    """Ray's report of different versions, as one sentence."""
    versions = [
        line.split(":")[-1].strip() for line in text.splitlines() if line.strip().startswith(("Ray:", "Python:"))
    ]
    if len(versions) == 4:
        return (
            f"the Ray cluster has Ray {versions[0]} and Python {versions[1]}, this service has Ray {versions[2]} and "
            f"Python {versions[3]}: both must be the same"
        )
    return " ".join(text.split())


def new_actor(kind: type[NodeActor], wanted: Resources, name: str | None = None) -> Any:
    """An actor that Ray will start on a node with these resources.

    It ends with its driver, and Ray never starts it again.

    Raises:
        ValueError: another actor has the name.
    """
    import ray

    options = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus, "memory": wanted.memory, "name": name}
    actor = ray.remote(kind)
    return actor.options(**options, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD").remote()


def look(wanted: Resources) -> Outlook:
    """Whether a node has what is wanted."""
    import ray
    from ray._private.state import available_resources_per_node

    def has(amounts: Mapping[str, float]) -> bool:
        return (
            amounts.get("CPU", 0) >= wanted.cpus
            and amounts.get("GPU", 0) >= wanted.gpus
            and amounts.get("memory", 0) >= (wanted.memory or 0)
        )

    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    most = {
        name: max((amounts.get(name, 0) for amounts in nodes.values()), default=0) for name in ("CPU", "GPU", "memory")
    }
    text = (
        f"the cluster has {len(nodes)} node{'s' * (len(nodes) != 1)}, with at most {most['CPU']:g} CPUs, "
        f"{most['GPU']:g} GPUs and {most['memory'] / 2**30:.1f} GiB of memory each"
    )
    large_enough = {number for number, amounts in nodes.items() if has(amounts)}
    if not large_enough:
        return Outlook("none", text)
    free = available_resources_per_node()
    return Outlook("free" if any(has(free.get(number, {})) for number in large_enough) else "busy", text)


def driver_error(error: Exception) -> DriverError:
    """What an error of Ray means."""
    text = str(error)
    if "failed to import on the worker" in text:
        # Ray puts the traceback of the node into the text; the reason is its last line.
        node = re.search(r"\bip=([^,)]+)", text)
        return DriverError(
            "other",
            f"node {node[1] if node else ''} needs mlpkit {__version__} and its packages, as this service has them: "
            f"{text.strip().splitlines()[-1].strip()}",
        )
    return DriverError(_kind_of(error), _first_line(error))


def _kind_of(error: Exception) -> Problem:
    from ray import exceptions

    # Ray has one class for the death of an actor; the reason is in its text, which mentions memory for each kill.
    text = str(error)
    if isinstance(error, exceptions.ActorUnavailableError):
        return "unavailable"
    if isinstance(error, exceptions.OutOfMemoryError) or "running low on memory" in text:
        return "memory"
    if isinstance(error, exceptions.NodeDiedError) or "node has died" in text:
        return "node"
    if isinstance(error, exceptions.ActorDiedError):
        return "actor"
    return "other"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def main() -> None:
    """Runs the driver of the service that has started this process."""
    leave_signals_to_the_server()
    asyncio.run(_Driver().serve())


if __name__ == "__main__":
    # By its name: the actor's class must be one that nodes can import.
    from mlpkit.training import raydriver

    raydriver.main()
