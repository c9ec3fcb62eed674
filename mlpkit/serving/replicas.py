"""Loads models into workers, one replica after the other.

A model that was being loaded when its worker died is a *suspect*: its next load has a process of its own, and if that
succeeds, it returns to the shared workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import anyio
import msgspec

from mlpkit.errors import MlpkitError, ServiceStopping, WorkerLost, WorkerNotReady
from mlpkit.log import logger, request_id, traceparent, with_request_id
from mlpkit.serving.dispatch import Replica
from mlpkit.serving.memory import MemoryBudget
from mlpkit.serving.messages import Load, LoadResult, Unload
from mlpkit.serving.model import ModelState
from mlpkit.serving.pool import Pool, WorkerSlot
from mlpkit.serving.worker import Worker, all_of, ask, request_ids
from mlpkit.settings import Settings

if TYPE_CHECKING:
    from mlpkit.serving.models import Models

STOPPING = "the service is stopping and takes no new work"
LOAD_ROUNDS = 3
"""How often a load goes back to workers that ended after they had the model."""
_PARALLEL_SUSPECTS = 2
"""How many suspects are loaded at the same time: each needs a process."""
_MOST_SUSPECTS = 1000
_LATER = 10.0
_WATCH = 0.1
"""Seconds between two looks whether a model has left its own process."""


class _LostWithOthers(WorkerLost):
    """A worker died during a load, and held other requests too.

    Any of them may have ended it.
    """


class ReplicaLoads:
    """Loads and unloads single replicas."""

    def __init__(self, models: Models, pool: Pool, budget: MemoryBudget, settings: Settings) -> None:
        self._models = models
        self._pool = pool
        self._deaths: dict[str, int] = {}
        self._suspects = anyio.CapacityLimiter(_PARALLEL_SUSPECTS)
        self._budget = budget
        self._settings = settings

    def deaths(self, model_id: str) -> int:
        """How often a worker died while it was loading the model.

        Since the last load that succeeded in a shared worker.
        """
        return self._deaths.get(model_id, 0)

    def forget_deaths(self, model_id: str) -> None:
        """Lets the model be loaded as any other again."""
        self._deaths.pop(model_id, None)

    def limit(self, model: ModelState) -> float:
        """The seconds that a load or unload may take."""
        return model.algorithm.load_options.timeout or self._settings.load_timeout

    def _start_limit(self, slot: WorkerSlot, limit: float) -> float:
        """The seconds that a load waits for its worker."""
        if slot.cluster is None:
            return min(limit, self._settings.start_timeout)
        # On a cluster, the start itself ends before that, and says why there is no place.
        return self._settings.place_timeout + self._settings.start_timeout + _LATER

    async def load_all(self, model: ModelState) -> None:
        """Loads a model into all its workers.

        It is loaded again into those that end meanwhile, a few times.
        """
        for _ in range(LOAD_ROUNDS):
            lost = [replica for replica in model.replicas if not replica.ready]
            if not lost:
                return
            await all_of(self.load(model, replica) for replica in lost)

    async def load(self, model: ModelState, replica: Replica) -> None:
        """Loads a model into the worker of a replica.

        A suspect gets a worker of its own.
        """
        if not replica.slot.isolated and not self.deaths(model.model_id):
            # If the worker dies and held nothing else, this load has ended it.
            with contextlib.suppress(_LostWithOthers):
                await self._send_load(model, replica)
                return
        if replica.slot.isolated:
            await self._send_load(model, replica)
            return
        async with self._suspects:
            if self._models.closing:
                raise ServiceStopping(STOPPING)
            replica.slot.models -= 1
            replica.slot = self._pool.add(isolated=True)
            replica.slot.models += 1
            replica.slot.is_repeat = model.failures > 1
            logger.log(
                "DEBUG" if replica.slot.is_repeat else "WARNING",
                "model {!r} is loaded alone in worker {}: a worker died while loading it",
                *(model.model_id, replica.slot.index),
            )
            await self._send_load(model, replica)

    async def _send_load(self, model: ModelState, replica: Replica) -> None:
        """Asks a replica's worker to load the model, once it is ready."""
        limit = self.limit(model)
        record = model.record
        request = Load(
            next(request_ids),
            record.algorithm,
            record.model_id,
            record.model_path,
            record.extend.encode(),
            model.uuid,
            request_id.get(),
            model.failures,
            traceparent.get(),
            gated=record.by_alias or record.by_table or record.lazy,
        )
        slot = replica.slot
        worker: Worker | None = None
        replica.loading = True
        try:
            async with slot.loads:
                worker = await slot.wait_ready(self._start_limit(slot, limit))
                result = msgspec.json.decode(await ask(worker, request, limit), type=LoadResult | None) or LoadResult()
                model.evaluation = result.evaluation
                model.grown = max(model.grown, result.growth or 0, result.size)
                replica.ready = True
        except MlpkitError as error:
            if has_ended_worker(error):
                self._deaths[model.model_id] = self._deaths.pop(model.model_id, 0) + 1
                for oldest in list(self._deaths)[:-_MOST_SUSPECTS]:
                    del self._deaths[oldest]
                if worker is not None and worker.held_at_end > 1:
                    raise _LostWithOthers(str(error)) from error
            raise
        finally:
            replica.loading = False
        if not slot.isolated or model.algorithm.load_options.isolated:
            self.forget_deaths(model.model_id)
        if self._models.states.get(model.model_id) is not model:
            await self.unload(replica, model.model_id, limit)
        elif result.growth is not None:
            await self._budget.remember(model.model_id, result.growth)

    def rejoin_soon(self, model: ModelState, replica: Replica) -> None:
        """Lets a suspect that was loaded alone return to shared workers."""
        alone = replica.slot.isolated and not model.algorithm.load_options.isolated
        # One that has ended a shared worker twice stays alone.
        if alone and self.deaths(model.model_id) == 1:
            self._models.start(self._rejoin, model, replica)

    async def _rejoin(self, model: ModelState, alone: Replica) -> None:
        """Moves a model from its own process into a shared worker."""
        used = [replica.slot for replica in model.replicas]
        free = [slot for slot in self._pool.place(len(self._pool.shared)) if slot not in used]
        if not free:
            return
        shared = Replica(free[0])
        shared.slot.models += 1
        model.replicas.append(shared)
        limit = self.limit(model)
        with with_request_id("rejoin"):
            try:
                async with self._budget.taken(model, 1, limit):
                    await self._send_load(model, shared)
            except MlpkitError as error:
                logger.warning("model {!r} stays alone in worker {}: {}", model.model_id, alone.slot.index, error)
                shared.slot.models -= 1
                model.replicas.remove(shared)
                return
            if model.state != "loaded" or alone not in model.replicas:
                return  # It is being unloaded, with both.
            model.replicas.remove(alone)
            model.dispatcher.dispatch()
            end = time.monotonic() + limit
            while alone.busy and time.monotonic() < end:  # noqa: ASYNC110 - rare, and nobody waits for it
                await asyncio.sleep(_WATCH)
            await self._pool.remove(alone.slot, grace=5.0)
            logger.info("model {!r} has returned to worker {}", model.model_id, shared.slot.index)

    async def unload(self, replica: Replica, model_id: str, limit: float) -> None:
        """Asks the worker of a replica to drop the model."""
        worker = replica.slot.worker
        if worker is not None:
            with contextlib.suppress(MlpkitError):
                await ask(worker, Unload(next(request_ids), model_id, request_id.get(), traceparent.get()), limit)
        replica.ready = False


def has_ended_worker(error: BaseException | None) -> bool:
    """Whether a worker ended during a load.

    That is not so if no worker could take it.
    """
    return isinstance(error, WorkerLost) and not isinstance(error, WorkerNotReady)
