"""The messages between the server and a worker: msgpack arrays.

`features`, `params` and answers travel as the JSON bytes that came in and go out: only the worker decodes them.
Every request has an `id` that its `Reply` repeats; several are in flight at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from mlpkit import errors
from mlpkit.log import LogLine

PARALLEL_LOADS = 8
"""How many loads or hooks run in a worker in parallel: more would wait there while their time limits run."""


class StartWorker(msgspec.Struct, array_like=True, tag=0):
    """The first message to a worker: what to import, and how.

    `settings` is made by `encode_settings`.

    `single`: it gets one model, whose handlers run in the main thread.
    """

    target: str
    sys_path: list[str]
    settings: bytes
    name: str
    single: bool = False


class Load(msgspec.Struct, array_like=True, tag=1):
    """Load a model.

    `extend` is JSON, `uuid` what the caller sent, `log_uuid` what the log shows, `traceparent` the caller's trace.
    `failures` says how often it has failed before, without anybody asking for it: the log has the traceback already.
    `gated`: it is refused if it is below its gate.
    """

    id: int
    algorithm: str
    model_id: str
    model_path: str | None
    extend: bytes
    uuid: str | None
    log_uuid: str
    failures: int = 0
    traceparent: str = ""
    gated: bool = False


class Unload(msgspec.Struct, array_like=True, tag=2):
    """Drop a model."""

    id: int
    model_id: str
    log_uuid: str
    traceparent: str = ""


# msgspec encodes anything that holds bytes, but must be told what to decode.
if TYPE_CHECKING:
    Json = bytes | memoryview
else:
    Json = memoryview
"""JSON that is encoded from anything that holds bytes, and decoded to a view of the message: it may be long."""


class Item(msgspec.Struct, array_like=True, kw_only=True):
    """One request of a batch; `features` and `params` are JSON.

    `features` is the last field: long ones follow the head of a message as they are.

    `parts`: the caller wants the parts of the answer as they come.
    """

    params: bytes
    uuid: str | None
    log_uuid: str
    traceparent: str = ""
    parts: bool = False
    features: Json


class Predict(msgspec.Struct, array_like=True, tag=3):
    """Predict with one model.

    The items are a batch, or run one after the other if the handler takes no batches.
    """

    id: int
    model_id: str
    items: list[Item]


class Cancel(msgspec.Struct, array_like=True, tag=6):
    """Nobody waits any more for the parts of this `Predict`."""

    id: int
    model_id: str


class RunHook(msgspec.Struct, array_like=True, tag=4):
    """Call the user's `status`, `model_id` or `delete`. Values of `fields` are JSON."""

    id: int
    algorithm: str
    hook: str
    fields: dict[str, bytes]
    log_uuid: str
    traceparent: str = ""


class Stop(msgspec.Struct, array_like=True, tag=5):
    """Close the models, run `on_stop`, and end."""


Work = Load | Unload | Predict | RunHook
"""What the server asks of a worker. A `Reply` answers it."""
ServerMessage = StartWorker | Work | Cancel | Stop


class Failure(msgspec.Struct, array_like=True):
    """Why a request failed.

    `error` names a class of `mlpkit.errors`, `text` is for people, `trace` the user's traceback.
    """

    error: str
    text: str
    trace: str = ""

    @classmethod
    def of(cls, error: errors.MlpkitError) -> Failure:
        """The failure that describes an error."""
        return cls(type(error).__name__, str(error), getattr(error, "trace", ""))

    def to_error(self) -> errors.MlpkitError:
        """The error again.

        One that this side does not know becomes a plain `MlpkitError`.
        """
        known = getattr(errors, self.error, errors.MlpkitError)
        error: errors.MlpkitError = known.__new__(known)
        Exception.__init__(error, self.text)
        error.trace = self.trace
        return error


Result = bytes | Failure
"""The result of one item: the answer as JSON, or why there is none."""


class Reply(msgspec.Struct, array_like=True, tag=0):
    """The results of a request, one per item.

    `seconds` is what the user's code took.

    With `final=False` these are parts of the answers; further replies with the same `id` follow.
    """

    id: int
    results: list[Result]
    seconds: float = 0.0
    final: bool = True


class LoadResult(msgspec.Struct, frozen=True):
    """What a worker knows of a loaded model, as JSON.

    `growth` is by how many bytes it grew, None if not known. `evaluation` is the summary in the model's manifest,
    `size` the bytes of the files that the manifest lists.
    """

    growth: int | None = None
    evaluation: dict[str, Any] = {}
    size: int = 0


class Ready(msgspec.Struct, array_like=True, tag=1):
    """The script is imported and `on_start` has run: the worker takes requests."""


class Broken(msgspec.Struct, array_like=True, tag=2):
    """The worker could not start, or is lost.

    It ends after this message.
    """

    text: str


class Logged(msgspec.Struct, array_like=True, tag=3):
    """A line for the log."""

    line: LogLine


class Placed(msgspec.Struct, array_like=True, tag=4):
    """A worker on a Ray cluster is starting on this node."""

    node: str


WorkerMessage = Reply | Ready | Broken | Logged | Placed

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
_BIN32 = b"\xc6"
"""How msgpack begins bytes with a length of 32 bits."""


def parts_of(request: Predict) -> tuple[bytes | memoryview, ...]:
    """The message of a request in parts.

    Long `features` of a single item are the last part, which is not copied.
    """
    if len(request.items) > 1:
        return (encode(request),)
    (item,) = request.items
    empty = msgspec.structs.replace(item, features=b"")
    head = encode(Predict(request.id, request.model_id, [empty]))
    # The last two bytes of it are those of the empty `features`.
    return (head[:-2] + _BIN32 + len(item.features).to_bytes(4, "big"), item.features)


decode_server_message: Callable[[bytes | memoryview], ServerMessage] = msgspec.msgpack.Decoder(ServerMessage).decode
"""A message of the server."""
decode_worker_message: Callable[[bytes | memoryview], WorkerMessage] = msgspec.msgpack.Decoder(WorkerMessage).decode
"""A message of a worker."""
