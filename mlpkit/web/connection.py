"""uvicorn's connection, with a short way for predictions (`web/express.py`); all else takes uvicorn's own.

A prediction whose head has been read is held until its body is there too, without the pauses and copies that handing on
its parts would need. It goes uvicorn's way after all where the body is too long, or late, or the client wants to be
asked for it first: there are the answers to that.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mlpkit.web.body import BODY_SECONDS

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from mlpkit.web.exchange import Header
    from mlpkit.web.express import Express, GiveUp

_OK = STATUS_LINE[200]


class Connection(HttpToolsProtocol):
    """An HTTP/1.1 connection, for `uvicorn.Config(http=partial(Connection, express))`."""

    def __init__(self, express: Express, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._express = express
        self._held: RequestResponseCycle | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._deadline: TimerHandle | None = None
        self._give_up: GiveUp | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._held is not None and self._deadline is None:
            self._deadline = self.loop.call_later(BODY_SECONDS, self._let_go)

    def on_body(self, body: bytes) -> None:
        if self._held is None:
            super().on_body(body)
            return
        self._parts.append(body)
        self._size += len(body)
        if self._size > self._express.limit:
            self._let_go()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._held is not None:
            cycle, body = self._taken()
            self._predict(cycle, body)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._let_go()
        if self._give_up is not None:
            self._give_up()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        scope = cycle.scope
        if scope["method"] != "POST" or scope["path"] != self._express.path or cycle.waiting_for_100_continue:
            super()._start_asgi_task(cycle, app)
        elif cycle.more_body:
            self._held, self._parts, self._size = cycle, [bytes(cycle.body)], len(cycle.body)
        else:
            self._predict(cycle, bytes(cycle.body))

    def _taken(self) -> tuple[RequestResponseCycle, bytes]:
        """What was held, with all that has arrived of its body."""
        cycle, body = self._held, b"".join(self._parts)
        assert cycle is not None
        self._held, self._parts = None, []
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        return cycle, body

    def _let_go(self) -> None:
        """Gives a prediction to uvicorn, if one is held."""
        if self._held is not None:
            cycle, body = self._taken()
            cycle.body += body
            cycle.message_event.set()
            super()._start_asgi_task(cycle, self.app)

    def _predict(self, cycle: RequestResponseCycle, body: bytes) -> None:
        self._give_up = None
        if not cycle.flow.write_paused:
            # uvicorn and Starlette have their own types for the same things.
            scope: Any = cycle.scope
            send: Any = cycle.send
            self._give_up = self._express.begin(scope, body, partial(_answer, cycle), send)
        if self._give_up is None:
            cycle.body = bytearray(body)
            super()._start_asgi_task(cycle, self.app)


def _answer(cycle: RequestResponseCycle, headers: list[Header], body: bytes) -> None:
    """Ends a cycle with a whole answer, as its `send` does in two steps."""
    if cycle.disconnected:
        return
    parts = [_OK]
    for name, value in (*cycle.default_headers, *headers):
        parts += (name, b": ", value, b"\r\n")
    parts += (b"\r\n", body) if cycle.keep_alive else (b"connection: close\r\n\r\n", body)
    cycle.response_started = cycle.response_complete = True
    cycle.transport.write(b"".join(parts))
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
