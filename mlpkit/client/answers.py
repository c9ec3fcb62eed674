"""Turns a service's answers into data or into exceptions.

Source: `tests/wire/PROTOCOL.md`, sections 1.1 and 1.4. Answers are read leniently (`NaN` is accepted, fields may be
more or fewer), because services that are not mlpkit speak the protocol too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from mlpkit import errors
from mlpkit.client.transport import Answer
from mlpkit.errors import (
    AlgorithmNotFound,
    ArgumentError,
    BodyTooLarge,
    JobConflict,
    JobNotFound,
    LoadFailed,
    MlpkitError,
    ModelNotLoaded,
    Overloaded,
    PredictFailed,
    TimeLimitExceeded,
    Unauthorized,
    UnexpectedAnswer,
    UserCodeError,
    WorkerLost,
)

T = TypeVar("T")

_BY_MESSAGE: tuple[tuple[re.Pattern[str], Callable[[str], MlpkitError]], ...] = (
    (re.compile(r"algorithm \[(.*)\] not support", re.DOTALL), AlgorithmNotFound),
    (re.compile(r"model \[(.*)\] not loaded", re.DOTALL), ModelNotLoaded),
    (re.compile(r"no job with model id \[(.*)\]", re.DOTALL), JobNotFound),
    (re.compile(r"load fail ?(.*)", re.DOTALL), LoadFailed),
    (re.compile(r"predict fail ?(.*)", re.DOTALL), PredictFailed),
)
_BY_HTTP_STATUS: dict[int, Callable[[str], MlpkitError]] = {
    error.http_status: error
    for error in (Unauthorized, JobConflict, BodyTooLarge, WorkerLost, Overloaded, TimeLimitExceeded)
}
_LONGEST_EXCERPT = 200


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a job.

    `status` is `init`, `training`, `completed`, `error`, `unknown`, or what the algorithm's own hook says. `message` is
    the reason of an `error`, or how the job continues; `progress` is its last report, `attempt` how often it was
    started. Of a waiting job, `queue_position` is its place (1 is next) and `estimated_start` when it will probably
    start, in seconds since the epoch; None if that is not known. `metrics` are those of the progress, with the summary
    of the evaluation.
    """

    status: Any
    message: str | None = None
    progress: dict[str, Any] | None = None
    queue_position: int | None = None
    estimated_start: float | None = None
    attempt: int | None = None
    metrics: dict[str, Any] = {}

    @property
    def ended(self) -> bool:
        """Whether the job has ended, with or without success."""
        return self.status in ("completed", "error")


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """One job of the list.

    Times are seconds since the epoch. `reported` is when a running job has last sent progress or a line of its log.
    Of a waiting job, `queue_position` is its place (1 is next) and `estimated_start` when it will probably start.
    `evaluation` is the summary of its evaluation, None if there is none. Only `Client.job_view` has `pid` and `memory`
    (bytes).
    """

    model_id: str
    algorithm: str = ""
    state: str = msgspec.field(default="unknown")
    message: str | None = None
    progress: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    attempt: int = 0
    created: float | None = None
    started: float | None = None
    ended: float | None = None
    reported: float | None = None
    queue_position: int | None = None
    estimated_start: float | None = None
    pid: int | None = None
    memory: int | None = None


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the list.

    `since` and `last_used` are in seconds since the epoch, `seconds` is the time in the user's code. `state` is
    `loading`, `loaded`, `unloading` or `unloaded`; `problem` says what is wrong with a model that should be there and
    is not.

    `memory` is by how many bytes its worker grew, None if not known. `evaluation` is the summary of its evaluation.
    `lazy`: it was loaded because a prediction asked for it. `p50` and `p99` are the median and the 99th percentile of a
    call of `predict`, in seconds. `nodes` are where the workers are if they are on a cluster.
    """

    model_id: str
    algorithm: str = ""
    model_path: str | None = None
    state: str = "loaded"
    workers: list[int] = []
    since: float | None = None
    waiting: int = 0
    in_flight: int = 0
    predictions: int = 0
    failures: int = 0
    seconds: float = 0.0
    problem: str = ""
    aliases: list[str] = []
    memory: int | None = None
    evaluation: dict[str, Any] = {}
    lazy: bool = False
    last_used: float | None = None
    p50: float | None = None
    p99: float | None = None
    nodes: list[str] = []


class MissingModelView(msgspec.Struct, frozen=True, kw_only=True):
    """A model that should be loaded and is not; `reason` says why."""

    model_id: str
    algorithm: str = ""
    model_path: str | None = None
    reason: str = ""


class ModelsView(msgspec.Struct, frozen=True, kw_only=True):
    """The models of a service."""

    models: list[ModelView]
    missing: list[MissingModelView] = []


class StoredModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One model in the store.

    `created` is in seconds since the epoch, `size` in bytes. `evaluation` is the summary of its evaluation,
    `below_gate` says why it is below its gate. `state` is `loading`, `loaded`, `unloading` or `unloaded`.
    """

    model_id: str
    algorithm: str = ""
    kind: str = ""
    created: float | None = None
    size: int = 0
    evaluation: dict[str, Any] = {}
    below_gate: str = ""
    state: str = "unloaded"
    aliases: list[str] = []


class StoredModelsView(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the models in the store, newest first.

    `total` counts the models of all pages; `next` gives the page after it, None at the end. `unread` folders were not
    looked at yet: ask again later.
    """

    models: list[StoredModelView]
    total: int = 0
    next: str | None = None
    unread: int = 0


class UploadedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was put into the data bucket.

    `location` is its key there, for `data` of a training; `size` is in bytes. `report` is what the check has found, if
    there was one.
    """

    location: str
    size: int = 0
    report: dict[str, Any] | None = None


class AliasView(msgspec.Struct, frozen=True, kw_only=True):
    """Where an alias leads.

    A prediction takes `name` as its model id. `previous` is the model that it named before, `since` the time of the
    last move in seconds since the epoch, `state` that of the model: `loading`, `loaded`, `unloading` or `unloaded`.
    """

    name: str
    algorithm: str = ""
    alias: str = ""
    model_id: str = ""
    previous: str | None = None
    since: float | None = None
    state: str = "loaded"


class Monitor(msgspec.Struct, frozen=True, kw_only=True):
    """Which workers have which models, and the algorithms in their order."""

    load: dict[str, list[Any]] = {}
    algorithms: list[str] = []


class NodeInfo(
    msgspec.Struct, frozen=True, kw_only=True, rename={"total_memory": "totol_memory", "total_cpu": "totol_cpu"}
):
    """The machine of the service.

    Memory is in GiB, idle rates are from 0 to 1, input and output are in GiB since boot.
    `net_io` is `sent/received`, `block_io` is `read/written`. The platform itself spells `totol_` so.
    """

    total_memory: float
    total_cpu: int
    idle_memory_rate: float
    idle_cpu_rate: float
    net_io: str = ""
    block_io: str = ""


class Readiness(msgspec.Struct, frozen=True):
    """Whether a service takes work now, and if not, why."""

    ready: bool
    reasons: list[str] = []


def data_of(answer: Answer) -> Any:
    """The `data` of a successful answer; None if it has none.

    Raises:
        MlpkitError: the exception of `mlpkit.errors` for this answer.
        UnexpectedAnswer: it is not an answer of the protocol.
    """
    content = _content(answer)
    status = content.get("status")
    if status in ("success", "ok"):
        return content.get("data")
    message = str(content.get("message", ""))
    if status in ("fail", "arg_error") and not message.startswith("404 Not Found"):
        raise _error_of(answer, status, message)
    if status is None and answer.status == 400:
        raise ArgumentError(message)
    raise UnexpectedAnswer(
        f"HTTP {answer.status} with {_excerpt(answer)} is not an answer of this protocol; is the prefix right?"
    )


def typed(data: Any, wanted: type[T]) -> T:
    """`data` as the expected Struct.

    Raises:
        UnexpectedAnswer: a field is missing or has another type.
    """
    try:
        return msgspec.convert(data, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise UnexpectedAnswer(f"the service's answer does not fit {wanted.__name__}: {error}") from None


def _error_of(answer: Answer, status: str, message: str) -> MlpkitError:
    """The exception for a refusal.

    It is found by the name that mlpkit sends, else by the message, the HTTP status or the word.
    """
    named = getattr(errors, answer.headers.get("x-mlpkit-error", ""), None)
    if isinstance(named, type) and issubclass(named, MlpkitError):
        return _made(named, message)
    for pattern, make in _BY_MESSAGE:
        match = pattern.fullmatch(message)
        if match is not None:
            return make(match[1])
    if answer.status in _BY_HTTP_STATUS:
        return _BY_HTTP_STATUS[answer.status](message)
    return ArgumentError(message) if status == "arg_error" else UserCodeError(message)


def _made(kind: type[MlpkitError], message: str) -> MlpkitError:
    """An error with exactly this message; some constructors would add words."""
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error


def _content(answer: Answer) -> dict[str, Any]:
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UnexpectedAnswer(f"HTTP {answer.status} with {_excerpt(answer)} is not an answer of this protocol")
    return content


def _excerpt(answer: Answer) -> str:
    text = answer.body[:_LONGEST_EXCERPT].decode("utf-8", "replace")
    return repr(text) + ("…" if len(answer.body) > _LONGEST_EXCERPT else "")
