"""Which prediction goes to which worker, when, and with which others.

Each loaded model has one `Dispatcher`.

| rule | plain handler | batches (`max_batch_size` > 1) | `async def` |
| --- | --- | --- | --- |
| order | first come, first served | the same | the same |
| when | at the end of the loop's turn, so that what arrived together is sent together | the same | the same |
| which replica | the one with the fewest requests in flight | one that has none | the fewest in flight |
| requests in flight per replica | 1 (`threads`), and 1 in advance; quick: 32 | 1 batch | 64, and 1; quick: 65 |
| items of one message | 1; quick: up to 8 that take 0.5 ms together (a *group*) | what waits, at most 64 MiB | 1 |
| wait for more items | never | at most `max_wait_ms`, only after a batch of several | never |
| longest wait | the time limit of one prediction, or the usual one if that is longer | the same | the same |

A model is *quick* if a call usually takes less than 2 ms. Requests in advance hide the way to the worker. A slow model
gets the next one only just before it is free, so that its replicas share the queue fairly.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import msgspec

from mlpkit.algorithm import Algorithm
from mlpkit.errors import AnswerError, MlpkitError, PredictFailed, TimeLimitExceeded, UserCodeError
from mlpkit.log import logger
from mlpkit.serving.messages import Failure, Item, Predict, Reply
from mlpkit.serving.pool import WorkerSlot
from mlpkit.serving.worker import Worker, request_ids

_QUICK = 0.002
"""Seconds of a call below which a replica gets requests in advance."""
_AHEAD = 32
_TOGETHER = 64
"""How many requests of an `async def` handler a replica gets at once."""
_LARGEST_BATCH = 64 << 20
"""Bytes of `features` after which a batch gets no more items: it crosses the channel as one message."""
_LARGEST_GROUP = 1 << 16
_MOST_IN_GROUP = 8
"""Items of a group: one that hangs, or all that become slow at once, are held against one time limit."""
_GROUP_SECONDS = 0.0005
"""What a group may take: no answer waits longer than this for the others in its group."""
_SPIN = 0.0015
"""For waits shorter than this many seconds the loop is polled: its timers count in milliseconds."""

Outcome = bytes | MlpkitError
"""The answer's `predictions` as JSON, or an error of the tree."""
Settle = Callable[[Outcome], None]
"""Told the outcome on the event loop, in the same turn as it becomes known."""
OnPart = Callable[[bytes], None]
"""Told a part of an answer, as JSON, before the outcome."""


class PendingPrediction(msgspec.Struct, eq=False):
    """A prediction that the server has accepted.

    It is settled once, or given up.

    `since` is in seconds of `time.monotonic`. `over`: nobody waits for it any more.
    """

    item: Item
    on_outcome: Settle
    on_part: OnPart | None
    since: float
    over: bool = False

    def settle(self, outcome: Outcome) -> None:
        """Tells the outcome, unless it is over already; never raises."""
        if not self.over:
            self.over = True
            try:
                self.on_outcome(outcome)
            except Exception:
                logger.exception("the outcome of a prediction could not be told")

    def part(self, content: bytes) -> None:
        """Tells a part of the answer, if the caller wants parts.

        Never raises.
        """
        if not self.over and self.on_part is not None:
            try:
                self.on_part(content)
            except Exception:
                logger.exception("a part of an answer could not be told")

    def give_up(self) -> bool:
        """Says that nobody waits for it any more.

        False if it is over already. A worker may still work on it.
        """
        waited = not self.over
        self.over = True
        return waited


@dataclass(eq=False)
class Replica:
    """A model in one worker.

    `busy` counts the requests in flight; `loading`: a load into the worker is under way.
    """

    slot: WorkerSlot
    ready: bool = False
    loading: bool = False
    busy: int = 0


@dataclass
class Counts:
    """What a model has done since it was loaded.

    `seconds` is the time spent in the user's code.
    """

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


class Dispatcher:
    """The queue of one model, and the replicas that work it off.

    `limit` is the time limit of one prediction, `longest_wait` how long one may wait for its turn, both in seconds.
    """

    def __init__(self, algorithm: Algorithm, model_id: str, limit: float, longest_wait: float) -> None:
        options = algorithm.predict_options
        plan = algorithm.plan("predict")
        self.replicas: list[Replica] = []
        self.waiting: deque[PendingPrediction] = deque()
        self.counts = Counts()
        self._model_id = model_id
        self._limit = limit
        self._longest_wait = longest_wait
        self._loop = asyncio.get_running_loop()
        self._batches = plan is not None and plan.batch
        self._largest = options.max_batch_size
        self._linger = options.max_wait_ms / 1000
        self._at_once = max(options.threads, _TOGETHER) if plan is not None and plan.is_async else options.threads
        self._scheduled = False
        self._usual = 0.0
        """Seconds of a call: of a batch, or of one item. A moving average; 0 before the first."""
        self._company = 1
        """Items of the last batch."""
        self._lingering = 0.0
        """Until when a batch waits for more items, in seconds of `time.perf_counter`; 0 if none does."""
        self._idle: asyncio.Event | None = None

    def accept(self, prediction: PendingPrediction) -> None:
        """Queues a prediction.

        It is dispatched at the end of this turn of the loop.
        """
        self.waiting.append(prediction)
        if not self._scheduled and not self._lingering:
            self._scheduled = True
            self._loop.call_soon(self._end_turn)

    def is_full(self, most: int) -> bool:
        """Whether `most` predictions wait, after what can be dispatched now was."""
        if self._scheduled:
            # A burst in one turn of the loop only waits for the end of the turn.
            self.dispatch()
        return len(self.waiting) >= most

    def dispatch(self) -> None:
        """Sends what waits to the replicas that can take it."""
        self._scheduled = False
        used: list[Worker] = []
        while self.waiting:
            if self._batches:
                window = 1
            elif self._usual < _QUICK:
                window = max(_AHEAD, self._at_once)
            else:
                # One in advance: the replica begins with it while the answer to the last is on its way.
                window = self._at_once + 1
            chosen = None
            for replica in self.replicas:
                if replica.ready and replica.busy < window and (chosen is None or replica.busy < chosen.busy):
                    chosen = replica
            if chosen is None:
                # The next replica that becomes free dispatches; a batch does not wait for more items until then.
                self._lingering = 0.0
                break
            if self._batches and len(self.waiting) < min(self._company, self._largest) and self._wait_for_company():
                break
            self._send(chosen, window - chosen.busy, used)
        for worker in used:
            worker.flush()

    def expire(self, now: float) -> None:
        """Fails what has waited too long.

        What nobody waits for is dropped.
        """
        for late in list(takewhile(lambda waiting: now - waiting.since > self._longest_wait, self.waiting)):
            late.settle(TimeLimitExceeded(f"the request waited {self._longest_wait:g} s for a free worker"))
        if any(waiting.over for waiting in self.waiting):
            self.waiting = deque(waiting for waiting in self.waiting if not waiting.over)
        self._notice_idle()

    def fail_waiting(self, error: MlpkitError) -> None:
        """Fails everything that waits."""
        while self.waiting:
            self.waiting.popleft().settle(error)
        self._notice_idle()

    async def idle(self, limit: float) -> bool:
        """Waits until nothing waits or is in flight.

        False if that takes longer than `limit` seconds.
        """
        self._idle = self._idle or asyncio.Event()
        self._notice_idle()
        if self._idle.is_set():
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), limit)
        except asyncio.TimeoutError:
            return False
        return True

    def _end_turn(self) -> None:
        if self._scheduled:
            self.dispatch()

    def _wait_for_company(self) -> bool:
        """Whether to wait a moment for more items.

        Only after a batch of several, and never longer than the linger.
        """
        now = time.perf_counter()
        if self._lingering == 0.0:
            self._lingering = now + self._linger
        elif now >= self._lingering:
            self._lingering = 0.0
            return False
        left = self._lingering - now
        if left > _SPIN:
            self._loop.call_later(left, self._end_linger)
        else:
            self._loop.call_soon(self._end_linger)
        return True

    def _end_linger(self) -> None:
        if not self.waiting:
            self._lingering = 0.0
        self.dispatch()

    def _send(self, replica: Replica, room: int, used: list[Worker]) -> None:
        """Sends a replica what it gets next, at most `room` items.

        Its worker is added to `used`, to be flushed.
        """
        self._lingering = 0.0
        if self._batches:
            most = self._largest
            largest = _LARGEST_BATCH
        elif self._at_once == 1 and self._usual > 0.0:
            most = max(1, min(room, _MOST_IN_GROUP, int(_GROUP_SECONDS / self._usual)))
            largest = _LARGEST_GROUP
        else:
            most = 1
            largest = _LARGEST_GROUP
        sent: list[PendingPrediction] = []
        size = 0
        while self.waiting and len(sent) < most and size < largest:
            prediction = self.waiting.popleft()
            if not prediction.over:
                sent.append(prediction)
                size += len(prediction.item.features)
        if not sent:
            return
        worker = replica.slot.worker
        if worker is None or not worker.ready:
            # The worker has just ended: its replacement loads the model again, and then dispatches.
            replica.ready = False
            self.waiting.extendleft(reversed(sent))
            return
        if worker not in used:
            used.append(worker)
        replica.busy += 1 if self._batches else len(sent)
        self._company = len(sent)
        request = Predict(next(request_ids), self._model_id, [prediction.item for prediction in sent])
        worker.begin(request, self._limit, partial(self._take_reply, replica, sent), self._at_once)

    def _take_reply(self, replica: Replica, sent: list[PendingPrediction], reply: Reply | MlpkitError) -> None:
        if isinstance(reply, Reply) and not reply.final:
            for prediction, part in zip(sent, reply.results, strict=True):
                if isinstance(part, bytes):
                    prediction.part(part)
            return
        calls = 1 if self._batches else len(sent)
        replica.busy -= calls
        counts = self.counts
        counts.predictions += len(sent)
        if isinstance(reply, Reply):
            seconds = reply.seconds / calls
            self._usual = 0.8 * self._usual + 0.2 * seconds if self._usual else seconds
            counts.seconds += reply.seconds
            counts.batches += calls
            for prediction, result in zip(sent, reply.results, strict=True):
                if isinstance(result, Failure):
                    counts.failures += 1
                    prediction.settle(_predict_error(result))
                else:
                    prediction.settle(result)
        else:
            counts.failures += len(sent)
            for prediction in sent:
                prediction.settle(reply)
        if self.waiting:
            if not self._lingering:
                self.dispatch()
        elif self._idle is not None:
            self._notice_idle()

    def _notice_idle(self) -> None:
        if self._idle is not None and not self.waiting and not any(replica.busy for replica in self.replicas):
            self._idle.set()


def future_of(begin: Callable[[Settle], PendingPrediction]) -> asyncio.Future[bytes]:
    """A future of the prediction that `begin` begins.

    If it is cancelled or gets an exception from outside, the prediction is given up.
    """
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


def _predict_error(failure: Failure) -> MlpkitError:
    error = failure.to_error()
    if not isinstance(error, (UserCodeError, AnswerError)):
        return error
    failed = PredictFailed(failure.text)
    failed.trace = failure.trace
    return failed
