"""`POST /predict`, the hot path: a plain ASGI callable ahead of the router.

The server decodes only the envelope: `features`, `params` and the answer stay JSON on their way to the worker and back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mlpkit.injection import NULL
from mlpkit.processes import LONG
from mlpkit.web.answers import Answer, other_method
from mlpkit.web.body import read_body
from mlpkit.web.callers import Callers
from mlpkit.web.protocol import PREDICT, caller_uuid, check, check_no_null, is_json, json_values, read_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from mlpkit.serving import Prediction, Settle
    from mlpkit.web.exchange import Exchange
    from mlpkit.web.parts import Parts
    from mlpkit.web.protocol import Value

_HEAD, _TAIL = b'{"status": "success", "data": {"predictions": ', b"}}"
_OBJECT = ord("{")
_LONGEST_ID = 64
_FEW = 32
"""So many letters are looked at one by one: beyond, the plain search is as fast."""


class Envelope(msgspec.Struct):
    """A predict request of the usual shape; whatever else fits the protocol takes the general way."""

    model_id: str
    features: msgspec.Raw = NULL
    params: msgspec.Raw = NULL
    uuid: str | None = None

    def is_plain(self) -> bool:
        """Whether nothing is left to be checked but nulls inside `features`."""
        features, params = self.features, self.params
        return (
            len(self.model_id) <= _LONGEST_ID
            and (features == NULL or memoryview(features)[0] == _OBJECT)
            and (params == NULL or memoryview(params)[0] == _OBJECT)
        )

    def to_ask(self) -> tuple[str, bytes | memoryview, bytes]:
        """What a model is asked: its id, `features` and `params` as JSON; long `features` keep the body alive."""
        features = memoryview(self.features)
        held = features if len(features) > LONG else bytes(features)
        return self.model_id, held, bytes(self.params)


_envelope = msgspec.json.Decoder(Envelope)


class Predict:
    """Answers a prediction: the envelope in, the worker's bytes out."""

    def __init__(self, parts: Parts) -> None:
        self._models, self.limit = parts.models, parts.settings.max_body
        self._callers = Callers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["exchange"]
        answer = other_method(scope["method"], "POST")
        if answer is None:
            answer = Answer(enclosed(await self._predictions(scope, receive, exchange)))
        await exchange.send(answer, send)

    def plain(self, exchange: Exchange, body: bytes) -> Envelope | None:
        """The envelope of a request of the usual shape, fully checked; None where it has another.

        Raises:
            ArgumentError: a null in `features`.
        """
        if len(body) > self.limit or exchange.scope["query_string"] or not is_json(exchange.content_type):
            return None
        request = _plain(body)
        if request is not None:
            if request.uuid is not None:
                exchange.adopt(request.uuid)
            if (b"null" in body if len(body) <= LONG else _holds_null(body)) and request.features != NULL:
                check_no_null("features", request.features)
        return request

    def begin(self, exchange: Exchange, request: Envelope, settle: Settle) -> Prediction:
        """Begins a prediction, whose outcome `settle` is told.

        Raises:
            MlpkitError: what `Models.begin` refuses.
        """
        return self._models.begin(*request.to_ask(), exchange.caller_uuid, settle)

    async def _predictions(self, scope: Scope, receive: Receive, exchange: Exchange) -> bytes:
        if scope["query_string"] or not is_json(exchange.content_type):
            request = _general(await read_values(scope, receive, exchange.content_type, self.limit), exchange)
        else:
            body = await read_body(receive, self.limit)
            request = self.plain(exchange, body) or _general(json_values(body), exchange)
        future = self._models.predict(*request.to_ask(), exchange.caller_uuid)
        self._callers.enter(future, receive)
        try:
            return await future
        finally:
            self._callers.leave(future)


def enclosed(predictions: bytes) -> bytes:
    """The body of the answer that holds these predictions."""
    return b"".join((_HEAD, predictions, _TAIL))


def _plain(body: bytes) -> Envelope | None:
    """The envelope of a request of the usual shape, else None."""
    try:
        request = _envelope.decode(body)
        if not body.isascii():
            # What is left raw was not looked at: broken UTF-8 in it ends here, not in the worker.
            body.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return request if request.is_plain() else None


def _holds_null(body: bytes) -> bool:
    """Whether the word stands anywhere in a long body: much faster than a plain search where it has few letters `n`."""
    place = -1
    for _ in range(_FEW):
        place = body.find(b"n", place + 1)
        if place < 0 or body.startswith(b"null", place):
            return place >= 0
    return body.find(b"null", place) >= 0


def _general(values: Mapping[str, Value], exchange: Exchange) -> Envelope:
    exchange.adopt(caller_uuid(values))
    arguments = check(PREDICT, values)
    return Envelope(arguments.text("model_id"), arguments.object("features"), arguments.object("params"))
