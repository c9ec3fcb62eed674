"""The outermost layer, pure ASGI: uuid, access log, token, CORS, refusals, and a clear answer to every failure."""

from __future__ import annotations

import hmac
from functools import lru_cache
from random import getrandbits
from time import time
from typing import TYPE_CHECKING

from mlpkit.errors import MalformedBody, MlpkitError, Overloaded, ServiceStopping, Unauthorized
from mlpkit.log import LogLine, logger, request_id
from mlpkit.web.answers import failure
from mlpkit.web.body import ClientGone
from mlpkit.web.exchange import Exchange

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from mlpkit.web.answers import Answer
    from mlpkit.web.metrics import RequestCounts
    from mlpkit.web.parts import Parts
    from mlpkit.web.predict import Predict

_READ = frozenset((b"content-type", b"content-encoding", b"x-request-id", b"authorization", b"origin"))
_WANTED = "mlpkit.wanted_headers"
_PROBES = ("health/live", "health/ready")
_OPEN_PATHS = ("/health/live", "/health/ready", "/docs")
"""Paths that need no token: none of them tells or changes anything of a model or a job."""
_CLIENT_CLOSED = 499
_PREFLIGHT = (
    (b"access-control-allow-methods", b"*"),
    (b"access-control-max-age", b"86400"),
    (b"access-control-allow-headers", b"Authorization,Origin,Content-Type,Accept"),
)


def route_path(scope: Scope) -> str:
    """The decoded path as the routes have it: without the root path that a server or a mount puts before it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


class Edge:
    """The application's outside: what enters gets a uuid and a line in the log, what leaves is a clear answer."""

    def __init__(self, parts: Parts, counts: RequestCounts, *, predict: Predict, router: ASGIApp) -> None:
        settings = parts.settings
        self._settings, self._log, self._state = settings, parts.log, parts.state
        self._access_log = settings.access_log != "off"
        self._unlogged = _PROBES if settings.access_log == "no-probes" else ()
        self.predict, self._router, self._counts = predict, router, counts
        self.predict_path = settings.api_prefix + "predict"
        self._cancel_paths = ("/cancel", settings.api_prefix + "cancel")
        self._token = settings.token.encode()
        self._any_origin = "*" in settings.cors_origins
        self._origins = frozenset(origin.rstrip("/").encode() for origin in settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _refuse_other(scope, receive, send)
            return
        exchange = scope["exchange"] = Exchange(scope)
        reset = request_id.set("-")
        try:
            self.admit(exchange)
            if route_path(scope) == self.predict_path:
                exchange.route = "predict"
                await self.predict(scope, receive, send)
            else:
                await self._router(scope, receive, send)
        except Exception as error:
            answer = self.answer_to(exchange, error)
            if answer is not None:
                await exchange.send(answer, send)
        finally:
            self.note(exchange, exchange.age())
            request_id.reset(reset)

    @property
    def is_open(self) -> bool:
        """Whether every request may enter."""
        return not self._token and self._state.phase == "ready"

    def answer_to(self, exchange: Exchange, error: BaseException) -> Answer | None:
        """The answer to a request that failed; None where one is under way already, or nobody is left to get it."""
        if isinstance(error, ClientGone):
            exchange.status = _CLIENT_CLOSED
            return None
        if not isinstance(error, MlpkitError):
            shown = f"{exchange.scope['method']} {_shown_path(exchange.scope)}"
            logger.opt(exception=error).error("{} failed inside mlpkit", shown)
        return failure(error, self._settings) if exchange.status == 0 else None

    def note(self, exchange: Exchange, seconds: float) -> None:
        """Counts a request that was answered after so long, and writes its line of the access log."""
        self._counts.add(exchange.route, exchange.word or "success", seconds)
        if self._access_log and not (exchange.route in self._unlogged and exchange.status == 200):
            scope, word = exchange.scope, f" {exchange.word}" if exchange.word else ""
            text = (
                f"{scope['method']} {_shown_path(scope)} {exchange.status}{word} "
                f"{seconds * 1e3:.1f} ms {exchange.sent} B"
            )
            self._log.write_soon(LogLine(time(), "INFO", text, exchange.uuid, "server", "access"))

    def admit(self, exchange: Exchange) -> None:
        """Takes from the headers what this layer needs, and refuses what may not enter.

        Raises:
            Unauthorized, MalformedBody, ServiceStopping, Overloaded: the request may not enter.
        """
        scope = exchange.scope
        headers = scope.get(_WANTED)
        if headers is None:
            # Requests whose heads are the same bytes share a scope, and so what was found in it (`web/heads.py`).
            headers = scope[_WANTED] = {name: value for name, value in scope["headers"] if name in _READ}
        exchange.content_type = headers.get(b"content-type", b"").decode("latin-1")
        if b"x-request-id" in headers:
            exchange.adopt(headers[b"x-request-id"].decode("latin-1").strip() or None)
        if not exchange.uuid:
            exchange.uuid = f"{getrandbits(128):032x}"
            request_id.set(exchange.uuid)
        if self._origins:
            self._allow_origin(scope, headers.get(b"origin", b""), exchange)
        if self._token:
            self._check_token(scope, headers.get(b"authorization", b""))
        if b"content-encoding" in headers:
            _check_encoding(headers[b"content-encoding"].decode("latin-1").strip())
        if self._state.phase != "ready":
            if self._state.phase == "draining":
                # The next request on this connection would meet a closed one.
                exchange.headers.append((b"connection", b"close"))
            self._refuse_new_work(scope)

    def _allow_origin(self, scope: Scope, origin: bytes, exchange: Exchange) -> None:
        exchange.headers.append((b"vary", b"Origin"))
        if origin and (self._any_origin or origin in self._origins):
            exchange.headers.append((b"access-control-allow-origin", origin))
            if scope["method"] == "OPTIONS":
                exchange.headers += _PREFLIGHT

    def _check_token(self, scope: Scope, authorization: bytes) -> None:
        # A browser sends no credentials with a preflight or to open a page, and a probe of the orchestrator has none.
        if scope["method"] == "OPTIONS" or route_path(scope) in _OPEN_PATHS:
            return
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            raise Unauthorized("a valid token is needed: Authorization: Bearer <MLPKIT_TOKEN>")

    def _refuse_new_work(self, scope: Scope) -> None:
        if scope["method"] != "POST" or route_path(scope) in self._cancel_paths:
            return
        if self._state.phase == "draining":
            raise ServiceStopping("the service is stopping and takes no new work")
        raise Overloaded("the service is starting: try again in a moment")


async def _refuse_other(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1003, "reason": "there are no websockets here"})


def _check_encoding(encoding: str) -> None:
    if encoding.lower() not in ("", "identity"):
        raise MalformedBody(
            f"the body is sent with Content-Encoding: {encoding[:40]}, which is not supported: send it uncompressed"
        )


def _shown_path(scope: Scope) -> str:
    # The path as it was sent, still percent-encoded: a decoded one could hold line breaks.
    return _printable_path((scope.get("raw_path") or scope["path"].encode())[:256])


@lru_cache(maxsize=64)
def _printable_path(raw: bytes) -> str:
    text = raw.partition(b"?")[0].decode("latin-1")
    return text if text.isprintable() else repr(text)
