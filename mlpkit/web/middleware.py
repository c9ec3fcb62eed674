"""The outermost layer, pure ASGI: uuid, access log, token, CORS, refusals, and a clear answer to every failure."""

from __future__ import annotations

import hmac
from random import getrandbits
from time import perf_counter
from typing import TYPE_CHECKING

from loguru import logger

from mlpkit.errors import MlpkitError, Overloaded, ServiceStopping, Unauthorized
from mlpkit.log import access_line, printable_uuid, request_uuid
from mlpkit.web.answers import Answer, failure
from mlpkit.web.body import ClientGone

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mlpkit.web.metrics import RequestCounts
    from mlpkit.web.parts import Parts

_CLIENT_CLOSED = 499
_PREFLIGHT = (
    (b"access-control-allow-methods", b"*"),
    (b"access-control-max-age", b"86400"),
    (b"access-control-allow-headers", b"Authorization,Origin,Content-Type,Accept"),
)


class Exchange:
    """One request and its answer, as the layers pass them on in `scope["exchange"]`.

    `caller_uuid` is the uuid that the caller sent, or None; `uuid` the one in the log, which is never missing.
    """

    __slots__ = ("_headers", "_send", "caller_uuid", "content_type", "route", "sent", "status", "uuid", "word")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._headers: list[tuple[bytes, bytes]] = []
        self.caller_uuid: str | None = None
        self.uuid = ""
        self.content_type = ""
        self.route, self.status, self.sent, self.word = "other", 0, 0, ""

    def adopt(self, uuid: str | None) -> None:
        """Makes the uuid of the request's body, where it has one, the uuid of the request."""
        if uuid is not None:
            self.caller_uuid = uuid
            if uuid:
                self.uuid = printable_uuid(uuid)
                request_uuid.set(self.uuid)

    def add_headers(self, *headers: tuple[bytes, bytes]) -> None:
        """Adds headers to the answer, whoever sends it."""
        self._headers += headers

    async def send(self, message: Message) -> None:
        """Sends the answer's next message, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"].append((b"x-request-id", self.uuid.encode("ascii", "replace")))
            if self._headers:
                message["headers"].extend(self._headers)
        else:
            self.sent += len(message.get("body", b""))
        await self._send(message)


class Edge:
    """The application's outside: what enters gets a uuid and a line in the log, what leaves is a clear answer."""

    def __init__(self, parts: Parts, counts: RequestCounts, *, predict: ASGIApp, router: ASGIApp) -> None:
        settings = parts.settings
        self._settings, self._log, self._state = settings, parts.log, parts.state
        self._predict, self._router, self._counts = predict, router, counts
        self._predict_path = settings.api_prefix + "predict"
        self._cancel_paths = ("/cancel", settings.api_prefix + "cancel")
        self._token = settings.token.encode()
        self._any_origin = "*" in settings.cors_origins
        self._origins = frozenset(origin.rstrip("/").encode() for origin in settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _refuse_other(scope, receive, send)
            return
        started = perf_counter()
        exchange = Exchange(send)
        scope["exchange"] = exchange
        reset = request_uuid.set("-")
        try:
            await self._answer(scope, receive, exchange)
        finally:
            seconds = perf_counter() - started
            self._counts.add(exchange.route, exchange.word or "success", seconds)
            if self._settings.access_log:
                self._write_line(scope, exchange, seconds)
            request_uuid.reset(reset)

    async def _answer(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        try:
            self._admit(scope, exchange)
            if scope["path"] == self._predict_path:
                exchange.route = "predict"
                await self._predict(scope, receive, exchange.send)
            else:
                await self._router(scope, receive, exchange.send)
        except ClientGone:
            exchange.status = _CLIENT_CLOSED
        except Exception as error:
            if not isinstance(error, MlpkitError):
                logger.exception("{} {} failed inside mlpkit", scope["method"], _shown_path(scope))
            if exchange.status == 0:
                answer = failure(error, self._settings)
                exchange.word = answer.word
                await answer.send(exchange.send)

    def _admit(self, scope: Scope, exchange: Exchange) -> None:
        """Takes from the headers what this layer needs, and refuses what may not enter."""
        authorization = origin = b""
        for name, value in scope["headers"]:
            if name == b"content-type":
                exchange.content_type = value.decode("latin-1")
            elif name == b"x-request-id":
                exchange.adopt(value.decode("latin-1").strip() or None)
            elif name == b"authorization":
                authorization = value
            elif name == b"origin":
                origin = value
        if not exchange.uuid:
            exchange.uuid = f"{getrandbits(128):032x}"
            request_uuid.set(exchange.uuid)
        if self._origins:
            self._allow_origin(scope, origin, exchange)
        if self._token:
            self._check_token(scope, authorization)
        if self._state.phase != "ready":
            if self._state.phase == "draining":
                # The next request on this connection would meet a closed one.
                exchange.add_headers((b"connection", b"close"))
            self._refuse_new_work(scope)

    def _allow_origin(self, scope: Scope, origin: bytes, exchange: Exchange) -> None:
        exchange.add_headers((b"vary", b"Origin"))
        if origin and (self._any_origin or origin in self._origins):
            exchange.add_headers((b"access-control-allow-origin", origin))
            if scope["method"] == "OPTIONS":
                exchange.add_headers(*_PREFLIGHT)

    def _check_token(self, scope: Scope, authorization: bytes) -> None:
        # A browser sends no credentials with a preflight, and a probe of the orchestrator has none.
        if scope["method"] == "OPTIONS" or scope["path"].startswith("/health/"):
            return
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            raise Unauthorized("a valid token is needed: Authorization: Bearer <MLPKIT_TOKEN>")

    def _refuse_new_work(self, scope: Scope) -> None:
        if scope["method"] != "POST" or scope["path"] in self._cancel_paths:
            return
        if self._state.phase == "draining":
            raise ServiceStopping("the service is stopping and takes no new work")
        raise Overloaded("the service is starting: try again in a moment")

    def _write_line(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        word = f" {exchange.word}" if exchange.word else ""
        text = (
            f"{scope['method']} {_shown_path(scope)} {exchange.status}{word} {seconds * 1e3:.1f} ms {exchange.sent} B"
        )
        self._log.write_soon(access_line("server", exchange.uuid, text))


async def send_answer(scope: Scope, answer: Answer, send: Send) -> None:
    """Sends an answer, and notes its `status` word for the access log."""
    exchange: Exchange = scope["exchange"]
    exchange.word = "" if answer.word == "success" else answer.word
    await answer.send(send)


async def _refuse_other(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1003, "reason": "there are no websockets here"})


def _shown_path(scope: Scope) -> str:
    # The path as it was sent, still percent-encoded: a decoded one could hold line breaks.
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    text = raw.partition(b"?")[0][:256].decode("latin-1")
    return text if text.isprintable() else repr(text)
