"""The order in which jobs start, by priority and turns, and when."""

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
from mlpkit.training.data import data_location
from mlpkit.training.engine import Engine, Place
from mlpkit.training.job import EndedJobs, Job

_HIGHEST = 10
_LONGEST_APP_ID = 200
_LONGEST_LOCATION = 1024
_FORECAST_SECONDS = 1.0
"""How long a forecast is used: many callers may ask for many jobs."""


def with_order(job: Job) -> Job:
    """The job with the `priority`, `app_id` and `location` of its request.

    Raises:
        ArgumentError: the priority is not a whole number from -10 to 10.
    """
    location = data_location(job)
    if len(location) <= _LONGEST_LOCATION:
        job = msgspec.structs.replace(job, location=location)
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

    def forecast(self, jobs: Sequence[Job], places: int, ended: Mapping[str, EndedJobs]) -> Forecast:
        """The positions and probable starts of those jobs that wait."""
        now = time.time()
        waiting = self.in_order([job for job in jobs if job.state == "init"])
        running = [job for job in jobs if job.state == "training"]
        positions = {job.model_id: number for number, job in enumerate(waiting, 1)}
        return Forecast(now, positions, estimated_starts(waiting, running, places, ended, now))

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
    starts = None if last_starts is None else dict(last_starts)
    for _, group in groupby(ranked, key=lambda job: job.priority):
        jobs = list(group)
        if starts is None:
            found += jobs
            continue
        found += _in_turn(jobs, starts, now + len(found))
        # For the turns of the jobs with a lower priority.
        starts.update((job.app_id, now + number) for number, job in enumerate(found, 1))
    return found


@dataclass(frozen=True)
class Forecast:
    """The positions of the waiting jobs, and when they will probably start.

    Both are by model id; position 1 is next. Times are in seconds since the epoch, `made` is that of the forecast. A
    job of which too little is known has no start.
    """

    made: float
    positions: Mapping[str, int]
    starts: Mapping[str, float]

    @property
    def is_old(self) -> bool:
        """Whether it should be made again."""
        return not 0 <= time.time() - self.made < _FORECAST_SECONDS


def estimated_starts(
    waiting: Sequence[Job], running: Sequence[Job], places: int, ended: Mapping[str, EndedJobs], now: float
) -> dict[str, float]:
    """When the waiting jobs will probably start, in seconds since the epoch.

    `waiting` is in the order of the starts, `places` is how many jobs run at a time. A job is left out if it waits for
    something else than a place, or if it is not known how long one before it will take.
    """
    free = [now] * (places - len(running))
    for job in running:
        left = _seconds_left(job, _expected_seconds(job, ended), now)
        if left is None:
            return {}
        free.append(now + left)
    heapq.heapify(free)
    starts: dict[str, float] = {}
    for job in waiting:
        if job.message:
            continue  # it waits for GPUs, or for a cluster
        expected = _expected_seconds(job, ended)
        starts[job.model_id] = free[0]
        if expected is None:
            break
        heapq.heapreplace(free, free[0] + expected)
    return starts


def _expected_seconds(job: Job, ended: Mapping[str, EndedJobs]) -> float | None:
    return ended[job.algorithm].expected_seconds(job) if job.algorithm in ended else None


def _seconds_left(job: Job, expected: float | None, now: float) -> float | None:
    """How long a running job will still run; None if not known.

    The progress is that of a stage. If the stage is at least half of what the whole job is expected to take, the job
    ends with it. A shorter one, such as reading the data, says only that the job does not end before it.
    """
    ran = max(0.0, now - (job.started or now))
    left = 0.0
    progress = job.progress
    if progress is not None and progress.remaining is not None and (progress.fraction or 0.0) < 1:
        # Without the time that has passed since the report.
        left = max(0.0, progress.remaining - max(0.0, ran - progress.seconds))
        stage = progress.remaining / (1 - (progress.fraction or 0.0))
        if expected is None or stage >= expected / 2:
            return left
    return None if expected is None else max(left, expected - ran)


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
