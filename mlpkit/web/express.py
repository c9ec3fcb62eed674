"""The short way of a prediction through the server: one call begins it, one callback answers it.

An ASGI server makes a task, an event, a queue of messages and a handful of coroutines for every request. A prediction
that has arrived whole needs none of them: what `Edge` and `Predict` do for it never waits, but for the model itself.
Whatever is not plain (a broken body, a form, a wrong token) is left to the ASGI way, which begins anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlpkit.errors import MlpkitError
from mlpkit.log import request_id, with_request_id
from mlpkit.web.body import ClientGone
from mlpkit.web.exchange import Exchange, lines_of
from mlpkit.web.heads import Heads
from mlpkit.web.predict import enclosed

if TYPE_CHECKING:
    from starlette.types import Scope

    from mlpkit.serving import Outcome
    from mlpkit.web.middleware import Edge
    from mlpkit.web.predict import Envelope

Send = Callable[[int, bytes, bytes], None]
"""Sends a whole answer: its status, its header lines, its body."""
GiveUp = Callable[[], None]
"""Says that the caller has gone; nothing happens where it has been answered."""


class Express:
    """Begins predictions for a server's connections, on the running loop. `limit` is the largest body in bytes."""

    def __init__(self, edge: Edge) -> None:
        self._edge, self._predict = edge, edge.predict
        self.path, self.limit = edge.predict_path, edge.predict.limit
        self.heads = Heads()
        self._loop = asyncio.get_running_loop()
        self._unnoted: list[tuple[Exchange, float]] = []

    def lets_in(self, scope: Scope) -> bool:
        """Whether the head of a request gives no reason to refuse it before its body is there."""
        if self._edge.is_open:
            return True
        reset = request_id.set("-")
        try:
            self._edge.admit(Exchange(scope))
        except MlpkitError:
            return False
        finally:
            request_id.reset(reset)
        return True

    def begin(self, scope: Scope, body: bytes, send: Send) -> GiveUp | None:
        """Begins a prediction, which `send` answers; None where the ASGI way must."""
        exchange = Exchange(scope)
        exchange.route = "predict"

        def settle(outcome: Outcome) -> None:
            if isinstance(outcome, bytes):
                whole = enclosed(outcome)
                exchange.status, exchange.sent = 200, len(whole)
                send(200, exchange.success_lines(len(whole)), whole)
                self._note_soon(exchange)
            else:
                self._fail(exchange, outcome, send)

        def give_up() -> None:
            if prediction.give_up():
                self._fail(exchange, ClientGone(), send)

        reset = request_id.set("-")
        try:
            request = self._read(exchange, body)
            if request is None:
                return None
            prediction = self._predict.begin(exchange, request, settle)
        except MlpkitError as error:
            self._fail(exchange, error, send)
            return _nothing
        finally:
            request_id.reset(reset)
        return give_up

    def _read(self, exchange: Exchange, body: bytes) -> Envelope | None:
        """The request, admitted and checked; None where the ASGI way must refuse it, or read it in another way."""
        try:
            self._edge.admit(exchange)
            return self._predict.plain(exchange, body)
        except Exception:
            # It happens again there.
            return None

    def _fail(self, exchange: Exchange, error: MlpkitError | ClientGone, send: Send) -> None:
        with with_request_id(exchange.uuid):
            answer = self._edge.answer_to(exchange, error)
            if answer is not None:
                send(answer.status, lines_of(exchange.answered(answer)), answer.body)
            self._edge.note(exchange, exchange.age())

    def _note_soon(self, exchange: Exchange) -> None:
        """Counts and logs a request once its answer is out: event loops write at the end of their turn."""
        if not self._unnoted:
            self._loop.call_soon(self._note_all)
        self._unnoted.append((exchange, exchange.age()))

    def _note_all(self) -> None:
        unnoted, self._unnoted = self._unnoted, []
        for exchange, seconds in unnoted:
            self._edge.note(exchange, seconds)


def _nothing() -> None:
    """Gives up what has been answered."""
