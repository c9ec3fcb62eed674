"""`POST /predict`: from a request's body to its response.

The server decodes only the envelope. `features`, `params` and the answer stay JSON on their way to the worker and back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from mlpkit.injection import NULL
from mlpkit.log import request_id
from mlpkit.processes import LONG
from mlpkit.training import LONGEST_ID
from mlpkit.web.protocol import PREDICT, caller_uuid, check, check_no_null, is_json, read_values
from mlpkit.web.request import ClientGone, HttpResponse, StreamedResponse, body_too_large, failed, until_gone

if TYPE_CHECKING:
    from starlette.types import Receive

    from mlpkit.serving import OnPart, Outcome, PendingPrediction
    from mlpkit.web.request import Header, RequestContext
    from mlpkit.web.routes import Dependencies, Request

T = TypeVar("T")
_Respond = Callable[[HttpResponse], None]
"""Takes the response to a request; called once, on the event loop."""

_HEAD = b'{"status": "success", "data": {"predictions": '
_TAIL = b"}}"
_SUCCESS = b'{"status": "success"}'
_OBJECT = ord("{")
_UNWATCHED_SECONDS = 0.25
"""How long a caller may wait before it is watched: a watch costs a task, and most answers are faster."""
_FEW = 32
"""How many letters `n` are looked at one by one; beyond that the plain search is as fast."""


class Envelope(msgspec.Struct):
    """A request of the usual shape.

    All others that fit the protocol are read field by field.
    """

    model_id: str
    features: msgspec.Raw = NULL
    params: msgspec.Raw = NULL
    uuid: str | None = None


_decode_envelope = msgspec.json.Decoder(Envelope).decode


class PredictEndpoint:
    """Answers predictions: the connection's (`answer`) and those of any ASGI server (`predict`)."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._models = dependencies.models
        self._settings = dependencies.settings
        self.limit = dependencies.settings.max_body

    def answer(
        self, context: RequestContext, body: bytes, respond: _Respond, on_part: OnPart | None = None
    ) -> PendingPrediction | None:
        """Answers a request that was admitted; never raises.

        `respond` always gets a response, even if the prediction fails. None if it has it already. `on_part` is told the
        parts of the answer before.
        """

        pending: PendingPrediction | None = None

        def on_outcome(outcome: Outcome) -> None:
            nonlocal pending
            answered = pending
            # The prediction holds this function, and the body: held by it in turn, it would stay in memory.
            pending = None
            if isinstance(outcome, bytes):
                headers = _timing(answered) if self._settings.server_timing else ()
                respond(HttpResponse(b"".join((_HEAD, outcome, _TAIL)), headers=headers))
            else:
                respond(failed(context, outcome, self._settings))

        try:
            envelope = self._read(context, body)
            context.subject["model_id"] = envelope.model_id
            features = memoryview(envelope.features)
            bound = request_id.set(context.request_id)
            try:
                pending = self._models.predict(
                    envelope.model_id,
                    # A view of long features saves a copy; a view of short ones would keep the whole body in memory.
                    features if len(features) > LONG else bytes(features),
                    bytes(envelope.params),
                    context.caller_uuid,
                    on_outcome,
                    on_part,
                    context.traceparent,
                )
            finally:
                request_id.reset(bound)
            return pending
        except Exception as error:
            respond(failed(context, error, self._settings))
            return None

    async def predict(self, request: Request) -> HttpResponse | StreamedResponse:
        """Asks a loaded model for its predictions.

        If the caller accepts server-sent events, it gets the parts of the answer as they come.
        """
        if request.context.wants_parts:
            return await self._first_part(request)
        answered: asyncio.Future[HttpResponse] = asyncio.get_running_loop().create_future()

        def respond(response: HttpResponse) -> None:
            if not answered.done():
                answered.set_result(response)

        pending = self.answer(request.context, request.body, respond)
        try:
            return await _unless_gone(answered, request.receive)
        finally:
            if pending is not None:
                pending.give_up()

    async def _first_part(self, request: Request) -> HttpResponse | StreamedResponse:
        """The response, once its first part or a failure is there."""
        begun: asyncio.Future[HttpResponse | None] = asyncio.get_running_loop().create_future()
        waiting: asyncio.Queue[bytes | HttpResponse] = asyncio.Queue()

        def on_part(part: bytes) -> None:
            waiting.put_nowait(part)
            if not begun.done():
                begun.set_result(None)

        def respond(response: HttpResponse) -> None:
            waiting.put_nowait(response)
            if not begun.done():
                begun.set_result(response)

        pending = self.answer(request.context, request.body, respond, on_part)
        try:
            response = await _unless_gone(begun, request.receive)
        except BaseException:
            if pending is not None:
                pending.give_up()
            raise
        if response is not None:
            if response.word != "success":
                return response
            # A predict that does not yield: its whole answer is one part.
            part = response.body.removeprefix(_HEAD).removesuffix(_TAIL)
            waiting = asyncio.Queue()
            waiting.put_nowait(part)
            waiting.put_nowait(response)
        return StreamedResponse(_parts(request.context, waiting, pending))

    def _read(self, context: RequestContext, body: bytes) -> Envelope:
        """The fields of a request, checked.

        Raises:
            ArgumentError: they do not fit the protocol.
        """
        if len(body) > self.limit:
            raise body_too_large(self.limit)
        envelope = None if context.query_string or not is_json(context.content_type) else _plain(body)
        if envelope is None:
            values = read_values(context, body, PREDICT)
            context.adopt(caller_uuid(values))
            arguments = check(PREDICT, values)
            return Envelope(arguments.text("model_id"), arguments.object("features"), arguments.object("params"))
        if envelope.uuid is not None:
            context.adopt(envelope.uuid)
        if (b"null" in body if len(body) <= LONG else _has_null(body)) and envelope.features != NULL:
            check_no_null("features", envelope.features)
        return envelope


def _plain(body: bytes) -> Envelope | None:
    """The envelope of a request of the usual shape, else None.

    Nothing is left to be checked but nulls inside `features`.
    """
    try:
        envelope = _decode_envelope(body)
        if not body.isascii():
            # What is left raw was not decoded: broken UTF-8 in it must end here, not in the worker.
            body.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    features = envelope.features
    params = envelope.params
    fits = (
        len(envelope.model_id) <= LONGEST_ID
        and (features == NULL or memoryview(features)[0] == _OBJECT)
        and (params == NULL or memoryview(params)[0] == _OBJECT)
    )
    return envelope if fits else None


def _timing(pending: PendingPrediction | None) -> tuple[Header, ...]:
    """Where the time of a prediction went, in milliseconds.

    Format: W3C, "Server Timing".
    """
    if pending is None or pending.timing is None:
        return ()
    sent_at, predict = pending.timing
    parts = {"wait": sent_at - pending.since, "ipc": time.monotonic() - sent_at - predict, "predict": predict}
    value = ", ".join(f"{name};dur={seconds * 1e3:.2f}" for name, seconds in parts.items())
    return ((b"server-timing", value.encode()),)


def _has_null(body: bytes) -> bool:
    """Whether a long body contains `null` anywhere.

    Much faster than a plain search if the body has few letters `n`.
    """
    place = -1
    for _ in range(_FEW):
        place = body.find(b"n", place + 1)
        if place < 0 or body.startswith(b"null", place):
            return place >= 0
    return body.find(b"null", place) >= 0


async def _parts(
    context: RequestContext, waiting: asyncio.Queue[bytes | HttpResponse], pending: PendingPrediction | None
) -> AsyncGenerator[bytes, None]:
    """The parts of an answer as events, then `end`."""
    try:
        while isinstance(content := await waiting.get(), bytes):
            yield b"event: part\ndata: %b\n\n" % content
        context.word = content.word
        yield b"event: end\ndata: %b\n\n" % (_SUCCESS if content.word == "success" else content.body)
    finally:
        if pending is not None:
            pending.give_up()


async def _unless_gone(answered: asyncio.Future[T], receive: Receive) -> T:
    """The response, when it is ready.

    Raises:
        ClientGone: the caller has closed the connection before.
    """
    await asyncio.wait([answered], timeout=_UNWATCHED_SECONDS)
    if not answered.done():
        gone = asyncio.create_task(until_gone(receive))
        either: list[asyncio.Future[Any]] = [answered, gone]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not answered.done():
            raise ClientGone
    return answered.result()
