"""The order in which jobs start: by priority, and by turns."""

from __future__ import annotations

import heapq
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby

import anyio
import msgspec

from mlpkit.algorithm import TrainOptions
from mlpkit.errors import ArgumentError
from mlpkit.training.engine import Engine, Place
from mlpkit.training.job import EndedJobs, Job

_HIGHEST = 10
_LONGEST_APP_ID = 200


def with_order(job: Job) -> Job:
    """The job with the `priority` and the `app_id` of its `extend`.

    Raises:
        ArgumentError: the priority is not a whole number from -10 to 10.
    """
    extend = msgspec.json.decode(job.extend)
    if not isinstance(extend, dict):
        return job
    priority = extend.get("priority")
    if priority is None:
        priority = 0
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > _HIGHEST:
        raise ArgumentError(f"[extend.priority] must be a whole number from -{_HIGHEST} to {_HIGHEST}")
    app_id = extend.get("app_id")
    text = "" if app_id is None else app_id if isinstance(app_id, str) else msgspec.json.encode(app_id).decode()
    return msgspec.structs.replace(job, priority=priority, app_id=text[:_LONGEST_APP_ID])


@dataclass(eq=False)
class _Claim:
    """A job's claim to a place of the engine.

    `ready` is set when it has brought a place, or a problem.
    """

    job: Job
    options: TrainOptions
    place: Place | None = None
    problem: Exception | None = None
    ready: anyio.Event = field(default_factory=anyio.Event)
    released: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Turns:
    """Gives each place of the engine to the next job.

    Args:
        fair: jobs of the same priority start by apps in turn.

    Attributes:
        last_starts: when a job of each app was last started, in seconds since the epoch.
    """

    def __init__(self, engine: Engine, *, fair: bool) -> None:
        self._engine = engine
        self._fair = fair
        self._claims: dict[str, _Claim] = {}
        self.last_starts: dict[str, float] = {}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Works within the block, at whose end no job may run."""
        async with anyio.create_task_group() as self._tasks:
            yield

    def in_order(self, waiting: Sequence[Job]) -> list[Job]:
        """The jobs in the order of their starts.

        They are given in the order of arrival.
        """
        return in_order(waiting, self.last_starts if self._fair else None, time.time())

    @asynccontextmanager
    async def place(self, job: Job, options: TrainOptions) -> AsyncIterator[Place]:
        """Waits until the job is next and has a place."""
        self._claims[job.model_id] = claim = _Claim(job, options)
        self._tasks.start_soon(self._hold_place, claim)
        try:
            await claim.ready.wait()
            # Another one, if the two have exchanged them.
            claim = self._claims.pop(job.model_id)
            if claim.place is None:
                raise claim.problem or RuntimeError("the claim has brought nothing")
            self.last_starts[job.app_id] = time.time()
            yield claim.place
        finally:
            claim = self._claims.pop(job.model_id, claim)
            claim.released.set()
            if claim.place is None:
                claim.scope.cancel()

    async def _hold_place(self, claim: _Claim) -> None:
        with claim.scope:
            try:
                async with self._engine.place(claim.options) as place:
                    self._give(claim, place)
                    await claim.released.wait()
            except Exception as error:
                claim.problem = error
                claim.ready.set()

    def _give(self, claim: _Claim, place: Place) -> None:
        """Gives the place to the job that is next.

        If that is another one, both exchange their claims.
        """
        usable = {
            model_id: other
            for model_id, other in self._claims.items()
            if other.place is None and self._engine.fits(claim.options, other.options)
        }
        claim.place = place
        first = next(iter(self.in_order([other.job for other in usable.values()])), claim.job)
        other = self._claims.get(first.model_id, claim)
        if other is not claim:
            claim.job, other.job = other.job, claim.job
            claim.ready, other.ready = other.ready, claim.ready
            self._claims[claim.job.model_id] = claim
            self._claims[other.job.model_id] = other
        claim.ready.set()


def in_order(waiting: Sequence[Job], last_starts: Mapping[str, float] | None, now: float) -> list[Job]:
    """The jobs in the order in which they should start.

    `waiting` is in the order of arrival. With `last_starts`, jobs of the same priority start in turn: the next belongs
    to the app that has waited longest, since its last start or since its oldest waiting job. It gives the time of the
    last start by app, in seconds since the epoch.
    """
    found: list[Job] = []
    ranked = sorted(waiting, key=lambda job: -job.priority)
    for _, group in groupby(ranked, key=lambda job: job.priority):
        jobs = list(group)
        found += jobs if last_starts is None else _in_turn(jobs, last_starts, now)
    return found


def estimated_start(
    model_id: str, jobs: Sequence[Job], places: int, ended: Mapping[str, EndedJobs], now: float
) -> float | None:
    """When a waiting job will probably start, in seconds since the epoch.

    `jobs` are those that wait, in the order of their starts, and those that run; `places` is how many run at a time.
    Each job is taken to need the mean time of the earlier ones of its algorithm. None if the job does not wait, or
    nothing is known of those before it.
    """
    free: list[float] = []
    for job in jobs:
        if job.state == "training":
            usual = _mean_seconds(ended.get(job.algorithm))
            rest = job.progress.remaining if job.progress is not None else None
            if usual is None and rest is None:
                return None
            free.append(max(now + (rest or 0.0), (job.started or now) + (usual or 0.0)))
    free += [now] * (places - len(free))
    heapq.heapify(free)
    for job in jobs:
        if job.state != "init":
            continue
        start = heapq.heappop(free)
        if job.model_id == model_id:
            return start
        usual = _mean_seconds(ended.get(job.algorithm))
        if usual is None:
            return None
        heapq.heappush(free, start + usual)
    return None


def _mean_seconds(ended: EndedJobs | None) -> float | None:
    count = sum(ended.running.counts) if ended is not None else 0
    return ended.running.sum / count if ended is not None and count else None


def _in_turn(jobs: Sequence[Job], last_starts: Mapping[str, float], now: float) -> list[Job]:
    numbers: dict[str, list[int]] = {}
    for number, job in enumerate(jobs):
        numbers.setdefault(job.app_id, []).append(number)
    # Since when the app waits, and the number of its next job; one entry for each app.
    apps = [
        (max(last_starts.get(app, 0.0), min(jobs[number].created for number in own)), own[0], app)
        for app, own in numbers.items()
    ]
    heapq.heapify(apps)
    found: list[Job] = []
    begun = dict.fromkeys(numbers, 0)
    while apps:
        _, number, app = heapq.heappop(apps)
        found.append(jobs[number])
        begun[app] += 1
        if begun[app] < len(numbers[app]):
            heapq.heappush(apps, (now + len(found), numbers[app][begun[app]], app))
    return found
