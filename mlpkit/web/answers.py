"""What the answers of the routes hold as `data`.

The routes build what these types say, and `/openapi.json` describes it with them. Times are in seconds since the epoch,
sizes in bytes.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from mlpkit.formats import DataReport
from mlpkit.serving import EvictedModel, MissingModel, ModelWord, WorkerInfo
from mlpkit.training import Snapshot, State

Phase = Literal["starting", "ready", "draining"]


class SubmittedJob(TypedDict):
    """A job that was accepted; its model will have the same id."""

    model_id: str


class StatusWord(TypedDict):
    """The state of a training.

    `status` is `init`, `training`, `completed`, `error`, `unknown`, or what the algorithm's own `status` says.
    """

    status: Any


class TrainingStatus(StatusWord, total=False):
    """The state of a training, with more about a known job.

    `message` is the reason of an `error`, or how the job continues; `attempt` is how often it was started. Of a waiting
    job, `queue_position` is its place (1 is next) and `estimated_start` when it will probably start.
    """

    message: str
    attempt: int
    progress: Snapshot | None
    metrics: dict[str, Any]
    queue_position: int | None
    estimated_start: float | None


class CancelledJob(TypedDict):
    """A job after a cancel; `message` says how it ended."""

    model_id: str
    status: State
    message: str


class JobLine(TypedDict):
    """One job.

    `message` is the reason of an `error`, or how the job continues. `evaluation` is the summary of its evaluation.
    `reported` is when a running job has last sent progress or a line of its log. Of a waiting job, `queue_position` is
    its place (1 is next) and `estimated_start` when it will probably start.
    """

    model_id: str
    algorithm: str
    state: State
    message: str
    progress: Snapshot | None
    evaluation: dict[str, Any] | None
    queue_position: int | None
    estimated_start: float | None
    reported: float | None
    attempt: int
    created: float
    started: float | None
    ended: float | None
    uuid: str


class JobPage(TypedDict):
    """The newest jobs that were asked for; `total` counts all of them."""

    jobs: list[JobLine]
    total: int


class JobDetails(JobLine):
    """One job with its request.

    `curves` has the course of each metric: seconds since the start, and value. Only a running job has `pid` and
    `memory`.
    """

    model_path: str
    pid: int | None
    memory: int | None
    curves: dict[str, list[tuple[float, float]]]
    data: dict[str, Any]
    parameters: dict[str, Any]
    extend: dict[str, Any]


class Placement(TypedDict):
    """The workers of each loaded model, and the algorithms in order."""

    load: dict[str, list[int]]
    algorithms: list[str]


class ModelName(TypedDict):
    """A model and its state."""

    model_id: str
    algorithm: str
    model_path: str | None
    state: ModelWord


class ModelLine(ModelName, total=False):
    """One model of the service.

    `seconds` is the time in the author's code. `memory` is by how much its worker grew. `evaluation` is the summary of
    its evaluation. `lazy`: it was loaded because a prediction asked for it. `p50` and `p99` are the median and the
    99th percentile of a call of `predict`, in seconds, and `failures` counts predictions. `nodes` are where its workers
    are, if they are on a Ray cluster. In cluster mode, `desired` is `loaded` or `unloaded`, None if the database does
    not name the model; `error` says why it could not be loaded, and `load_failures` how often.
    """

    workers: list[int]
    since: float
    waiting: int
    in_flight: int
    predictions: int
    failures: int
    seconds: float
    problem: str
    batches: int
    memory: int | None
    aliases: list[str]
    evaluation: dict[str, Any]
    lazy: bool
    last_used: float
    p50: float | None
    p99: float | None
    nodes: list[str]
    desired: Literal["loaded", "unloaded"] | None
    desired_since: float | None
    error: str
    load_failures: int
    next_try: float | None


class CheckerLine(TypedDict):
    """When the database was last looked at, and what is wrong."""

    looked: float | None
    warnings: list[str]


class ModelLists(TypedDict):
    """Models that are here, should be here, or come back when asked."""

    models: list[ModelLine]
    missing: list[MissingModel]
    evicted: list[EvictedModel]


class ModelPage(ModelLists, total=False):
    """The models of the service; only cluster mode has `checker`."""

    checker: CheckerLine


class StoredModelLine(TypedDict):
    """A model in the store; `below_gate` says why it cannot be used."""

    model_id: str
    algorithm: str
    kind: str
    created: float
    size: int
    evaluation: dict[str, Any]
    below_gate: str
    state: ModelWord
    aliases: list[str]


class StoredModelPage(TypedDict):
    """A page of the models in the store, newest first.

    `total` counts the models of all pages; `next` gives the page after it. `unread` folders were not looked at yet.
    """

    models: list[StoredModelLine]
    total: int
    next: str | None
    unread: int


class WorkerLine(WorkerInfo, kw_only=True):
    """A worker; `problem` says why it is not ready.

    `node` is its node of the cluster, empty if it is here.
    """

    memory: int | None


class WorkerPage(TypedDict):
    """The workers, and how many have ended and were replaced."""

    workers: list[WorkerLine]
    restarts: int


class AliasLine(TypedDict):
    """Where an alias leads; a prediction takes `name` as its model id."""

    name: str
    algorithm: str
    alias: str
    model_id: str
    previous: str | None
    since: float
    state: ModelWord


class AliasPage(TypedDict):
    """All aliases."""

    aliases: list[AliasLine]


class StoredFile(TypedDict):
    """A file in the data bucket, and what its check has found."""

    location: str
    size: int
    report: DataReport | None


class MachineState(TypedDict):
    """The machine.

    Memory is in GiB, idle rates are from 0 to 1. `net_io` is `sent/received`, `block_io` is `read/written`, in GiB
    since boot. The platform itself spells `totol_` so.
    """

    totol_memory: float
    totol_cpu: int
    total_memory: float
    total_cpu: int
    idle_memory_rate: float
    idle_cpu_rate: float
    net_io: str
    block_io: str


class Liveness(TypedDict):
    """The phase of the service's life."""

    phase: Phase


class ReadyState(Liveness):
    """What is wrong although requests are answered."""

    warnings: list[str]


class JobCounts(TypedDict):
    """The jobs that wait and run, and how many can run."""

    waiting: int
    running: int
    places: int


class ModelCounts(TypedDict):
    """The models by their state, and their predictions."""

    loaded: int
    loading: int
    unloading: int
    missing: int
    waiting: int
    in_flight: int


class WorkerCounts(TypedDict):
    """The workers that are ready, all, and the ends of workers."""

    ready: int
    all: int
    restarts: int


class AlgorithmName(TypedDict):
    """An algorithm."""

    name: str
    kind: str


class FailedJob(TypedDict):
    """A job that failed, and why."""

    model_id: str
    algorithm: str
    message: str
    ended: float | None


class RecentFailures(TypedDict):
    """The jobs that failed in the last 24 hours, at most 100."""

    count: int
    last: FailedJob | None


class DiskUse(TypedDict):
    """The disk of the home."""

    total: int
    free: int


class CacheUse(TypedDict):
    """The file cache; `used` is None if that is not known."""

    used: int | None
    limit: int


class MemoryUse(TypedDict):
    """The memory of the server and of the machine."""

    server: int
    total: int
    available: int


class ServiceSummary(TypedDict):
    """The service at a glance.

    `upload_size` is how many bytes a file may have, None if uploads are off.
    """

    phase: Phase
    ready: bool
    reasons: list[str]
    warnings: list[str]
    version: str
    python: str
    started: float
    now: float
    prefix: str
    upload_size: int | None
    store: str
    database: str | None
    jobs: JobCounts
    models: ModelCounts
    workers: WorkerCounts
    algorithms: list[AlgorithmName]
    failed: RecentFailures
    disk: DiskUse | None
    cache: CacheUse
    memory: MemoryUse


class AlgorithmDetails(TypedDict):
    """What a form needs to train and to predict.

    `features`, `params` and `parameters` are JSON schemas. `streams`: `predict` yields.
    """

    name: str
    kind: str
    hooks: list[str]
    examples: list[Any]
    columns: str
    max_batch_size: int
    features: dict[str, Any]
    params: dict[str, Any]
    parameters: dict[str, Any]
    takes_data: bool
    streams: bool


class AlgorithmPage(TypedDict):
    """The algorithms, and the schemas that theirs refer to."""

    algorithms: list[AlgorithmDetails]
    schemas: dict[str, Any]


class Charts(TypedDict):
    """Samples of the last hour, every `step` seconds until `end`."""

    step: float
    end: float
    series: dict[str, list[float | None]]
