"""Which prediction goes to which worker, when, and with which others.

Each loaded model has one `Dispatcher`.

| rule | plain handler | batches (`max_batch_size` > 1) | `async def` |
| --- | --- | --- | --- |
| order | first come, first served | the same | the same |
| when | at the end of the loop's turn, so that what arrived together is sent together | the same | the same |
| which replica | the one with the fewest requests in flight | one that has none | the fewest in flight |
| messages in flight per replica | 1 (`threads`), and 1 in advance; quick: see below | 1 batch | 64, and 1; quick: 64 |
| items of one message | 1; quick: a group of up to 8 that take 2 ms together | what waits, at most 64 MiB | 1 |
| wait for more items | never | at most `max_wait_ms`, only after a batch of several | never |
| longest wait | the time limit of one prediction, or the usual one if that is longer | the same | the same |

A model is *quick* if a call usually takes less than 2 ms, and before its first call. Messages in advance hide the way
to the worker. A slow model gets the next one only just before it is free, so that its replicas share the queue fairly.
A quick one has up to 4 groups in flight, or 32 messages if it has `threads` or yields its answer in parts.
While it has these, more requests gather here: a group wakes each process once, not once for each item. Of all that is
waiting or in flight, a group takes at most half of a replica's share: the rest is on its way meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import takewhile

import msgspec

from mlpkit.algorithm import Algorithm
from mlpkit.errors import AnswerError, MlpkitError, PredictFailed, TimeLimitExceeded, UserCodeError
from mlpkit.log import logger
from mlpkit.metrics import MOMENTS, SIZES, Histogram
from mlpkit.serving.messages import Failure, Item, Predict, Reply
from mlpkit.serving.pool import WorkerSlot
from mlpkit.serving.worker import Worker, request_ids

_QUICK = 0.002
"""Seconds of a call below which a replica gets several messages in advance."""
_AHEAD = 32
"""Messages in flight per replica of a quick model that gets no groups."""
_GROUPS = 4
"""Groups in flight per replica: with fewer, a worker that needs 10 us for a call is often idle."""
_PARALLEL = 64
"""How many requests of an `async def` handler a replica answers in parallel."""
_LARGEST_BATCH = 64 << 20
"""Bytes of `features` after which a batch gets no more items: it crosses the channel as one message."""
_LARGEST_GROUP = 1 << 16
_MOST_IN_GROUP = 8
"""Items of a group: one that hangs, or all that become slow at once, are held against one time limit."""
_GROUP_SECONDS = 0.002
"""What a group may take: no answer waits longer than this for the others in its group."""
_SPIN = 0.0015
"""For waits shorter than this many seconds the loop is polled: its timers count in milliseconds."""

Outcome = bytes | MlpkitError
"""The answer's `predictions` as JSON, or an error of the tree."""
OnOutcome = Callable[[Outcome], None]
"""Told the outcome on the event loop, in the same turn as it becomes known."""
OnPart = Callable[[bytes], None]
"""Told a part of an answer, as JSON, before the outcome."""


class PendingPrediction(msgspec.Struct, eq=False):
    """A prediction that the server has accepted.

    It is finished once, or given up.

    `since` is in seconds of `time.monotonic`. `over`: nobody waits for it any more. `timing` is when it was sent to a
    worker, and the seconds in the user's code.
    """

    item: Item
    on_outcome: OnOutcome
    on_part: OnPart | None
    since: float
    over: bool = False
    timing: tuple[float, float] | None = None
    on_given_up: Callable[[], None] | None = None

    def finish(self, outcome: Outcome) -> None:
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
        if waited and self.on_given_up is not None:
            self.on_given_up()
        return waited


@dataclass(eq=False)
class Replica:
    """A model in one worker.

    `busy` counts the requests in flight (of batches, the batches), `messages` the messages that carry them; `loading`:
    a load into the worker is under way.
    """

    slot: WorkerSlot
    ready: bool = False
    loading: bool = False
    busy: int = 0
    messages: int = 0


@dataclass
class Counts:
    """What a model has done since it was loaded.

    `seconds` is the time spent in the user's code. The histograms are of the seconds until a prediction is sent to a
    worker, of a message on its way there and back with the wait in the worker, of a call of `predict`, and of the items
    of a batch.
    """

    predictions: int = 0
    failures: int = 0
    seconds: float = 0.0
    batches: int = 0
    wait: Histogram = field(default_factory=partial(Histogram, MOMENTS))
    transfer: Histogram = field(default_factory=partial(Histogram, MOMENTS))
    call: Histogram = field(default_factory=partial(Histogram, MOMENTS))
    sizes: Histogram = field(default_factory=partial(Histogram, SIZES))

    def __add__(self, other: Counts) -> Counts:
        names = [count.name for count in fields(self)]
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})


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
        self.last_used = time.monotonic()
        """When a prediction was last sent to a worker, at first when this was made; in monotonic seconds."""
        self._model_id = model_id
        self._limit = limit
        self._longest_wait = longest_wait
        self._loop = asyncio.get_running_loop()
        self._batches = plan is not None and plan.batch
        self._has_parts = plan is not None and plan.is_generator
        self._largest = options.max_batch_size
        self._longest_wait_for_more = options.max_wait_ms / 1000
        self._parallel = max(options.threads, _PARALLEL) if plan is not None and plan.is_async else options.threads
        self._sends_groups = not (self._batches or self._has_parts or self._parallel > 1)
        self._next_dispatch: asyncio.Handle | None = None
        """When to look again: at the end of this turn of the loop, or when a batch has waited for more items."""
        self._usual = 0.0
        """Seconds of a call: of a batch, or of one item. A moving average; 0 before the first."""
        self._expected = 1
        """Items of the last batch: the next one waits for as many."""
        self._waits_until = 0.0
        """Until when a batch waits for more items, in seconds of `time.perf_counter`; 0 if none does."""
        self._idle: asyncio.Event | None = None

    def add(self, prediction: PendingPrediction) -> None:
        """Queues a prediction.

        It is dispatched at the end of this turn of the loop.
        """
        self.waiting.append(prediction)
        if self._next_dispatch is None:
            self._next_dispatch = self._loop.call_soon(self.dispatch)
        elif self._waits_until and len(self.waiting) == self._expected:
            self._next_dispatch.cancel()
            self._next_dispatch = self._loop.call_soon(self.dispatch)

    def dispatch(self) -> None:
        """Sends what waits to the replicas that can take it.

        What is left waits for a replica that becomes free, or a batch for more items.
        """
        if self._next_dispatch is not None:
            self._next_dispatch.cancel()
            self._next_dispatch = None
        used: list[Worker] = []
        while self.waiting:
            if self._batches:
                window = 1
            elif self._usual >= _QUICK:
                # One in advance: the replica begins with it while the answer to the last is on its way.
                window = self._parallel + 1
            else:
                window = _GROUPS if self._sends_groups else max(self._parallel, _AHEAD)
            chosen = None
            unanswered = len(self.waiting)
            for replica in self.replicas:
                unanswered += replica.busy
                if replica.ready and replica.messages < window and (chosen is None or replica.busy < chosen.busy):
                    chosen = replica
            if chosen is None:
                break
            if self._batches and len(self.waiting) < self._expected and self._wait_for_more():
                break
            self._send(chosen, -(-unanswered // (2 * len(self.replicas))), used)
        if self._next_dispatch is None:
            self._waits_until = 0.0
        for worker in used:
            worker.flush()

    def expire(self, now: float) -> None:
        """Fails what has waited too long.

        What nobody waits for is dropped.
        """
        for late in list(takewhile(lambda waiting: now - waiting.since > self._longest_wait, self.waiting)):
            late.finish(TimeLimitExceeded(f"the request waited {self._longest_wait:g} s for a free worker"))
        if any(waiting.over for waiting in self.waiting):
            self.waiting = deque(waiting for waiting in self.waiting if not waiting.over)
        self._notice_idle()

    def fail_waiting(self, error: MlpkitError) -> None:
        """Fails everything that waits."""
        while self.waiting:
            self.waiting.popleft().finish(error)
        self._notice_idle()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is in flight."""
        return not self.waiting and not any(replica.busy for replica in self.replicas)

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

    def _wait_for_more(self) -> bool:
        """Waits for more items; False if that was long enough."""
        now = time.perf_counter()
        if not self._waits_until:
            self._waits_until = now + self._longest_wait_for_more
        left = self._waits_until - now
        if left <= 0:
            return False
        if left > _SPIN:
            self._next_dispatch = self._loop.call_later(left, self.dispatch)
        else:
            self._next_dispatch = self._loop.call_soon(self.dispatch)
        return True

    def _send(self, replica: Replica, share: int, used: list[Worker]) -> None:
        """Sends a replica what it gets next.

        A group has at most `share` items. The worker is added to `used`, to be flushed.
        """
        self._waits_until = 0.0
        if self._batches:
            most = self._largest
            largest = _LARGEST_BATCH
        elif self._sends_groups and self._usual > 0.0:
            most = max(1, min(share, _MOST_IN_GROUP, int(_GROUP_SECONDS / self._usual)))
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
        replica.messages += 1
        self._expected = len(sent)
        request = Predict(next(request_ids), self._model_id, [prediction.item for prediction in sent])
        if self._has_parts:
            # A generator is closed when its caller goes away.
            sent[0].on_given_up = partial(worker.cancel, request.id, self._model_id)
        now = self.last_used = time.monotonic()
        # Here and in `_on_reply` the histograms are counted in place: calls would cost as much as the counting.
        wait = self.counts.wait
        for prediction in sent:
            waited = now - prediction.since
            wait.counts[bisect_left(MOMENTS, waited)] += 1
            wait.sum += waited
        worker.put(request, self._limit, partial(self._on_reply, replica, sent, now), self._parallel)

    def _on_reply(
        self, replica: Replica, sent: list[PendingPrediction], sent_at: float, reply: Reply | MlpkitError
    ) -> None:
        if isinstance(reply, Reply) and not reply.final:
            for prediction, part in zip(sent, reply.results, strict=True):
                if isinstance(part, bytes):
                    prediction.part(part)
            return
        calls = 1 if self._batches else len(sent)
        replica.busy -= calls
        replica.messages -= 1
        counts = self.counts
        counts.predictions += len(sent)
        if isinstance(reply, Reply):
            seconds = reply.seconds / calls
            self._usual = 0.8 * self._usual + 0.2 * seconds if self._usual else seconds
            counts.seconds += reply.seconds
            counts.batches += calls
            counts.call.counts[bisect_left(MOMENTS, seconds)] += calls
            counts.call.sum += reply.seconds
            transfer = time.monotonic() - sent_at - reply.seconds
            counts.transfer.counts[bisect_left(MOMENTS, transfer)] += 1
            counts.transfer.sum += transfer
            if self._batches:
                counts.sizes.counts[bisect_left(SIZES, len(sent))] += 1
                counts.sizes.sum += len(sent)
            timing = (sent_at, reply.seconds)
            for prediction, result in zip(sent, reply.results, strict=True):
                prediction.timing = timing
                if isinstance(result, Failure):
                    counts.failures += 1
                    prediction.finish(_predict_error(result))
                else:
                    prediction.finish(result)
        else:
            counts.failures += len(sent)
            for prediction in sent:
                prediction.finish(reply)
        if self.waiting:
            self.dispatch()
        elif self._idle is not None:
            self._notice_idle()

    def _notice_idle(self) -> None:
        if self._idle is not None and self.is_idle:
            self._idle.set()


def _predict_error(failure: Failure) -> MlpkitError:
    error = failure.to_error()
    if not isinstance(error, (UserCodeError, AnswerError)):
        return error
    failed = PredictFailed(failure.text)
    failed.trace = failure.trace
    return failed
