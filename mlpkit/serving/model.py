"""One loaded model as the server sees it: its replicas, and the FIFO of predictions in front of them.

Dispatch: what arrives in one turn of the loop is dispatched together, to the replica with the fewest requests in
flight. A replica of a quick model gets several in advance, which hides the way to the worker, and in groups that share
a message; one of a slow model gets the next only just before it is free, so that replicas share the queue fairly. A
batch takes what waits when a replica becomes free; a lone request never waits for company.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Literal

from mlpkit.app import Algorithm
from mlpkit.errors import AnswerError, MlpkitError, PredictFailed, TimeLimitExceeded, UserCodeError
from mlpkit.serving.messages import Failure, Item, Predict, Reply
from mlpkit.serving.pool import Slot
from mlpkit.serving.prediction import Prediction, Settle
from mlpkit.serving.worker import Worker, request_ids

State = Literal["loading", "loaded", "unloading"]

_QUICK = 0.002
"""Seconds of a call below which a replica gets requests in advance."""
_AHEAD = 32
_TOGETHER = 64
"""How many requests of an `async def` handler a replica gets at once."""
_LARGEST_BATCH = 64 << 20
"""Bytes of `features` from which on a batch gets no more items: it crosses the channel as one message."""
_LARGEST_GROUP = 1 << 16
_LARGEST_NUMBER = 8
"""Items of a group: one that hangs, or all that become slow at once, are held against one limit of time."""
_GROUP_SECONDS = 0.0005
"""What a group may take: nobody's answer waits longer for those of the others in it."""
_SPIN = 0.0015
"""Below this many seconds a wait polls the loop: the timers of event loops are in milliseconds."""


@dataclass(eq=False)
class Replica:
    """A model in one worker. `busy` counts the requests in flight."""

    slot: Slot
    ready: bool = False
    busy: int = 0


@dataclass
class Counts:
    """What a model has done since it was loaded. `seconds` is the time spent in the user's code."""

    predictions: int = 0
    failures: int = 0
    seconds: float = 0.0
    batches: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.predictions + other.predictions,
            self.failures + other.failures,
            self.seconds + other.seconds,
            self.batches + other.batches,
        )


@dataclass(eq=False)
class Model:
    """A model, from the first request to load it until it is gone.

    `limit` is the time limit of one prediction, `patience` how long one may wait for its turn, both in seconds.
    """

    algorithm: Algorithm
    model_id: str
    model_path: str | None
    extend: bytes
    uuid: str | None
    limit: float
    patience: float
    state: State = "loading"
    since: float = field(default_factory=time.time)
    problem: str = ""
    returning: bool = False
    replicas: list[Replica] = field(default_factory=list)
    waiting: deque[Prediction] = field(default_factory=deque)
    counts: Counts = field(default_factory=Counts)
    deaths: int = 0

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.settled: asyncio.Future[None] = self._loop.create_future()
        """Done when the present load or unload has ended."""
        options, plan = self.algorithm.predict_options, self.algorithm.plan("predict")
        self._largest = options.max_batch_size
        self._linger = options.max_wait_ms / 1000
        self._batches = plan is not None and plan.batch
        self._at_once = max(options.threads, _TOGETHER) if plan is not None and plan.is_async else options.threads
        self._scheduled = False
        self._usual = 0.0
        """Seconds of a call: of a batch, or of one item."""
        self._company = 1
        self._lingering = 0.0
        self._idle: asyncio.Event | None = None

    def begin_unload(self) -> None:
        """Takes no more predictions; `settled` is to be done again when the model is gone."""
        self.state, self.settled = "unloading", self._loop.create_future()

    def make_room(self, most: int) -> bool:
        """Whether fewer than `most` predictions wait, after what can be dispatched at once was."""
        if self._scheduled:
            # A burst of one turn of the loop waits for nothing but the turn's end.
            self.dispatch()
        return len(self.waiting) < most

    def begin(self, item: Item, settle: Settle) -> Prediction:
        """Accepts a prediction; it is dispatched at the end of this turn of the loop."""
        prediction = Prediction(item, settle)
        self.waiting.append(prediction)
        if not self._scheduled and not self._lingering:
            self._scheduled = True
            self._loop.call_soon(self._dispatch_turn)
        return prediction

    def _dispatch_turn(self) -> None:
        if self._scheduled:
            self.dispatch()

    def dispatch(self) -> None:
        """Sends what waits to the replicas that can take it."""
        self._scheduled = False
        used: list[Worker] = []
        try:
            while self.waiting:
                window = self._window()
                replica = self._free_replica(window)
                if replica is None:
                    # Whoever becomes free dispatches; nobody lingers for a replica that is gone.
                    self._lingering = 0.0
                    return
                if self._batches and len(self.waiting) < min(self._company, self._largest) and self._wait_for_company():
                    return
                self._send(replica, window, used)
        finally:
            for worker in used:
                worker.release()

    def expire(self, now: float) -> None:
        """Fails the predictions that have waited longer than their time limit; those that nobody awaits leave too."""
        for each in list(takewhile(lambda each: now - each.since > self.patience, self.waiting)):
            each.settle(TimeLimitExceeded(f"the request waited {self.patience:g} s for a free worker"))
        if any(each.over for each in self.waiting):
            self.waiting = deque(each for each in self.waiting if not each.over)
        self._notice_idle()

    def fail_waiting(self, error: MlpkitError) -> None:
        """Fails everything that waits."""
        while self.waiting:
            self.waiting.popleft().settle(error)
        self._notice_idle()

    async def idle(self, limit: float) -> bool:
        """Waits until nothing waits or is in flight; False where that took longer than `limit` seconds."""
        self._idle = self._idle or asyncio.Event()
        self._notice_idle()
        if self._idle.is_set():
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), limit)
        except asyncio.TimeoutError:
            return False
        return True

    def _free_replica(self, window: int) -> Replica | None:
        free = None
        for replica in self.replicas:
            if replica.ready and replica.busy < window and (free is None or replica.busy < free.busy):
                free = replica
        return free

    def _window(self) -> int:
        """How many requests a replica may hold."""
        if self._batches:
            return 1
        return max(_AHEAD, self._at_once) if self._usual < _QUICK else self._at_once + 1

    def _wait_for_company(self) -> bool:
        """Whether to wait a moment for more: only after a call that had company, and never longer than the linger."""
        now = time.perf_counter()
        if self._lingering == 0.0:
            self._lingering = now + self._linger
        elif now >= self._lingering:
            self._lingering = 0.0
            return False
        left = self._lingering - now
        if left > _SPIN:
            self._loop.call_later(left, self._lingered)
        else:
            self._loop.call_soon(self._lingered)
        return True

    def _lingered(self) -> None:
        if not self.waiting:
            self._lingering = 0.0
        self.dispatch()

    def _next_batch(self, most: int, largest: int) -> list[Prediction]:
        """What waits longest: at most so many, and no more once they have so many bytes."""
        batch: list[Prediction] = []
        size = 0
        while self.waiting and len(batch) < most and size < largest:
            waiting = self.waiting.popleft()
            if not waiting.over:
                batch.append(waiting)
                size += len(waiting.item.features)
        return batch

    def _next_group(self, room: int) -> list[Prediction]:
        """Items that a replica with so much room gets in one message, and works off one after the other."""
        most = 1
        if self._at_once == 1 and self._usual > 0.0:
            most = max(1, min(room, _LARGEST_NUMBER, int(_GROUP_SECONDS / self._usual)))
        return self._next_batch(most, _LARGEST_GROUP)

    def _send(self, replica: Replica, window: int, used: list[Worker]) -> None:
        """Sends what a replica gets next; its worker, which keeps that until it is released, becomes one of `used`."""
        self._lingering = 0.0
        if self._batches:
            batch = self._next_batch(self._largest, _LARGEST_BATCH)
        else:
            batch = self._next_group(window - replica.busy)
        worker = replica.slot.worker
        if not batch:
            return
        if worker is None or not worker.ready:
            # The worker has just ended: its replacement loads the model again, and then dispatches.
            replica.ready = False
            self.waiting.extendleft(reversed(batch))
            return
        if worker not in used:
            worker.hold()
            used.append(worker)
        replica.busy += 1 if self._batches else len(batch)
        self._company = len(batch)
        request = Predict(next(request_ids), self.model_id, [waiting.item for waiting in batch])
        answered = partial(self._answered, replica, batch)
        worker.begin(request, self.limit, answered, self._at_once)

    def _answered(self, replica: Replica, batch: list[Prediction], answer: Reply | MlpkitError) -> None:
        calls = 1 if self._batches else len(batch)
        replica.busy -= calls
        counts = self.counts
        counts.predictions += len(batch)
        if isinstance(answer, Reply):
            seconds = answer.seconds / calls
            self._usual = 0.8 * self._usual + 0.2 * seconds if self._usual else seconds
            counts.seconds += answer.seconds
            counts.batches += calls
            for prediction, result in zip(batch, answer.results, strict=True):
                if isinstance(result, Failure):
                    counts.failures += 1
                    prediction.settle(_predict_error(result))
                else:
                    prediction.settle(result)
        else:
            counts.failures += len(batch)
            for prediction in batch:
                prediction.settle(answer)
        if self.waiting:
            if not self._lingering:
                self.dispatch()
        elif self._idle is not None:
            self._notice_idle()

    def _notice_idle(self) -> None:
        if self._idle is not None and not self.waiting and not any(replica.busy for replica in self.replicas):
            self._idle.set()


def _predict_error(failure: Failure) -> MlpkitError:
    error = failure.to_error()
    if not isinstance(error, (UserCodeError, AnswerError)):
        return error
    failed = PredictFailed(failure.text)
    failed.trace = failure.trace
    return failed
