"""A training job: its record, its states, its view for `train`."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args
from uuid import uuid4

import msgspec

from mlpkit.errors import JobConflict
from mlpkit.injection import Fields, service
from mlpkit.log import with_request_id
from mlpkit.metrics import HOURS, Histogram
from mlpkit.training.progress import Snapshot

State = Literal["init", "training", "completed", "error"]
STATES: tuple[State, ...] = get_args(State)
TRANSITIONS: Mapping[State, tuple[State, ...]] = {
    "init": ("training", "error"),
    "training": ("completed", "error", "init"),
    "completed": (),
    "error": (),
}
"""The states that can follow a state. `init` waits; `training` goes back to `init` when the service ends meanwhile."""

CANCELLED = "cancelled"
"""The message of a job that somebody cancelled."""
CANCELLED_WITH_CHECKPOINT = "cancelled; its checkpoint is kept, and extend.resume_from continues from it"
STOPPED_EARLY = "a soft cancel asked it to end; the model is what train had made by then"

REQUEST_FIELDS = ("data", "parameters", "extend")
"""What a job was asked to do, as JSON text."""


class Job(msgspec.Struct, frozen=True):
    """One training job.

    `data`, `parameters` and `extend` are JSON text; times are seconds since the epoch.
    `uuid` is the caller's own or None, `log_uuid` what is in the log. `attempt` counts the starts of its process;
    `drained` is how many of them a stop of the service has ended after a checkpoint, which `max_attempts` does not
    count. `cancelling` means that a soft cancel was accepted. `priority` and `app_id` are those of `extend`, `location`
    is that of `data`. `message` tells people why it ended in `error`. `traceparent` is the trace of the request that
    asked for it.
    """

    model_id: str
    algorithm: str
    model_path: str = ""
    data: str = "{}"
    parameters: str = "{}"
    extend: str = "{}"
    uuid: str | None = None
    log_uuid: str = "-"
    state: State = "init"
    message: str = ""
    progress: Snapshot | None = None
    attempt: int = 0
    created: float = msgspec.field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    drained: int = 0
    cancelling: bool = False
    priority: int = 0
    app_id: str = ""
    location: str = ""
    traceparent: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the job is in a state that it never leaves."""
        return not TRANSITIONS[self.state]

    @property
    def was_cancelled(self) -> bool:
        """Whether the job has ended because somebody cancelled it."""
        return self.message in (CANCELLED, CANCELLED_WITH_CHECKPOINT)

    def moved(self, state: State, **changes: Any) -> Job:
        """The job in another state.

        Raises:
            JobConflict: the table of states does not have that move.
        """
        if state not in TRANSITIONS[self.state]:
            raise JobConflict(f"job [{self.model_id}] is {self.state!r} and cannot become {state!r}")
        return msgspec.structs.replace(self, state=state, **changes)

    def after(self, outcome: JobOutcome | None, *, cancelled: bool) -> Job:
        """The job when its task ends.

        The first row that fits wins. `outcome` is None if the task was told to stop: by a cancel (`cancelled`), by a
        soft cancel that took too long, or because the service closes.

            what has happened                     state           message
            ------------------------------------  --------------  -------------------------
            an outcome that is not `stopped`      the outcome's   the outcome's
              completed, after a soft cancel      completed       the same, or STOPPED_EARLY
            a cancel                              error           CANCELLED
            a soft cancel, a checkpoint is saved  error           CANCELLED_WITH_CHECKPOINT
            a soft cancel, nothing is saved       error           CANCELLED
            the service closes, the job ran       init, again
            the service closes, the job waited    init, still
        """
        now = time.time()
        if outcome is not None and not outcome.stopped:
            early = STOPPED_EARLY if outcome.state == "completed" and self.cancelling else ""
            return self.moved(outcome.state, message=outcome.message or early, ended=now)
        if cancelled:
            return self.moved("error", message=CANCELLED, ended=now)
        if self.cancelling:
            message = CANCELLED_WITH_CHECKPOINT if self.has_checkpoint else CANCELLED
            return self.moved("error", message=message, ended=now)
        return self.waiting_again() if self.state == "training" else self

    def waiting_again(self) -> Job:
        """The job after a stop of the service, which has interrupted it.

        That start does not count for `max_attempts`, and not at all if it came to nothing.
        """
        job = self.put_back()
        if self.has_checkpoint:
            return msgspec.structs.replace(job, drained=self.drained + 1)
        return msgspec.structs.replace(job, attempt=self.attempt - 1)

    def put_back(self) -> Job:
        """The job before its next start, with what it has saved."""
        return self.moved("init", started=None, progress=self.progress if self.has_checkpoint else None)

    @property
    def counted_attempts(self) -> int:
        """The starts that count for `max_attempts`."""
        return self.attempt - self.drained

    @property
    def has_checkpoint(self) -> bool:
        """Whether this start of the job has saved a checkpoint."""
        found = self.progress.checkpoint if self.progress is not None else None
        return found is not None and found.saved is not None

    @property
    def note(self) -> str:
        """What people should know: `message`, or how the job continues.

        Such as `attempt 2, resumed at 71 %`.
        """
        found = self.progress.checkpoint if self.progress is not None else None
        if self.message or self.has_ended or found is None:
            return self.message
        if self.state == "init":
            return f"attempt {self.attempt} was interrupted{_far(found.saved_at)}, the job continues from there"
        if found.resumed_from is None:
            return ""
        other = "" if found.resumed_from == self.model_id else f" of model [{found.resumed_from}]"
        return f"attempt {self.attempt}, resumed{_far(found.resumed_at)}{other}"

    def asks_the_same(self, other: Job) -> bool:
        """Whether both have the same content; the caller's address does not count."""
        return self._content() == other._content()

    def request_digest(self) -> str:
        """A digest of the job's content, the same in every service."""
        return hashlib.sha256(msgspec.json.encode(self._content())).hexdigest()

    def _content(self) -> tuple[object, ...]:
        data, parameters, extend = (msgspec.json.decode(getattr(self, name)) for name in REQUEST_FIELDS)
        if isinstance(extend, dict):
            # The service writes the peer's address into `extend`; a repeated request may come through another proxy.
            extend.pop("remote_ip", None)
        request = msgspec.json.encode([data, parameters, extend], order="sorted")
        return self.algorithm, self.model_path, request

    def without_request(self) -> Job:
        """The job without `data`, `parameters` and `extend`, which can be very long."""
        return msgspec.structs.replace(self, data="{}", parameters="{}", extend="{}")

    def fields(self) -> Fields:
        """The fields that a `train` handler can name."""
        return {
            "model_id": self.model_id,
            "model_path": self.model_path,
            "data": msgspec.Raw(self.data.encode()),
            "parameters": msgspec.Raw(self.parameters.encode()),
            "extend": msgspec.Raw(self.extend.encode()),
            "uuid": self.uuid,
        }


def in_log_of(job: Job) -> AbstractContextManager[None]:
    """Lets lines of the log belong to the job, within a block."""
    return with_request_id(job.log_uuid, job.traceparent, algorithm=job.algorithm, model_id=job.model_id)


def _far(fraction: float | None) -> str:
    return "" if fraction is None else f" at {fraction * 100:.0f} %"


@dataclass(frozen=True)
class JobOutcome:
    """How a run of a job ended.

    `message` is for people; `trace` is the user's traceback, for the log only. `lost` means that its process was killed
    for no fault of its own, so it may run again. `stopped` means that it was asked to stop, and is to continue later.
    `told` means that the process has said so itself: nothing is left of a model that it has not stored.
    """

    state: Literal["completed", "error"]
    message: str = ""
    trace: str = ""
    lost: bool = False
    stopped: bool = False
    told: bool = False


RECALLED = 50
"""How many of the last completed jobs of an algorithm say how long the next ones will take."""


@dataclass
class EndedJobs:
    """How the jobs of an algorithm ended, and how long they took.

    An outcome is `completed`, `error` or `cancelled`. The histograms are in seconds.
    """

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("completed", "error", "cancelled"), 0))
    running: Histogram = field(default_factory=partial(Histogram, HOURS))
    waiting: Histogram = field(default_factory=partial(Histogram, HOURS))
    _completed: deque[tuple[float, int, str]] = field(default_factory=partial(deque, maxlen=RECALLED))
    _seconds_of_job: float | None = None
    _seconds_of_row: float | None = None
    _rows_of: dict[str, int] = field(default_factory=dict)

    def count_start(self, job: Job) -> None:
        """Counts how long a job has waited for its first start."""
        # A clock that goes back must not make a sum of Prometheus smaller.
        self.waiting.add(max(0.0, (job.started or job.created) - job.created))

    def count_end(self, job: Job, outcome: str) -> None:
        """Counts a job that has ended."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        if job.started is not None and job.ended is not None:
            self.running.add(max(0.0, job.ended - job.started))
        if outcome == "completed":
            self.recall([job])

    def recall(self, completed: Iterable[Job]) -> None:
        """Learns from completed jobs, the oldest first, how long others will take.

        Nothing is learnt from a job that has continued a training: it has done only a part of the work.
        """
        for job in completed:
            progress = job.progress
            rows = (progress.rows if progress is not None else None) or 0
            is_whole = progress is None or progress.checkpoint is None or progress.checkpoint.resumed_from is None
            # A later attempt that has read no rows may only have stored what the one before it had trained.
            is_whole = is_whole and (job.attempt <= 1 or rows > 0)
            if job.started is not None and job.ended is not None and is_whole:
                self._completed.append((max(0.0, job.ended - job.started), rows, job.location))
        if not self._completed:
            return
        counted = [(seconds, rows) for seconds, rows, _ in self._completed if rows]
        self._seconds_of_job = sum(seconds for seconds, _, _ in self._completed) / len(self._completed)
        self._seconds_of_row = (
            sum(seconds for seconds, _ in counted) / sum(rows for _, rows in counted) if counted else None
        )
        self._rows_of = {location: rows for _, rows, location in self._completed if rows and location}

    def expected_seconds(self, job: Job) -> float | None:
        """How long a job will probably run; None if not known.

        Its rows count, if its data check has counted them or an earlier job had the same file. Otherwise it is the mean
        of the earlier jobs.
        """
        rows = (job.progress.rows if job.progress is not None else None) or self._rows_of.get(job.location)
        return rows * self._seconds_of_row if rows and self._seconds_of_row is not None else self._seconds_of_job


LONGEST_ID = 64
"""Characters that a model id may have, as the protocol has it."""


def new_model_id() -> str:
    """A new model id: `<uuid4 hex>_<YYYYmmddHHMMSS>`, as the original makes them."""
    return f"{uuid4().hex}_{time.strftime('%Y%m%d%H%M%S')}"


@service("train")
class TrainJob(msgspec.Struct, frozen=True):
    """The whole job, for `train` handlers that want more than single fields.

    The objects are decoded JSON.
    """

    model_id: str
    algorithm: str
    model_path: str
    data: Any
    parameters: Any
    extend: Any
    uuid: str | None
    attempt: int
    created: float


def train_job(job: Job) -> TrainJob:
    """What a handler sees of a job."""
    data, parameters, extend = (msgspec.json.decode(text) for text in (job.data, job.parameters, job.extend))
    return TrainJob(
        job.model_id, job.algorithm, job.model_path, data, parameters, extend, job.uuid, job.attempt, job.created
    )
