"""uvicorn's connection, with a shortcut for predictions.

uvicorn makes a task, an event, a queue and several coroutines for every request. A prediction needs none of them: it is
held here until it is whole, handed to `PredictEndpoint.answer`, and its response is written when it comes. Everything
else takes uvicorn's way to the same application: other routes, a body that is too long or late, a request that must
be refused before its body is there. `MLPKIT_PREDICT_SHORTCUT=off` sends predictions that way too.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from mlpkit.errors import MlpkitError
from mlpkit.processes import LONG
from mlpkit.tracing import is_on
from mlpkit.web.request import ABORT, CLIENT_CLOSED, CLOSE, RequestContext

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from mlpkit.serving import PendingPrediction
    from mlpkit.web.application import Application
    from mlpkit.web.request import Header, HttpResponse

_HELD_SECONDS = 1.0
"""How long to wait for the body here. After that uvicorn reads it, with flow control and a timeout."""
_LONG_PART = 1 << 12
"""Parts of a body of at least this many bytes are joined once, at its end; shorter ones gather as they come."""
_OFFERS = (b"upgrade", b"http2-settings")
"""Headers, and tokens of `Connection`, that offer to continue in another protocol."""
_NEEDED = (
    *("app_state", "cycle", "flow", "loop", "parser", "pipeline", "server_state", "transport", "headers", "scope"),
    *("timeout_keep_alive", "timeout_keep_alive_task", "timeout_keep_alive_handler", "send_400_response"),
    *("on_headers_complete", "on_body", "on_message_complete", "on_response_complete", "connection_lost"),
)
"""What this module uses of uvicorn's connection, in addition to the callbacks of its parser."""


async def _no_application(scope: Any, receive: Any, send: Any) -> None:
    """Stands for an application; uvicorn calls one without parameters, and warns."""


def missing_of_uvicorn() -> str:
    """What this version of uvicorn lacks; empty if it fits."""
    config = Config(_no_application, http=HttpToolsProtocol, ws="none", lifespan="off", log_config=None)
    protocol = HttpToolsProtocol(config=config, server_state=ServerState(), app_state={})
    return ", ".join(name for name in _NEEDED if not hasattr(protocol, name))


class _HeldRequest:
    """A prediction in its connection; takes the place of uvicorn's `cycle`."""

    __slots__ = (
        *("context", "disconnected", "keep_alive", "message_event", "parts"),
        *("prediction", "response_complete", "size"),
    )

    def __init__(self, context: RequestContext, keep_alive: bool) -> None:
        self.context = context
        self.keep_alive = keep_alive
        self.parts: list[bytes | bytearray] = []
        """The body, as far as it has arrived."""
        self.size = 0
        self.prediction: PendingPrediction | None = None
        self.disconnected = False
        self.response_complete = False
        # uvicorn sets this event when the connection is lost.
        self.message_event = self

    def set(self) -> None:
        """Does nothing: nothing waits for the parts of this request."""

    def add(self, body: bytes) -> None:
        """Takes a further part of the body."""
        self.size += len(body)
        if not self.parts or len(body) >= _LONG_PART:
            self.parts.append(body)
        elif isinstance(self.parts[-1], bytearray):
            # A list of a million small chunks would take a quarter of a second to join and to free.
            self.parts[-1] += body
        else:
            self.parts.append(bytearray(body))

    def take_body(self) -> bytes:
        """The body so far; this request keeps none of it."""
        parts = self.parts
        self.parts = []
        return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)


class Connection(HttpToolsProtocol):
    """An HTTP/1.1 connection, for `uvicorn.Config(http=partial(Connection, application))`."""

    cycle: Any

    def __init__(self, application: Application, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._application = application
        self._predict = application.predict
        self._predict_path = application.predict_path
        self._raw_predict_path = application.predict_path.encode()
        # A span lasts as long as a call; a prediction on the short way is none.
        self._has_shortcut = application.settings.predict_shortcut and not is_on()
        self._held: _HeldRequest | None = None
        """The prediction whose body is being read."""
        self._deadline: TimerHandle | None = None
        self._last_active = 0.0
        """When something was last received or answered, in seconds of the loop's clock."""
        self._dates: list[Header] = []
        self._date_lines = b""

    def data_received(self, data: bytes) -> None:
        self._last_active = self.loop.time()
        try:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as offer:
                self._parse_without_offer(memoryview(data)[offer.args[0] :])
        except HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._held is not None and self._deadline is None:
            self._deadline = self.loop.call_later(_HELD_SECONDS, self._let_go)

    def _parse_without_offer(self, rest: memoryview) -> None:
        """Ignores the parsed head's offer to upgrade; `rest` follows it.

        The parser takes all that follows for another protocol, the body too. A new one reads the same head without the
        offer, and then the rest, which may have further offers.
        """
        while self.parser.get_method() != b"CONNECT":
            head = self._head_without_offer()
            self.parser = HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            try:
                self.parser.feed_data(head)
                self.parser.feed_data(rest)
            except HttpParserUpgrade as offer:
                rest = rest[offer.args[0] :]
            else:
                return
        raise HttpParserError("CONNECT is not supported")

    def _head_without_offer(self) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(token for token in value.split(b",") if token.strip().lower() not in _OFFERS)
            if name not in _OFFERS:
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"\r\n"])

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            # It is parsed again without the offer to upgrade.
            return
        # Whether a prediction can be answered as soon as its answer is there, with nothing else to wait for.
        if (
            self.url == self._raw_predict_path
            and self._has_shortcut
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and not self.expect_100_continue
        ):
            context = RequestContext("POST", self._predict_path, self._raw_predict_path, self.headers)
            context.route = "predict"
            try:
                self._application.admit(context)
            except MlpkitError:
                pass  # The request goes to the application like any other, which refuses it.
            else:
                if not context.wants_parts:
                    self.cycle = self._held = _HeldRequest(context, self.parser.should_keep_alive())
                    return
        self.scope["extensions"] = {ABORT: {"now": self.transport.abort}}
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        held = self._held
        if held is None:
            super().on_body(body)
            return
        held.add(body)
        if held.size > self._predict.limit:
            self._let_go()

    def on_message_complete(self) -> None:
        held = self._held
        if held is None:
            if not self.parser.should_upgrade():
                super().on_message_complete()
            return
        self._held = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        held.prediction = self._predict.answer(held.context, held.take_body(), partial(self._respond, held))

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()
        super().connection_lost(exc)
        request = self.cycle
        if isinstance(request, _HeldRequest) and request.prediction is not None and request.prediction.give_up():
            request.context.status = CLIENT_CLOSED
            self._application.note_soon(request.context)

    def _let_go(self) -> None:
        """Gives a held prediction, if any, to uvicorn.

        uvicorn gets what has arrived of its body too.
        """
        held = self._held
        if held is None:
            return
        self._held = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.cycle = None
        super().on_headers_complete()
        self.cycle.keep_alive &= held.keep_alive
        if held.size:
            # In one piece: for each of many small ones, older versions of uvicorn copy all that came before it.
            super().on_body(held.take_body())

    def _respond(self, request: _HeldRequest, response: HttpResponse) -> None:
        """Sends a response, and lets the next request begin."""
        # It holds the body, which may be long, and would keep it for as long as the connection is idle.
        request.prediction = None
        if request.disconnected:
            return
        if self.server_state.default_headers is not self._dates:
            self._dates = self.server_state.default_headers
            self._date_lines = b"".join([b"%b: %b\r\n" % header for header in self._dates])
        closes = not request.keep_alive or CLOSE in response.headers
        lines = [b"%b: %b\r\n" % header for header in request.context.response_lines(response)]
        end = b"connection: close\r\n\r\n" if closes and CLOSE not in response.headers else b"\r\n"
        head = b"".join((STATUS_LINE[response.status], *lines, self._date_lines, end))
        request.response_complete = True
        if len(response.body) < LONG:
            self.transport.write(head + response.body)
        else:
            self.transport.write(head)
            self.transport.write(response.body)
        if closes:
            self.transport.close()
        self._complete()
        self._application.note_soon(request.context)

    def _complete(self) -> None:
        """Does what `on_response_complete` does, without setting a timer for each response.

        A timer that is set already stays; when it ends, it looks how long the connection was idle.
        """
        if self.timeout_keep_alive_task is None or self.pipeline or self.flow.read_paused:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._last_active = self.loop.time()

    def timeout_keep_alive_handler(self) -> None:
        """Closes the connection if it has been idle for long enough."""
        self.timeout_keep_alive_task = None
        if self.cycle is not None and not self.cycle.response_complete:
            return
        left = self._last_active + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()
