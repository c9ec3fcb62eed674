"""uvicorn's connection, with a short way for predictions (`web/express.py`); all else takes uvicorn's own.

A prediction whose head has been read is held until its body is there too, without the pauses, copies and objects that
handing on its parts would need; one whose head was read before is not parsed at all (`web/heads.py`). It goes uvicorn's
way after all where the body is too long, or late, or anything about it is not plain: there are the answers to that.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mlpkit.web.exchange import lines_of

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from mlpkit.web.exchange import Header
    from mlpkit.web.express import Express, GiveUp

_OFFERS = (b"upgrade", b"http2-settings")
"""Headers, and tokens of `Connection`, that offer to go on in another protocol."""
_HELD_SECONDS = 1.0
"""For so long a body is waited for here; then it is read with uvicorn's flow control and a limit of time."""


class _Turn:
    """A prediction's place in the order of answers: what uvicorn asks the present request of a connection."""

    __slots__ = ("disconnected", "keep_alive", "message_event", "response_complete")

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.disconnected = self.response_complete = False
        self.message_event = self

    def set(self) -> None:
        """Nobody waits for its parts."""


class Connection(HttpToolsProtocol):
    """An HTTP/1.1 connection, for `uvicorn.Config(http=partial(Connection, express))`."""

    cycle: Any

    def __init__(self, express: Express, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._express = express
        self._raw_path = express.path.encode()
        self._held: _Turn | None = None
        self._body: bytes | bytearray = b""
        """What has arrived of the body of the prediction that is held."""
        self._deadline: TimerHandle | None = None
        self._give_up: GiveUp | None = None
        self._between = True
        """Whether the parser has read every request to its end."""
        self._piece = b""
        """What is being parsed, where it begins with a request."""
        self._idle_since = 0.0
        """In seconds of the loop's clock; of interest where the connection is idle, and its timer older than that."""
        self._dates: list[Header] = []
        self._date_lines = b""

    def data_received(self, data: bytes) -> None:
        if self._between:
            if self._predict_known(data):
                return
            self._piece = data
        self._unset_keepalive_if_required()
        try:
            self._read(data)
        except HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        self._piece = b""
        if self._held is not None and self._deadline is None:
            self._deadline = self.loop.call_later(_HELD_SECONDS, self._let_go)

    def _read(self, data: bytes) -> None:
        """Parses what has arrived.

        Raises:
            HttpParserError: it is not HTTP.
        """
        while True:
            try:
                return self.parser.feed_data(data)
            except HttpParserUpgrade as offer:
                if self._is_connect():
                    raise HttpParserError("CONNECT is not supported") from None
                # The parser takes all that follows this head for another protocol, the body too.
                data = self._head_without_offer() + data[offer.args[0] :]
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _is_connect(self) -> bool:
        method: bytes = self.parser.get_method()
        return method == b"CONNECT"

    def _has_offer(self) -> bool:
        """Whether the request that is being parsed offers to go on in another protocol, such as HTTP/2."""
        return self.parser.should_upgrade() and not self._is_connect()

    def _head_without_offer(self) -> bytes:
        """The head that was parsed, as the caller would send it without its offer to upgrade: that is not taken up."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(token for token in value.split(b",") if token.strip().lower() not in _OFFERS)
            if name not in _OFFERS:
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"\r\n"])

    def on_message_begin(self) -> None:
        self._between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._has_offer():
            return
        if self._is_short():
            self._held = turn = _Turn(self.parser.should_keep_alive())
            self.cycle = turn
        else:
            super().on_headers_complete()

    def _is_short(self) -> bool:
        """Whether this is the head of a prediction for which nothing else must be waited for."""
        return (
            self.url == self._raw_path
            and self._is_free()
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and not self.expect_100_continue
            and self._express.lets_in(self._named_scope())
        )

    def _is_free(self) -> bool:
        """Whether a request that begins now can be answered as soon as its answer is there."""
        return (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused

    def _named_scope(self) -> Any:
        """The scope as far as uvicorn has filled it, with what it would add for this request."""
        scope: Any = self.scope
        scope["method"], scope["path"], scope["raw_path"] = "POST", self._express.path, self._raw_path
        scope["query_string"] = b""
        return scope

    def on_body(self, body: bytes) -> None:
        if self._held is None:
            super().on_body(body)
            return
        if not self._body:
            self._body = body
        elif isinstance(self._body, bytes):
            self._body = bytearray(self._body + body)
        else:
            # A list of a million small chunks would take a quarter of a second to join and to free.
            self._body += body
        if len(self._body) > self._express.limit:
            self._let_go()

    def on_message_complete(self) -> None:
        self._between = True
        if self._has_offer():
            return
        if self._held is None or not self._predict(self._held):
            self._let_go()
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()
        super().connection_lost(exc)
        give_up, self._give_up = self._give_up, None
        if give_up is not None:
            give_up()

    def _predict(self, turn: _Turn) -> bool:
        """Whether the prediction that is held has begun."""
        body, scope = bytes(self._body), self._named_scope()
        self._give_up = self._express.begin(scope, body, partial(self._send, turn))
        if self._give_up is None:
            return False
        if self._piece and turn.keep_alive:
            self._express.heads.learn(self._piece, len(body), scope)
        self._forget()
        return True

    def _predict_known(self, data: bytes) -> bool:
        """Whether this is a whole prediction with a head that is known, and it has begun."""
        head = self._express.heads.find(data)
        if head is None or not self._is_free():
            return False
        last, turn = self.cycle, _Turn(keep_alive=True)
        self.cycle = turn
        self._give_up = self._express.begin(head.scope, data[len(data) - head.length :], partial(self._send, turn))
        if self._give_up is None:
            self.cycle = last
            return False
        return True

    def _let_go(self) -> None:
        """Gives a prediction to uvicorn, if one is held, with what has arrived of its body."""
        if self._held is not None:
            turn, body = self._held, self._body
            self._forget()
            self.cycle = None
            super().on_headers_complete()
            self.cycle.keep_alive &= turn.keep_alive
            if body:
                # In one piece: for each of many small ones, older versions of uvicorn copy all that came before it.
                super().on_body(bytes(body))

    def _forget(self) -> None:
        self._held, self._body = None, b""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _send(self, turn: _Turn, status: int, lines: bytes, body: bytes) -> None:
        """Sends a whole answer, and lets the next request have its turn."""
        # It holds the request, which may be long, and would keep it for as long as the connection is idle.
        self._give_up = None
        if turn.disconnected:
            return
        if self.server_state.default_headers is not self._dates:
            self._dates = self.server_state.default_headers
            self._date_lines = lines_of(self._dates)
        end = b"\r\n" if turn.keep_alive else b"connection: close\r\n\r\n"
        turn.response_complete = True
        self.transport.write(b"".join((STATUS_LINE[status], lines, self._date_lines, end, body)))
        if not turn.keep_alive:
            self.transport.close()
        self._complete()

    def _complete(self) -> None:
        """What `on_response_complete` does; but a timer that is set is left, and looks at the time when it rings."""
        if self.timeout_keep_alive_task is None or self.pipeline or self.flow.read_paused:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._idle_since = self.loop.time()

    def timeout_keep_alive_handler(self) -> None:
        """Closes the connection where it has been idle for long enough."""
        self.timeout_keep_alive_task = None
        if self.cycle is not None and not self.cycle.response_complete:
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()
