"""One prediction that the server has accepted: it is settled once, with an answer or an error, or given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mlpkit.errors import MlpkitError
from mlpkit.log import logger
from mlpkit.serving.messages import Item

Outcome = bytes | MlpkitError
"""The answer's `predictions` as JSON, or an error of the tree."""
Settle = Callable[[Outcome], None]
"""Told the outcome on the event loop, in the same turn as it becomes known."""


class Prediction:
    """What was asked, and who is to be told. `since` is in seconds of `time.monotonic`.

    `over`: nobody waits for it any more.
    """

    __slots__ = ("_settle", "item", "over", "since")

    def __init__(self, item: Item, settle: Settle) -> None:
        self.item, self.since, self.over = item, time.monotonic(), False
        self._settle = settle

    def settle(self, outcome: Outcome) -> None:
        """Tells the outcome, where it is not over already; never raises."""
        if not self.over:
            self.over = True
            try:
                self._settle(outcome)
            except Exception:
                logger.exception("the outcome of a prediction could not be told")

    def give_up(self) -> bool:
        """Says that nobody waits for it any more; False where it is over already. A worker may still work on it."""
        waited, self.over = not self.over, True
        return waited


def future_of(begin: Callable[[Settle], Prediction]) -> asyncio.Future[bytes]:
    """A future of a prediction that `begin` begins; whoever cancels it, or sets an exception, gives it up."""
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def settle(outcome: Outcome) -> None:
        if future.done():
            return
        if isinstance(outcome, MlpkitError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    prediction = begin(settle)
    future.add_done_callback(lambda _: prediction.give_up())
    return future
