"""Which models leave if a load does not fit into `MLPKIT_MODEL_MEMORY`.

- Every model counts, from the begin of its load until it is gone, with what it needs in all its workers.
- Models that are idle leave, the least recently used first. None leaves if that would still be too little.
- A model stays while predictions wait for it or are in flight, and while an alias, the table or `preload` names it.
- A load waits for room within its time limit. If those that stay leave too little, it is refused with the figures.

What a model needs is better known after its load than before. So what is too much then is evicted afterwards.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from mlpkit.errors import LoadFailed
from mlpkit.serving.model import EvictedModel, LoadedModelRecord, ModelState

if TYPE_CHECKING:
    from mlpkit.serving.models import Models

_LOOK = 0.02
"""Seconds between two looks while a load waits for room."""
_MOST_LISTED = 1000
"""How many evicted models are listed."""


class Eviction:
    """Keeps the models of a service within a limit.

    Args:
        limit: bytes; 0 means no limit, and nothing is evicted.
    """

    def __init__(self, models: Models, limit: int) -> None:
        self._models = models
        self._limit = limit
        self._evicted: dict[str, EvictedModel] = {}
        self._wanted: list[int] = []
        """Bytes that each load needs that waits for room: they are freed together, not for one after the other."""

    def evicted(self) -> list[EvictedModel]:
        """The models that have left, and would be loaded again."""
        return list(self._evicted.values())

    def note(self, record: LoadedModelRecord) -> None:
        """Lists a model that has left."""
        self.forget(record.model_id)
        self._evicted[record.model_id] = EvictedModel(
            record.model_id, record.algorithm, record.model_path, record.evicted, record.lazy
        )
        for oldest in list(self._evicted)[:-_MOST_LISTED]:
            del self._evicted[oldest]

    def forget(self, model_id: str) -> None:
        """Lists a model no longer: it is loaded, or nobody needs it."""
        self._evicted.pop(model_id, None)

    async def make_room(self, model: ModelState, needed: int, seconds: float) -> None:
        """Counts a model that will be loaded, once there is room.

        Raises:
            LoadFailed: there is none within `seconds`; names the figures.
        """
        if not self._limit:
            return
        end = time.monotonic() + seconds
        self._wanted.append(needed)
        try:
            while self._taken() + needed > self._limit:
                self._check(model, needed, was_tried=False)
                if time.monotonic() > end:
                    raise LoadFailed(
                        f"the model needs {_mebibytes(needed)} of memory, and the models that are in use leave too "
                        f"little of {_mebibytes(self._limit)} (MLPKIT_MODEL_MEMORY)",
                        was_tried=False,
                    )
                self._free(self._taken() + self._attainable() - self._limit)
                await asyncio.sleep(_LOOK)
            model.memory = needed
        finally:
            self._wanted.remove(needed)

    def count(self, model: ModelState, needed: int) -> None:
        """Counts what a model that was loaded needs.

        Raises:
            LoadFailed: it cannot fit; names the figures.
        """
        if self._limit:
            model.memory = needed
            self._check(model, needed, was_tried=True)

    def trim(self) -> None:
        """Evicts what is too much now."""
        if self._limit and (missing := self._taken() - self._limit) > 0:
            self._free(missing)

    def _taken(self) -> int:
        return sum(model.memory for model in self._models.states.values())

    def _attainable(self) -> int:
        """Bytes of waiting loads that fit once idle models have left."""
        leaving = sum(
            model.memory
            for model in self._models.states.values()
            if model.state == "unloading" or self._may_leave(model)
        )
        room = self._limit - self._taken() + leaving
        found = 0
        for needed in self._wanted:
            if found + needed <= room:
                found += needed
        return found

    def _free(self, missing: int) -> None:
        """Evicts idle models of this size, or as many as there are."""
        missing -= sum(model.memory for model in self._models.states.values() if model.state == "unloading")
        for model in sorted(self._models.states.values(), key=lambda model: model.dispatcher.last_used):
            if missing <= 0:
                return
            if model.memory and self._may_leave(model):
                missing -= model.memory
                self._models.evict(model)

    def _may_leave(self, model: ModelState) -> bool:
        is_idle = model.state == "loaded" and model.dispatcher.is_idle
        return is_idle and not self._models.lazy.is_asked(model.model_id) and not self._stays(model)

    def _stays(self, model: ModelState) -> bool:
        """Whether it must stay, also while nobody asks for it."""
        return self._models.claims.keeps(model.model_id)

    def _check(self, model: ModelState, needed: int, *, was_tried: bool) -> None:
        """Raises LoadFailed if there cannot be room for the model."""
        others = (other for other in self._models.states.values() if other is not model and self._stays(other))
        kept = sum(other.memory for other in others)
        if needed + kept > self._limit:
            taken = f", of which models that must stay take {_mebibytes(kept)}" if kept else ""
            raise LoadFailed(
                f"the model needs {_mebibytes(needed)} of memory, and MLPKIT_MODEL_MEMORY allows "
                f"{_mebibytes(self._limit)}{taken}",
                was_tried=was_tried,
            )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
