"""Loads a model when a prediction asks for it.

That happens for stored models of algorithms with `@app.load(lazy=True)`, and for models that were evicted. However many
predictions ask for a model, it is loaded once; they wait within their time limit. If the load fails, each gets the
error, and so do those that come before the next try, after a pause that grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import msgspec

from mlpkit.algorithm import Algorithm
from mlpkit.errors import (
    BelowGate,
    LoadFailed,
    MlpkitError,
    ModelNotLoaded,
    Overloaded,
    TimeLimitExceeded,
    UnsafePath,
)
from mlpkit.log import logger
from mlpkit.serving.dispatch import PendingPrediction
from mlpkit.serving.model import LoadedModelRecord
from mlpkit.serving.pool import pause_after
from mlpkit.serving.recovery import Ledger
from mlpkit.settings import Settings
from mlpkit.storage import Manifest, Storage, find_manifest

if TYPE_CHECKING:
    from mlpkit.serving.models import Models

_SHORT_PAUSE = 1.0
"""Seconds until the next try if a model was not stored, or had no room: both may change at any moment."""
_AT_ONCE = 8
"""Manifests that are asked for at the same time."""
_MOST_FAILURES = 1000
_AGAIN = ": it is being loaded again, see GET /models"


@dataclass
class _Asked:
    """The predictions that wait for a model; `limit` is in seconds."""

    limit: float
    load: asyncio.Task[None]
    waiting: list[PendingPrediction] = field(default_factory=list)


@dataclass(frozen=True)
class _FailedLoad:
    """Why a model is not loaded now.

    `until` is in monotonic seconds.
    """

    error: MlpkitError
    times: int
    until: float


class LazyLoads:
    """The models that predictions ask for and that are not loaded.

    Args:
        storage: where models are stored; None: none is.
    """

    def __init__(
        self,
        models: Models,
        algorithms: Mapping[str, Algorithm],
        ledger: Ledger,
        settings: Settings,
        storage: Storage | None,
    ) -> None:
        self._models = models
        self._algorithms = algorithms
        self._lazy = {name for name, algorithm in algorithms.items() if algorithm.load_options.lazy}
        self._ledger = ledger
        self._settings = settings
        self._storage = storage
        self._asked: dict[str, _Asked] = {}
        self._failures: dict[str, _FailedLoad] = {}
        self._threads = anyio.CapacityLimiter(_AT_ONCE)

    def is_asked(self, model_id: str) -> bool:
        """Whether predictions wait for the model."""
        return model_id in self._asked

    def add(self, model_id: str, prediction: PendingPrediction, *, leaves: bool = False) -> None:
        """Lets a prediction wait for its model, whose load begins.

        `leaves` if the model is being unloaded.

        Raises:
            ModelNotLoaded: the model is not loaded when it is asked for.
            Overloaded: too many predictions or models wait already.
            MlpkitError: the last load has failed, and it is too early for the next.
        """
        record = self._ledger.get(model_id)
        if not (self._lazy or (record is not None and record.evicted)):
            # A service answers as soon as it has started, and loads what it had before meanwhile.
            known = record is not None and record.algorithm in self._algorithms and not record.given_up
            raise ModelNotLoaded(model_id, _AGAIN if known and not leaves else "")
        failure = self._failures.get(model_id)
        if failure is not None and prediction.since < failure.until:
            raise failure.error.with_traceback(None)
        asked = self._asked.get(model_id)
        most = self._settings.max_waiting
        if asked is None:
            if len(self._asked) >= most:
                raise Overloaded(f"{most} models are being loaded already: try again later")
            # Not in a task group: a connection calls this outside of all tasks.
            load = asyncio.get_running_loop().create_task(self._bring(model_id))
            asked = self._asked[model_id] = _Asked(self._settings.predict_timeout, load)
        if len(asked.waiting) >= most:
            raise Overloaded(f"{most} predictions wait for model [{model_id}] already: try again later")
        asked.waiting.append(prediction)

    def expire(self, now: float) -> None:
        """Fails what has waited too long."""
        for model_id, asked in self._asked.items():
            for prediction in asked.waiting:
                if now - prediction.since > asked.limit:
                    prediction.finish(
                        TimeLimitExceeded(f"model [{model_id}] was not loaded within {asked.limit:g} s: try again")
                    )
            asked.waiting = [prediction for prediction in asked.waiting if not prediction.over]

    def close(self, error: MlpkitError) -> None:
        """Fails everything that waits, and asks for nothing more."""
        for asked in self._asked.values():
            asked.load.cancel()
            for prediction in asked.waiting:
                prediction.finish(error)

    def forget_failure(self, model_id: str) -> None:
        """Lets the next prediction try a load again."""
        self._failures.pop(model_id, None)

    async def _bring(self, model_id: str) -> None:
        """Loads a model, and hands it the predictions that wait."""
        problem: MlpkitError | None = None
        try:
            record = await self._find(model_id)
            timeout = self._algorithms[record.algorithm].predict_options.timeout or 0.0
            self._asked[model_id].limit = max(timeout, self._settings.predict_timeout)
            model = await self._models.load_asked(record)
        except MlpkitError as error:
            problem = error
        except Exception as error:
            logger.exception("model {!r} could not be loaded for a prediction", model_id)
            problem = LoadFailed(f"internal error: {error}")
        asked = self._asked.pop(model_id)
        if problem is None:
            self.forget_failure(model_id)
            for prediction in asked.waiting:
                model.dispatcher.add(prediction)
            return
        if not isinstance(problem, Overloaded):
            self._note_failure(model_id, problem)
        for prediction in asked.waiting:
            prediction.finish(problem)

    async def _find(self, model_id: str) -> LoadedModelRecord:
        """The record of a model that may be loaded now.

        Raises:
            ModelNotLoaded: there is none, or its algorithm is not lazy.
            BelowGate: it is below its gate.
            StorageError: the store could not be asked, or the model is incomplete.
        """
        record = self._ledger.get(model_id)
        if record is not None and record.algorithm in self._algorithms:
            if record.given_up:
                raise LoadFailed(f"model [{model_id}] was given up ({record.given_up}): load it by /load")
            if record.evicted:
                return msgspec.structs.replace(record, evicted=0.0)
            if record.algorithm in self._lazy:
                return msgspec.structs.replace(record, lazy=True)
            raise ModelNotLoaded(model_id)
        manifest = await self._manifest(model_id)
        if manifest is None or manifest.algorithm not in self._lazy:
            raise ModelNotLoaded(model_id)
        if manifest.below_gate:
            raise BelowGate(f"model [{model_id}] is below its gate: {manifest.below_gate}")
        return LoadedModelRecord(manifest.algorithm, model_id, lazy=True, size=sum(manifest.files.values()))

    async def _manifest(self, model_id: str) -> Manifest | None:
        if self._storage is None:
            return None
        with contextlib.suppress(UnsafePath):
            return await find_manifest(self._storage, self._settings, model_id, self._threads)
        return None

    def _note_failure(self, model_id: str, error: MlpkitError) -> None:
        before = self._failures.pop(model_id, None)
        was_tried = error.was_tried if isinstance(error, LoadFailed) else not isinstance(error, ModelNotLoaded)
        times = (before.times if before is not None else 0) + was_tried
        pause = pause_after(times) if was_tried else _SHORT_PAUSE
        self._failures[model_id] = _FailedLoad(error, times, time.monotonic() + pause)
        for oldest in list(self._failures)[:-_MOST_FAILURES]:
            del self._failures[oldest]
