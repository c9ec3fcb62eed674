"""The ASGI application: admits requests, logs them, answers failures.

It adds request ids and CORS headers, checks the token, and turns every error into a clear response.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from random import getrandbits
from time import perf_counter, time
from typing import TYPE_CHECKING

from mlpkit.errors import MalformedBody, Overloaded, ServiceStopping, Unauthorized
from mlpkit.log import LogLine, logger, printable_uuid, read_traceparent, request_id, trace_id_of, traceparent
from mlpkit.tracing import is_on, span
from mlpkit.web.page import PageRoutes
from mlpkit.web.predict import PredictEndpoint
from mlpkit.web.request import CLIENT_CLOSED, CLOSE, ClientGone, RequestContext, RequestCounts, failed, printable_path
from mlpkit.web.routes import build_router

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from mlpkit.web.routes import Dependencies

_READ = frozenset(
    (
        *(b"content-type", b"content-encoding", b"x-request-id", b"authorization", b"origin", b"accept"),
        b"traceparent",
    )
)
_AUDITED = {
    **{route: route for route in ("train", "load", "unload", "delete", "cancel", "alias", "unalias")},
    "data/{key:path}": "upload",
}
"""Routes that change something, and what they do: the log tells who has called them."""
_PROBES = ("health/live", "health/ready")
_PREFLIGHT = (
    (b"access-control-allow-methods", b"*"),
    (b"access-control-max-age", b"86400"),
    (b"access-control-allow-headers", b"Authorization,Origin,Content-Type,Accept"),
)
_WRITTEN_TOGETHER = 0.05
"""Seconds for which lines of the access log wait for others."""
_NO_FIELDS: Mapping[str, object] = {}
_shown_path = lru_cache(maxsize=64)(printable_path)


class Application:
    """The service as an ASGI application, without the lifespan."""

    def __init__(self, dependencies: Dependencies) -> None:
        settings = dependencies.settings
        counts = RequestCounts()
        self.predict = PredictEndpoint(dependencies)
        self.predict_path = settings.api_prefix + "predict"
        self.settings = settings
        page = PageRoutes(dependencies, counts)
        self.history = page.history
        self.router, self._open_paths = build_router(dependencies, self.predict, counts, page)
        self._traces = is_on()
        self._count = counts.add
        self._log = dependencies.log
        self._state = dependencies.state
        self._access_log = settings.access_log != "off"
        self._has_fields = settings.log_format == "json"
        self._models = dependencies.models
        self._unlogged = _PROBES if settings.access_log == "no-probes" else ()
        self._cancel_paths = ("/cancel", settings.api_prefix + "cancel")
        self._token = settings.token.encode()
        self._any_origin = "*" in settings.cors_origins
        self._origins = frozenset(origin.rstrip("/").encode() for origin in settings.cors_origins)
        self._unnoted: list[tuple[RequestContext, float]] = []
        self._writing: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _refuse_other(scope, receive, send)
            return
        context = scope["context"] = RequestContext.of_scope(scope)
        bound = request_id.set("-")
        try:
            self.admit(context)
            context.bind()
            if self._traces and (context.traceparent or context.method in ("POST", "PUT")):
                await self._traced(scope, receive, send)
            else:
                await self.router(scope, receive, send)
        except ClientGone:
            context.status = CLIENT_CLOSED
        except Exception as error:
            response = failed(context, error, self.settings)
            if context.status == 0:
                await context.send(response, send)
        finally:
            self.note(context, perf_counter() - context.started)
            if context.route in _AUDITED and context.method in ("POST", "PUT"):
                self._audit(context)
            request_id.reset(bound)

    async def _traced(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request within a span, which becomes its trace."""
        context: RequestContext = scope["context"]
        with span(context.method, "server", request_id=context.request_id) as current:
            context.traceparent = traceparent.get()
            await self.router(scope, receive, send)
            current.update_name(f"{context.method} {context.route}")
            current.set_attribute("http.response.status_code", context.status)
            current.set_attribute("mlpkit.outcome", context.word)
            for name, value in context.subject.items():
                current.set_attribute(f"mlpkit.{name}", value)

    def admit(self, context: RequestContext) -> None:
        """Reads the headers, and refuses what may not enter.

        Raises:
            Unauthorized, MalformedBody, ServiceStopping, Overloaded: the request may not enter.
        """
        headers = {name: value for name, value in context.headers if name in _READ}
        context.content_type = headers.get(b"content-type", b"").decode("latin-1")
        context.wants_parts = b"text/event-stream" in headers.get(b"accept", b"")
        if b"x-request-id" in headers:
            context.adopt(headers[b"x-request-id"].decode("latin-1").strip() or None)
        if not context.request_id:
            context.request_id = f"{getrandbits(128):032x}"
        if b"traceparent" in headers:
            context.traceparent = read_traceparent(headers[b"traceparent"].decode("latin-1"))
        if self._origins:
            self._allow_origin(context, headers.get(b"origin", b""))
        if self._token:
            self._check_token(context, headers.get(b"authorization", b""))
        if b"content-encoding" in headers:
            _check_encoding(headers[b"content-encoding"].decode("latin-1").strip())
        if self._state.phase != "ready":
            self._refuse_new_work(context)

    def note(self, context: RequestContext, seconds: float) -> None:
        """Counts a request that was answered, and logs it with its time."""
        self._count(context.route, context.word, seconds)
        if self._access_log and not (context.route in self._unlogged and context.status == 200):
            text = f"{context.method} {_shown_path(context.raw_path)}"
            fields: Mapping[str, object] = _NO_FIELDS
            if self._has_fields:
                fields = self._fields(context, seconds)
            else:
                word = "" if context.word == "success" else f" {context.word}"
                text = f"{text} {context.status}{word} {seconds * 1e3:.1f} ms {context.sent} B"
            self._log.write_soon(LogLine(time(), "INFO", text, context.request_id, "server", "access", "", fields))
            if self._writing is None:
                self._writing = asyncio.get_running_loop().call_later(_WRITTEN_TOGETHER, self._write_log)

    def _write_log(self) -> None:
        self._writing = None
        self._log.flush()

    def _fields(self, context: RequestContext, seconds: float) -> dict[str, object]:
        """What a line of the access log tells in JSON."""
        fields: dict[str, object] = {
            "method": context.method,
            "route": context.route,
            "status": context.status,
            "outcome": context.word,
            "duration_ms": round(seconds * 1e3, 3),
            "bytes": context.sent,
            **_about(context),
        }
        model_id = context.subject.get("model_id")
        if model_id is not None and "algorithm" not in fields and (algorithm := self._models.algorithm_of(model_id)):
            fields["algorithm"] = algorithm
        return fields

    def _audit(self, context: RequestContext) -> None:
        """Logs who has asked for a change, and what came of it."""
        about = context.subject
        what = " ".join(f"{name} {printable_uuid(value)}" for name, value in about.items())
        action = _AUDITED[context.route]
        text = f"{action} {what} by {context.peer or 'an unknown address'}: {context.word}"
        fields = {"action": action, "caller": context.peer, "outcome": context.word, **_about(context)}
        self._log.write(LogLine(time(), "INFO", text, context.request_id, "server", "audit", "", fields))

    def note_soon(self, context: RequestContext) -> None:
        """Notes a request after its response was written.

        Event loops write at the end of their turn.
        """
        if not self._unnoted:
            asyncio.get_running_loop().call_soon(self._note_all)
        self._unnoted.append((context, perf_counter() - context.started))

    def _note_all(self) -> None:
        unnoted = self._unnoted
        self._unnoted = []
        for context, seconds in unnoted:
            self.note(context, seconds)

    def _allow_origin(self, context: RequestContext, origin: bytes) -> None:
        context.response_headers.append((b"vary", b"Origin"))
        if origin and (self._any_origin or origin in self._origins):
            context.response_headers.append((b"access-control-allow-origin", origin))
            if context.method == "OPTIONS":
                context.response_headers += _PREFLIGHT

    def _check_token(self, context: RequestContext, authorization: bytes) -> None:
        # A browser sends no credentials with a preflight or to open a page, and an orchestrator's probe has none.
        if context.method == "OPTIONS" or context.path in self._open_paths:
            return
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            raise Unauthorized("a valid token is needed: Authorization: Bearer <MLPKIT_TOKEN>")

    def _refuse_new_work(self, context: RequestContext) -> None:
        if self._state.phase == "draining":
            # Otherwise the client would send its next request on a connection that is closed.
            context.response_headers.append(CLOSE)
        if context.method not in ("POST", "PUT") or context.path in self._cancel_paths:
            return
        if self._state.phase == "draining":
            raise ServiceStopping("the service is stopping and takes no new work")
        raise Overloaded("the service is starting: try again in a moment")


def _about(context: RequestContext) -> dict[str, str]:
    """The subject of a request, and its trace, as fields."""
    trace = context.traceparent
    return {**context.subject, "trace_id": trace_id_of(trace)} if trace else context.subject


def connections(application: Application) -> Callable[..., asyncio.Protocol] | str:
    """What uvicorn makes its HTTP connections with (`http=`).

    mlpkit's own connections use internals of uvicorn. If this version does not have them, its own serve.
    """
    try:
        from mlpkit.web.connection import Connection, missing_of_uvicorn

        missing = missing_of_uvicorn()
    except ImportError as error:
        missing = str(error)
    if missing:
        logger.warning("this version of uvicorn does not fit ({}): its own connections serve, more slowly", missing)
        return "auto"
    return partial(Connection, application)


async def _refuse_other(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1003, "reason": "this service has no websockets"})


def _check_encoding(encoding: str) -> None:
    if encoding.lower() not in ("", "identity"):
        raise MalformedBody(
            f"the body is sent with Content-Encoding: {encoding[:40]}, which is not supported: send it uncompressed"
        )
