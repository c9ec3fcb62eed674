"""One request and its response, and the counts of all.

Source of the response's words: `tests/wire/PROTOCOL.md`, section 1.1; its section 8 says where mlpkit differs.
"""

from __future__ import annotations

import asyncio
import json
import traceback
from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from time import perf_counter
from typing import TYPE_CHECKING, Literal, TypeVar

import anyio
import anyio.to_thread
import msgspec

from mlpkit.errors import BodyTooLarge, MalformedBody, MlpkitError, Overloaded, Unauthorized
from mlpkit.log import logger, printable_uuid, request_id, subject, traceparent, with_request_id
from mlpkit.metrics import Histogram

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from mlpkit.settings import Settings

T = TypeVar("T")
Header = tuple[bytes, bytes]
CLOSE: Header = (b"connection", b"close")
DURATION_LIMITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper limits of the buckets of request durations, in seconds."""
ABORT = "mlpkit.abort"
"""The extension of ASGI with which `web.connection` lets a response close its connection without sending the rest."""
_NOT_BUFFERED: tuple[Header, ...] = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
_UNREAD_SECONDS = 30.0
_BODY_SECONDS = 60.0
"""How long the body of a request may take to arrive."""
_LONG_BODY = 1 << 20
"""Work on a body of at least this many bytes is done in a thread. For a smaller one the hand-over takes longer."""
_MOST_DROPPED = 16 << 20
"""Bytes beyond the limit that are read and dropped: a client that still sends would not see the response."""
CLIENT_CLOSED = 499
"""The status in the access log of a caller who has gone; nothing was sent."""
_ALWAYS_TRUE_CODE = (BodyTooLarge, MalformedBody, Unauthorized)


class ClientGone(Exception):
    """The client closed the connection before it was answered."""


class RequestCounts:
    """How many requests each route has answered, how, and in what time."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], int] = {}
        self.durations: dict[str, Histogram] = {}

    def add(self, route: str, word: str, seconds: float) -> None:
        """Counts one request."""
        key = (route, word)
        self.answers[key] = self.answers.get(key, 0) + 1
        durations = self.durations.get(route)
        if durations is None:
            durations = self.durations[route] = Histogram(DURATION_LIMITS)
        # Counted in place, as each request passes here: a call would cost as much as the counting.
        durations.counts[bisect_left(DURATION_LIMITS, seconds)] += 1
        durations.sum += seconds


class HttpResponse(msgspec.Struct, frozen=True):
    """A whole response; `word` is its `status` for the access log."""

    body: bytes
    status: int = 200
    headers: tuple[Header, ...] = ()
    content_type: bytes = b"application/json"
    word: str = "success"


class StreamedResponse(msgspec.Struct, frozen=True):
    """Server-sent events that are sent as they come."""

    parts: AsyncGenerator[bytes, None]


class RequestContext:
    """What is known about a request, and how it was answered.

    `path` is decoded, without the root path that a server or a mount puts before it; `raw_path` is as it was sent.
    `caller_uuid` is the uuid that the caller sent, or None; `request_id` is in the log and in the response.
    `started` is in seconds of `perf_counter`, `sent` in bytes; `status` is 0 until something was sent.
    `wants_parts`: the caller accepts server-sent events. `traceparent` is the caller's trace, or empty. `subject` is
    what the request is about, for the log: `algorithm` and `model_id`, as far as they are known.
    """

    __slots__ = (
        "caller_uuid",
        "content_type",
        "headers",
        "method",
        "path",
        "peer",
        "query_string",
        "raw_path",
        "request_id",
        "response_headers",
        "root_path",
        "route",
        "sent",
        "started",
        "status",
        "subject",
        "traceparent",
        "wants_parts",
        "word",
    )

    def __init__(self, method: str, path: str, raw_path: bytes, headers: list[Header]) -> None:
        self.started = perf_counter()
        self.method = method
        self.path = path
        self.raw_path = raw_path
        self.headers = headers
        self.query_string = b""
        self.content_type = ""
        self.wants_parts = False
        self.peer = ""
        self.root_path = ""
        self.route = "other"
        self.caller_uuid: str | None = None
        self.request_id = ""
        self.traceparent = ""
        self.subject: dict[str, str] = {}
        self.response_headers: list[Header] = []
        self.status = 0
        self.sent = 0
        self.word = "success"

    @classmethod
    def of_scope(cls, scope: Scope) -> RequestContext:
        """The context of a request that an ASGI server hands on."""
        path: str = scope["path"]
        root_path: str = scope.get("root_path", "")
        inner = path[len(root_path) :] if root_path and path.startswith(f"{root_path}/") else path
        context = cls(scope["method"], inner, scope.get("raw_path") or path.encode(), scope["headers"])
        context.query_string = scope["query_string"]
        context.peer = scope["client"][0] if scope.get("client") else ""
        context.root_path = root_path
        return context

    def adopt(self, uuid: str | None) -> None:
        """Takes the uuid that the caller has sent, if there is one."""
        if uuid is not None:
            self.caller_uuid = uuid
            if uuid:
                self.request_id = printable_uuid(uuid)

    def bind(self) -> None:
        """Puts id, trace and subject into the lines of this task."""
        request_id.set(self.request_id)
        traceparent.set(self.traceparent)
        subject.set(self.subject)

    def response_lines(self, response: HttpResponse) -> list[Header]:
        """All headers of a response; notes what was sent."""
        self.status = response.status
        self.sent = len(response.body)
        self.word = response.word
        return [
            (b"content-type", response.content_type),
            (b"content-length", b"%d" % len(response.body)),
            (b"x-request-id", self.request_id.encode("ascii", "replace")),
            *self.response_headers,
            *response.headers,
        ]

    async def send(self, response: HttpResponse, send: Send) -> None:
        """Sends a response over ASGI."""
        headers = self.response_lines(response)
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    async def send_parts(self, response: StreamedResponse, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends a streamed response over ASGI.

        It ends when the caller goes away. A caller that takes nothing for half a minute is cut off.
        """
        self.status = 200
        named = [(b"content-type", b"text/event-stream"), (b"x-request-id", self.request_id.encode("ascii", "replace"))]
        headers = [*named, *_NOT_BUFFERED, *self.response_headers]
        async with aclosing(response.parts) as parts:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if self.method != "HEAD":
                gone = asyncio.create_task(until_gone(receive))
                try:
                    with anyio.CancelScope() as sending:
                        gone.add_done_callback(lambda _: sending.cancel())
                        async for part in parts:
                            with anyio.move_on_after(_UNREAD_SECONDS) as limit:
                                await send({"type": "http.response.body", "body": part, "more_body": True})
                            if limit.cancelled_caught:
                                extension = scope.get("extensions", {}).get(ABORT)
                                if extension is not None:
                                    extension["now"]()
                                return
                            self.sent += len(part)
                finally:
                    gone.cancel()
            await send({"type": "http.response.body", "body": b""})


async def read_body(receive: Receive, limit: int) -> bytes:
    """The request's body.

    Raises:
        BodyTooLarge: it has more than `limit` bytes.
        MalformedBody: it did not arrive within a minute.
        ClientGone: the connection was closed before its end.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(_BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                size += len(chunk)
                if size <= limit:
                    chunks.append(chunk)
                if not message.get("more_body", False) or size > limit + _MOST_DROPPED:
                    break
    except TimeoutError:
        raise MalformedBody(f"the body did not arrive within {_BODY_SECONDS:g} s") from None
    if size > limit:
        raise body_too_large(limit)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def body_too_large(limit: int) -> BodyTooLarge:
    """The refusal of a body of more than `limit` bytes."""
    return BodyTooLarge(f"the body is larger than {limit} bytes (MLPKIT_MAX_BODY)")


async def work_on(body: bytes, call: Callable[[], T]) -> T:
    """What a call on the whole body gives; other requests continue meanwhile."""
    return await anyio.to_thread.run_sync(call) if len(body) > _LONG_BODY else call()


async def until_gone(receive: Receive) -> None:
    """Returns when the caller has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def success(data: object = None, **more: object) -> HttpResponse:
    """`{"status": "success"}`, with `data` if it is given."""
    content = {"status": "success"} if data is None else {"status": "success", "data": data}
    return HttpResponse(to_json({**content, **more}))


def failed(context: RequestContext, error: Exception, settings: Settings) -> HttpResponse:
    """The response to a request that has failed; unexpected errors are logged."""
    if not isinstance(error, MlpkitError):
        with with_request_id(context.request_id or "-", context.traceparent):
            shown = f"{context.method} {printable_path(context.raw_path)}"
            logger.error("{} failed inside mlpkit", shown, exception=error)
    return failure(error, settings)


def failure(error: BaseException, settings: Settings) -> HttpResponse:
    """The response that reports an error.

    One that is not mlpkit's own tells only that it happened. Failures are HTTP 200 unless `MLPKIT_HTTP_ERRORS` is
    `http`; a request that reached no route has its true code.
    """
    known = isinstance(error, MlpkitError)
    word = error.status if isinstance(error, MlpkitError) else "fail"
    content = {"status": word, "message": str(error) if known else "internal error: the service's log tells more"}
    if word == "fail":
        content["trace"] = _trace(error) if settings.debug else ""
    true_code = settings.http_errors == "http" or isinstance(error, _ALWAYS_TRUE_CODE)
    status = (error.http_status if isinstance(error, MlpkitError) else 500) if true_code else 200
    # All failures may be HTTP 200 with free text: this tells `mlpkit.Client` which exception to raise.
    headers = [(b"x-mlpkit-error", type(error).__name__.encode())] if known else []
    if isinstance(error, Overloaded) and true_code:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    if isinstance(error, (BodyTooLarge, MalformedBody)):
        # The rest of its body may still be on the way, and would be read to its end for nothing.
        headers.append(CLOSE)
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    return HttpResponse(to_json(content), status, tuple(headers), word=word)


def path_not_found(settings: Settings) -> HttpResponse:
    """The original's words for a path that it does not have."""
    message = (
        "404 Not Found: The requested URL was not found on the server. "
        "If you entered the URL manually please check your spelling and try again."
    )
    status = 404 if settings.http_errors == "http" else 200
    return HttpResponse(to_json({"message": message, "status": "fail"}), status, word="fail")


def other_method(method: str, expected: Literal["GET", "POST", "PUT"]) -> HttpResponse | None:
    """The response to OPTIONS and to a wrong method, else None."""
    if method == expected:
        return None
    allowed = ("GET", "HEAD", "OPTIONS") if expected == "GET" else ("OPTIONS", expected)
    allow = (b"allow", ", ".join(allowed).encode())
    if method == "OPTIONS":
        return HttpResponse(to_json({"status": "success"}), headers=(allow,))
    if method not in allowed:
        # The original's words, which have no `status`.
        body = to_json({"message": "The method is not allowed for the requested URL."})
        return HttpResponse(body, 405, (allow,), word="fail")
    return None


def to_json(content: object) -> bytes:
    """JSON in the protocol's style: ASCII, a space after comma and colon."""
    return json.dumps(content, allow_nan=False).encode()


def printable_path(raw_path: bytes) -> str:
    """A path for a log line: percent-encoded, at most 256 bytes."""
    # A decoded path could contain line breaks.
    text = raw_path[:256].partition(b"?")[0].decode("latin-1")
    return text if text.isprintable() else repr(text)


def _trace(error: BaseException) -> str:
    own = getattr(error, "trace", "")
    return own or "".join(traceback.format_exception(type(error), error, error.__traceback__))
