"""Brings models back: those of the last run when the service starts, those of a worker that was replaced.

What cannot be loaded now is tried again, with pauses that grow; a model that ends its worker again and again is given
up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

import anyio
import msgspec
from anyio.abc import TaskGroup

from mlpkit.errors import ArgumentError, MlpkitError, WorkerLost, WorkerNotReady
from mlpkit.log import logger, with_request_id
from mlpkit.serving.ledger import Entry
from mlpkit.serving.messages import AT_ONCE
from mlpkit.serving.model import Model, Replica
from mlpkit.serving.pool import Slot

_MOST_DEATHS = 3
"""A model is given up after its worker died so often while loading it."""
_FIRST_RETRY, _LONGEST_RETRY = 1.0, 60.0

Load = Callable[[str, str, str | None, msgspec.Raw], Awaitable[None]]


class Reloads:
    """Loads again what was loaded. `load` takes a model's algorithm, id, path and `extend`.

    `load_replica` loads into one worker, `give_up` drops a model until somebody asks for it.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        load: Load,
        load_replica: Callable[[Model, Replica], Awaitable[None]],
        give_up: Callable[[Entry, MlpkitError], Awaitable[None]],
    ) -> None:
        self._models, self._load, self._load_replica, self._give_up = models, load, load_replica, give_up
        self._wanted: dict[str, Entry] = {}
        self._tasks: TaskGroup | None = None
        self._all_tried, self._suspect = asyncio.Event(), asyncio.Lock()
        self.problem = "the workers are starting"
        """Why the models of the last run are not all there yet; empty once each was tried."""

    def open(self, tasks: TaskGroup) -> None:
        """Runs what is tried again later in this task group."""
        self._tasks = tasks

    def forget(self, model_id: str) -> None:
        """Does not bring the model back any more."""
        self._wanted.pop(model_id, None)

    async def restore(
        self, entries: Iterable[Entry], slots: Collection[Slot], isolated: Collection[str], limit: float
    ) -> None:
        """Loads the models of the last run, once the workers are ready or have had `limit` seconds.

        `isolated` names the algorithms whose models start processes of their own: fewer of them are loaded at a time.
        """
        self._wanted = {entry.model_id: entry for entry in entries}
        for slot in slots:
            with contextlib.suppress(MlpkitError):
                await slot.wait_ready(limit)
        self.problem = f"{len(self._wanted)} models are being loaded" if self._wanted else ""
        # As many as the workers take: what stood in a queue before them would count as memory about to be taken.
        in_workers = anyio.CapacityLimiter(AT_ONCE * max(1, len(slots)))
        in_own = anyio.CapacityLimiter(AT_ONCE)

        async def first_try(entry: Entry) -> None:
            async with in_own if entry.algorithm in isolated else in_workers:
                await self._restore(entry, _FIRST_RETRY)

        async with anyio.create_task_group() as tries:
            for entry in list(self._wanted.values()):
                tries.start_soon(first_try, entry)
        self._all_tried.set()
        self.problem = ""

    async def reload(self, slot: Slot) -> None:
        """Loads the models of a worker that was replaced; those that may have ended it come last, one at a time."""
        worker = slot.worker
        replicas = [
            (model, replica)
            for model in self._models.values()
            for replica in model.replicas
            if replica.slot is slot and model.state == "loaded"
        ]
        limiter = anyio.CapacityLimiter(AT_ONCE)

        async def in_turn(model: Model, replica: Replica) -> None:
            async with limiter:
                # Where it has ended meanwhile, its replacement has a reload of its own.
                if slot.worker is worker:
                    await self._reload(model, replica, _FIRST_RETRY)

        with with_request_id("reload"):
            await asyncio.gather(*(in_turn(*each) for each in replicas if not each[0].deaths))
            for model, replica in sorted(replicas, key=lambda each: each[0].deaths):
                if model.deaths and slot.worker is worker:
                    await self._reload(model, replica, _FIRST_RETRY)

    async def _restore(self, entry: Entry, pause: float, deaths: int = 0) -> None:
        if entry.model_id not in self._wanted:
            return
        with with_request_id("restore"):
            try:
                await (self._load_alone if deaths else self._load_entry)(entry)
            except ArgumentError as error:
                logger.error("model {!r} could not be loaded at the start: {}", entry.model_id, error)
            except MlpkitError as error:
                deaths += _has_ended_worker(error.__cause__)
                if deaths < _MOST_DEATHS:
                    again = f"the next try is in {pause:g} s"
                    logger.error("model {!r} could not be loaded at the start: {}; {}", entry.model_id, error, again)
                    self._later(pause, self._restore, entry, min(_LONGEST_RETRY, pause * 2), deaths)
                    return
                await self._abandon(entry, deaths, error)
        self._wanted.pop(entry.model_id, None)

    async def _load_entry(self, entry: Entry) -> None:
        await self._load(entry.algorithm, entry.model_id, entry.model_path, msgspec.Raw(entry.extend.encode()))

    async def _load_alone(self, entry: Entry) -> None:
        """Loads what may have ended its worker: after all others, one at a time, so that the innocent are found."""
        await self._all_tried.wait()
        async with self._suspect:
            await self._load_entry(entry)

    async def _reload(self, model: Model, replica: Replica, pause: float) -> None:
        worker = replica.slot.worker
        if model.state != "loaded" or worker is None or replica.ready:
            return
        try:
            await self._load_replica(model, replica)
        except MlpkitError as error:
            if _has_ended_worker(error):
                await self._count_death(model, error)
                return
            # One model that cannot come back must not keep the others from being served.
            model.returning = False
            model.problem = f"could not be loaded again: {error}; the next try is in {pause:g} s"
            logger.error("model {!r} {}", model.model_id, model.problem)
            if replica.slot.worker is worker:
                self._later(pause, self._reload, model, replica, min(_LONGEST_RETRY, pause * 2))
        else:
            model.deaths = 0
            if all(each.ready for each in model.replicas):
                model.problem, model.returning = "", False
            logger.info("model {!r} is loaded again in worker {}", model.model_id, replica.slot.index)
            model.dispatch()

    async def _count_death(self, model: Model, error: MlpkitError) -> None:
        model.deaths += 1
        if model.deaths >= _MOST_DEATHS:
            entry = Entry(model.algorithm.name, model.model_id, model.model_path, model.extend.decode())
            await self._abandon(entry, model.deaths, error)

    async def _abandon(self, entry: Entry, deaths: int, error: MlpkitError) -> None:
        logger.error("model {!r} is given up: its worker died {} times while loading it", entry.model_id, deaths)
        await self._give_up(entry, error)

    def _later(self, pause: float, retry: Callable[..., Awaitable[None]], *args: object) -> None:
        async def wait() -> None:
            await asyncio.sleep(pause)
            with with_request_id("reload"):
                await retry(*args)

        assert self._tasks is not None
        self._tasks.start_soon(wait)


def _has_ended_worker(error: BaseException | None) -> bool:
    """Whether a worker ended in the load: not where there was none that could take it."""
    return isinstance(error, WorkerLost) and not isinstance(error, WorkerNotReady)
