"""The short way of a prediction through the server: one call begins it, one callback answers it.

An ASGI server makes a task, an event, a queue of messages and a handful of coroutines for every request. A prediction
that has arrived whole needs none of them: what `Edge` and `Predict` do for it never waits, but for the model itself.
Whatever is not plain (a broken body, a form, a full queue) is left to the ASGI way, which begins anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlpkit.log import request_uuid, uuid_bound
from mlpkit.web.exchange import Exchange, Header
from mlpkit.web.predict import enclosed

if TYPE_CHECKING:
    from starlette.types import Scope, Send

    from mlpkit.web.middleware import Edge

Answered = Callable[[list[Header], bytes], None]
"""Sends an answer of status 200: its headers, its body."""


class Express:
    """Begins predictions for a server's connections."""

    def __init__(self, edge: Edge) -> None:
        self._edge, self._predict = edge, edge.predict
        self._tasks: set[asyncio.Task[None]] = set()
        self.path, self.limit = edge.predict_path, edge.predict.limit

    def begin(self, scope: Scope, body: bytes, answer: Answered, send: Send) -> asyncio.Future[bytes] | None:
        """Begins a prediction that `answer`, or `send` where it fails, will answer; None where the ASGI way must.

        The caller gives up by failing the future with ClientGone.
        """
        exchange = Exchange(scope)
        exchange.route = "predict"
        reset = request_uuid.set("-")
        try:
            self._edge.admit(exchange)
            future = self._predict.begin_plain(exchange, body)
        except Exception:
            # It happens again on the ASGI way, which knows how to say so.
            return None
        finally:
            request_uuid.reset(reset)
        if future is not None:
            future.add_done_callback(lambda done: self._end(exchange, done, answer, send))
        return future

    def _end(self, exchange: Exchange, done: asyncio.Future[bytes], answer: Answered, send: Send) -> None:
        error = done.exception()
        if error is None:
            body = enclosed(done.result())
            exchange.status, exchange.sent = 200, len(body)
            answer(exchange.head(b"application/json", len(body)), body)
            self._edge.note(exchange)
        else:
            task = asyncio.ensure_future(self._fail(exchange, error, send))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _fail(self, exchange: Exchange, error: BaseException, send: Send) -> None:
        with uuid_bound(exchange.uuid):
            await self._edge.answer_failure(exchange, error, send)
            self._edge.note(exchange)
