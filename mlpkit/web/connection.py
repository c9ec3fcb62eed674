"""uvicorn's connection, with a short way for predictions (`web/express.py`); all else takes uvicorn's own."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mlpkit.web.body import ClientGone

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from mlpkit.web.exchange import Header
    from mlpkit.web.express import Express

_OK = STATUS_LINE[200]


class Connection(HttpToolsProtocol):
    """An HTTP/1.1 connection, for `uvicorn.Config(http=partial(Connection, express))`."""

    def __init__(self, express: Express, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._express = express
        self._begun: RequestResponseCycle | None = None
        """A prediction of which the head has been read, until the end of the same read."""
        self._prediction: asyncio.Future[bytes] | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._begun is not None:
            # Its body comes in several reads: the ASGI way has the limits of time and size for that.
            cycle, self._begun = self._begun, None
            super()._start_asgi_task(cycle, self.app)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._begun is not None:
            cycle, self._begun = self._begun, None
            self._predict(cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._prediction is not None and not self._prediction.done():
            self._prediction.set_exception(ClientGone())

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        scope = cycle.scope
        if app is not self.app or scope["method"] != "POST" or scope["path"] != self._express.path:
            super()._start_asgi_task(cycle, app)
        elif cycle.more_body:
            self._begun = cycle
        else:
            self._predict(cycle)

    def _predict(self, cycle: RequestResponseCycle) -> None:
        self._prediction = None
        if not cycle.flow.write_paused:
            # uvicorn and Starlette have their own types for the same things.
            scope: Any = cycle.scope
            send: Any = cycle.send
            self._prediction = self._express.begin(scope, cycle.body, partial(_answer, cycle), send)
        if self._prediction is None:
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
