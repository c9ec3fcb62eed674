"""A model as the server sees it, and who needs it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import msgspec

from mlpkit.algorithm import Algorithm
from mlpkit.errors import ArgumentError, LoadFailed, MlpkitError, ModelInUse, Overloaded
from mlpkit.log import logger
from mlpkit.metrics import HOURS, Histogram
from mlpkit.serving.dispatch import Counts, Dispatcher, Replica

State = Literal["loading", "loaded", "unloading"]
ModelWord = Literal[State, "unloaded"]
"""The state of a model that may be none of this service."""


@dataclass
class Loads:
    """The loads of an algorithm's models: seconds, and how many failed.

    `lazy` counts those that predictions asked for, `evictions` the models that left because memory was short.
    """

    seconds: Histogram = field(default_factory=partial(Histogram, HOURS))
    failures: int = 0
    lazy: int = 0
    evictions: int = 0


class LoadedModelRecord(msgspec.Struct, frozen=True):
    """A model that was asked for, as it is kept on disk.

    `extend` is JSON text.

    `given_up` says why it is not loaded any more: it ended its worker again and again. `by_alias`: only aliases want
    it, so it is unloaded when none leads to it any more. `by_table`: the platform's table names it. `lazy`: only
    predictions asked for it, so it is not kept on disk. With one of these three, it must not be below its gate.

    `evicted` is when it left because memory was short, in seconds since the epoch; otherwise 0. `size` is the bytes of
    its files, 0 if not known.
    """

    algorithm: str
    model_id: str
    model_path: str | None = None
    extend: str = "null"
    given_up: str = ""
    by_alias: bool = False
    by_table: bool = False
    lazy: bool = False
    evicted: float = 0.0
    size: int = 0


class ModelInfo(msgspec.Struct):
    """A model at one moment.

    `since` and `last_used` are in seconds since the epoch, `seconds` is the time in the user's code. `memory` is by how
    many bytes the worker grew when the model was last loaded; None if that is not known, or little. `evaluation` is the
    summary in the model's manifest, empty if there is none. `lazy`: it was loaded because a prediction asked for it.
    `p50` and `p99` are the median and the 99th percentile of a call of `predict`, in seconds; None before the first.
    `nodes` are where the workers are, in the same order, if they are on a cluster; empty for one that is starting.
    """

    model_id: str
    algorithm: str
    model_path: str | None
    state: State
    workers: list[int]
    since: float
    waiting: int
    in_flight: int
    predictions: int
    failures: int
    seconds: float
    problem: str = ""
    batches: int = 0
    memory: int | None = None
    aliases: list[str] = []
    evaluation: dict[str, Any] = {}
    lazy: bool = False
    last_used: float = 0.0
    p50: float | None = None
    p99: float | None = None
    nodes: list[str] = []


class MissingModel(msgspec.Struct):
    """A model that should be loaded and is not, and why."""

    model_id: str
    algorithm: str
    model_path: str | None
    reason: str


class EvictedModel(msgspec.Struct):
    """A model that left because memory was short.

    A prediction loads it again. `since` is in seconds since the epoch; `lazy`: nobody has loaded it by `/load`.
    """

    model_id: str
    algorithm: str
    model_path: str | None
    since: float
    lazy: bool


class WorkerInfo(msgspec.Struct):
    """A worker at one moment.

    `pid` and `since` (seconds since the epoch) are None while none is ready; then `problem` says why. `restarts` counts
    the workers that ended here. `devices` are the GPUs that it sees, if its model asked for some. `node` is the node of
    the cluster on which it is, empty if it is here; then `pid` is the process here that speaks to it.
    """

    index: int
    pid: int | None
    ready: bool
    isolated: bool
    models: list[str]
    since: float | None
    restarts: int
    problem: str
    devices: list[str]
    node: str


@dataclass(eq=False)
class ModelState:
    """A model, from the first request for it until it is gone.

    `returning`: it is loaded, at least one worker has lost it, and it is being loaded there again. `failures` says how
    often that, or its load before, has failed without anybody asking for it. `memory` is how many bytes the limit of
    models counts for it, `grown` the most that one load of it was seen to take.
    """

    algorithm: Algorithm
    record: LoadedModelRecord
    uuid: str | None
    dispatcher: Dispatcher
    state: State = "loading"
    since: float = field(default_factory=time.time)
    problem: str = ""
    returning: bool = False
    failures: int = 0
    evaluation: dict[str, Any] = field(default_factory=dict)
    memory: int = 0
    grown: int = 0
    evicted: bool = False
    settled: asyncio.Future[None] = field(default_factory=lambda: _new_future())
    """Done when the present load or unload has ended."""

    @property
    def model_id(self) -> str:
        """The id by which callers know it."""
        return self.record.model_id

    @property
    def replicas(self) -> list[Replica]:
        """The workers that hold the model, or are about to."""
        return self.dispatcher.replicas

    @property
    def is_on_cluster(self) -> bool:
        """Whether its workers are on a Ray cluster."""
        return any(replica.slot.cluster is not None for replica in self.replicas)

    @property
    def counts(self) -> Counts:
        """What the model has done since it was loaded."""
        return self.dispatcher.counts

    def begin_unload(self) -> None:
        """Takes no more predictions.

        `settled` will be done again when the model is gone.
        """
        self.state = "unloading"
        self.settled = _new_future()

    async def wait_settled(self) -> None:
        """Waits for the present load or unload.

        Others may wait for it too: a caller who goes away does not end it.
        """
        await asyncio.shield(self.settled)

    async def at_rest(self, end: float) -> bool:
        """Whether all that the model does has ended.

        Waits for that until `end`, in monotonic seconds.
        """
        await asyncio.wait([self.settled], timeout=max(0.0, end - time.monotonic()))
        return self.settled.done() and await self.dispatcher.idle(max(0.0, end - time.monotonic()))

    def info(self) -> ModelInfo:
        """The model as it is now."""
        counts = self.counts
        return ModelInfo(
            model_id=self.model_id,
            algorithm=self.algorithm.name,
            model_path=self.record.model_path,
            state=self.state,
            workers=[replica.slot.index for replica in self.replicas],
            since=self.since,
            waiting=len(self.dispatcher.waiting),
            in_flight=sum(replica.busy for replica in self.replicas),
            predictions=counts.predictions,
            failures=counts.failures,
            seconds=counts.seconds,
            problem=self.problem,
            batches=counts.batches,
            evaluation=self.evaluation,
            lazy=self.record.lazy,
            last_used=time.time() - time.monotonic() + self.dispatcher.last_used,
            p50=counts.call.quantile(0.5),
            p99=counts.call.quantile(0.99),
            nodes=[replica.slot.node for replica in self.replicas if replica.slot.cluster is not None],
        )


class Claims:
    """Who needs a model to stay: aliases, the platform's table, `preload`."""

    def __init__(self, preloaded: Iterable[str]) -> None:
        self.named: dict[str, LoadedModelRecord] = {}
        """The models that aliases lead to, by the alias's name; `Aliases` changes it."""
        self.in_table: frozenset[str] = frozenset()
        """The models that the platform's table names; `Checker` changes it."""
        self._coming: dict[str, str] = {}
        """The models that aliases are about to lead to, by the alias's name."""
        self._preloaded = frozenset(preloaded)

    @contextlib.contextmanager
    def kept(self, model_id: str, alias: str) -> Iterator[None]:
        """Keeps a model from being unloaded while an alias moves to it."""
        self._coming[alias] = model_id
        try:
            yield
        finally:
            del self._coming[alias]

    def alias_of(self, model_id: str) -> str | None:
        """An alias that leads to the model, or is about to."""
        leading = (name for name, record in self.named.items() if record.model_id == model_id)
        coming = (name for name, kept in self._coming.items() if kept == model_id)
        return next(leading, None) or next(coming, None)

    def aliases_of(self, model_id: str) -> list[str]:
        """All aliases that lead to the model."""
        return sorted(name for name, record in self.named.items() if record.model_id == model_id)

    def keeps(self, model_id: str) -> bool:
        """Whether the model must stay even if memory is short."""
        return model_id in self.in_table or model_id in self._preloaded or self.alias_of(model_id) is not None

    def check_model_id(self, model_id: str) -> None:
        """Checks that this is not the name of an alias.

        Raises:
            ArgumentError: it is.
        """
        if model_id in self.named or model_id in self._coming:
            raise ArgumentError(f"[{model_id}] is an alias, not the id of a model: /alias and /unalias change it")

    def check_unloadable(self, model_id: str) -> None:
        """Checks that the model may be unloaded.

        Raises:
            ModelInUse: an alias leads to it, or is about to.
            ArgumentError: the id is the name of an alias.
        """
        self.check_model_id(model_id)
        if (alias := self.alias_of(model_id)) is not None:
            raise ModelInUse(model_id, alias)


def load_error(error: Exception) -> MlpkitError:
    """What the callers of a load are told of its failure."""
    if not isinstance(error, MlpkitError):
        logger.error("a load failed inside mlpkit", exception=error)
        return LoadFailed(f"internal error: {error}")
    if isinstance(error, (LoadFailed, ArgumentError, Overloaded)):
        return error
    failed = LoadFailed(str(error))
    failed.trace = error.trace
    failed.__cause__ = error
    return failed


def _new_future() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    # A failed load may have no caller left: asyncio need not complain about that.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
