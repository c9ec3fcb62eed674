"""What brings models back after a restart or a worker's death.

- What was loaded is loaded again when the service starts, and when a worker was replaced.
- What cannot be loaded now is tried again, with pauses that grow.
- A model that was being loaded when its worker died is a *suspect*: its next load has a process of its own, so that it
  can end no other model's worker. If it succeeds, the model moves to the shared workers.
- A model is given up after its worker died three times while loading it. It stays on the list with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec

from mlpkit.errors import ArgumentError, MlpkitError
from mlpkit.log import level_of_failure, logger, with_request_id
from mlpkit.serving.dispatch import Replica
from mlpkit.serving.messages import PARALLEL_LOADS
from mlpkit.serving.model import LoadedModelRecord, ModelState
from mlpkit.serving.pool import WorkerSlot, pause_after
from mlpkit.serving.replicas import ReplicaLoads, has_ended_worker
from mlpkit.storage import decode_json, replace_file

if TYPE_CHECKING:
    from mlpkit.serving.models import Models

_MOST_DEATHS = 3
"""A model is given up after its worker died this many times while loading it."""
_WRITE_AGAIN = 5.0
"""Seconds between two tries to write what could not be written."""


class Ledger:
    """Which models are loaded, in a file.

    If it cannot be written, that is a warning: loads continue.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, LoadedModelRecord] = {}
        self._given_up: dict[str, LoadedModelRecord] = {}
        self._disk = anyio.CapacityLimiter(1)
        self._problem = ""

    def read(self) -> list[LoadedModelRecord]:
        """The models of the last run, in the order of their loads.

        No models if the file cannot be read.
        """
        try:
            records = decode_json(self._path.read_bytes(), list[LoadedModelRecord])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            logger.error("the list of loaded models {} cannot be read, none is loaded again: {}", self._path, error)
            return []
        for record in records:
            self._put(record)
        return [record for record in records if not record.given_up and not record.evicted]

    def get(self, model_id: str) -> LoadedModelRecord | None:
        """The record of a model that is loaded, or should be."""
        return self._records.get(model_id)

    async def add(self, record: LoadedModelRecord) -> None:
        """Remembers a model that was loaded.

        It is on disk when this returns.
        """
        if self._records.get(record.model_id) == record and not self._problem:
            # Loaded again after a restart: a thousand models would write the list a thousand times.
            return
        self._put(record)
        await self._write()

    async def remove(self, model_id: str) -> None:
        """Forgets a model that was unloaded."""
        self._given_up.pop(model_id, None)
        if self._records.pop(model_id, None) is not None:
            await self._write()

    async def give_up(self, record: LoadedModelRecord, why: str) -> None:
        """Remembers not to load the model until somebody asks for it."""
        self._put(msgspec.structs.replace(record, given_up=why))
        await self._write()

    async def keep(self) -> None:
        """Writes again what could not be written; never returns."""
        while True:
            await asyncio.sleep(_WRITE_AGAIN)
            if self._problem:
                await self._write()

    def given_up(self) -> list[LoadedModelRecord]:
        """The models that are not loaded any more until somebody asks."""
        return list(self._given_up.values())

    def evicted(self) -> list[LoadedModelRecord]:
        """The models that are loaded again when a prediction asks for them."""
        return [record for record in self._records.values() if record.evicted]

    def warnings(self) -> list[str]:
        """What somebody should know, a sentence each."""
        given_up = [
            f"model [{record.model_id}] was given up ({record.given_up}): load it again, or unload it"
            for record in self._given_up.values()
        ]
        return given_up + ([self._problem] if self._problem else [])

    def _put(self, record: LoadedModelRecord) -> None:
        self._records[record.model_id] = record
        self._given_up.pop(record.model_id, None)
        if record.given_up:
            self._given_up[record.model_id] = record

    async def _write(self) -> None:
        content = msgspec.json.encode(list(self._records.values()))
        problem = ""
        try:
            await anyio.to_thread.run_sync(replace_file, self._path, content, limiter=self._disk)
        except OSError as error:
            problem = (
                f"the list of loaded models {self._path} cannot be written ({error.strerror or error}): until it can, "
                "a restart loads what was loaded before; free some space, or check the folder"
            )
        if problem and problem != self._problem:
            logger.error(problem)
        elif self._problem and not problem:
            logger.info("the list of loaded models {} is written again", self._path)
        self._problem = problem


class Recovery:
    """Loads again what was loaded, through `Models`."""

    def __init__(self, models: Models, replicas: ReplicaLoads) -> None:
        self._models = models
        self._replicas = replicas
        self._wanted: dict[str, LoadedModelRecord] = {}
        self._reasons: dict[str, str] = {}
        """Why the last try to load a wanted model failed."""
        self.problem = "the workers are starting"
        """Why the models of the last run are not all there yet; empty once each was tried."""

    def forget(self, model_id: str) -> None:
        """Does not bring the model back any more."""
        self._wanted.pop(model_id, None)
        self._reasons.pop(model_id, None)

    def wanted(self, model_id: str) -> LoadedModelRecord | None:
        """A model of the last run that is still missing, or None."""
        return self._wanted.get(model_id)

    def missing(self) -> list[tuple[LoadedModelRecord, str]]:
        """The models of the last run that are missing, and why."""
        return [
            (record, self._reasons.get(record.model_id, "waits for its turn to be loaded"))
            for record in self._wanted.values()
            if record.model_id not in self._models.states
        ]

    async def restore(
        self,
        records: Iterable[LoadedModelRecord],
        slots: Collection[WorkerSlot],
        isolated: Collection[str],
        limit: float,
    ) -> None:
        """Loads the models of the last run.

        It waits until the workers are ready, at most `limit` seconds.

        `isolated` names the algorithms whose models start processes of their own: fewer of them are loaded at a time.
        """
        self._wanted = {record.model_id: record for record in records}
        for slot in slots:
            with contextlib.suppress(MlpkitError):
                await slot.wait_ready(limit)
        self.problem = f"{len(self._wanted)} models are being loaded" if self._wanted else ""
        # As many as the workers take: loads that wait for a worker would count as memory that is about to be taken.
        in_workers = anyio.CapacityLimiter(PARALLEL_LOADS * max(1, len(slots)))
        in_own = anyio.CapacityLimiter(PARALLEL_LOADS)

        async def first_try(record: LoadedModelRecord) -> None:
            async with in_own if record.algorithm in isolated else in_workers:
                await self._restore(record, 0)

        async with anyio.create_task_group() as tries:
            for record in list(self._wanted.values()):
                tries.start_soon(first_try, record)
        self.problem = ""

    async def reload(self, slot: WorkerSlot) -> None:
        """Loads the models of a worker that was replaced.

        As many at a time as the worker takes.

        Those that were being loaded when it died come last, one at a time.
        """
        worker = slot.worker
        replicas = [
            (model, replica)
            for model in self._models.states.values()
            for replica in model.replicas
            if replica.slot is slot and model.state == "loaded"
        ]
        limiter = anyio.CapacityLimiter(PARALLEL_LOADS)

        async def in_turn(model: ModelState, replica: Replica) -> None:
            async with limiter:
                # If it has ended meanwhile, its replacement has a reload of its own.
                if slot.worker is worker:
                    await self._reload(model, replica, 0)

        def deaths(pair: tuple[ModelState, Replica]) -> int:
            return self._replicas.deaths(pair[0].model_id)

        with with_request_id("reload"):
            await asyncio.gather(*(in_turn(*pair) for pair in replicas if not deaths(pair)))
            for model, replica in sorted(replicas, key=deaths):
                if deaths((model, replica)) and slot.worker is worker:
                    await self._reload(model, replica, 0)

    async def _restore(self, record: LoadedModelRecord, failures: int) -> None:
        if record.model_id not in self._wanted:
            return
        with with_request_id("restore"):
            try:
                await self._models.load_record(record, failures)
            except ArgumentError as error:
                logger.error("model {!r} could not be loaded at the start: {}", record.model_id, error)
            except MlpkitError as error:
                deaths = self._replicas.deaths(record.model_id)
                if deaths < _MOST_DEATHS:
                    self._reasons[record.model_id] = f"{error}; it is tried again"
                    failures += 1
                    times = f", {failures} times" if failures > 1 else ""
                    pause = pause_after(failures)
                    logger.log(
                        level_of_failure(failures),
                        "model {!r} could not be loaded at the start{}: {}; the next try is in {:g} s",
                        *(record.model_id, times, error, pause),
                    )
                    self._later(pause, self._restore, record, failures)
                    return
                await self._abandon(record, deaths, error)
        self.forget(record.model_id)

    async def _reload(self, model: ModelState, replica: Replica, failures: int) -> None:
        worker = replica.slot.worker
        if model.state != "loaded" or worker is None or replica.ready or replica.loading:
            return
        model.failures = failures
        try:
            await self._models.load_again(model, replica)
        except MlpkitError as error:
            if has_ended_worker(error):
                deaths = self._replicas.deaths(model.model_id)
                if deaths >= _MOST_DEATHS:
                    await self._abandon(model.record, deaths, error)
                return
            # One model that cannot come back must not keep the others from being served.
            model.returning = False
            failures += 1
            times = f", {failures} times" if failures > 1 else ""
            pause = pause_after(failures)
            model.problem = f"could not be loaded again{times}: {error}; the next try is in {pause:g} s"
            logger.log(level_of_failure(failures), "model {!r} {}", model.model_id, model.problem)
            if replica.slot.worker is worker:
                self._later(pause, self._reload, model, replica, failures)
        else:
            if all(other.ready for other in model.replicas):
                model.problem = ""
                model.returning = False
            logger.info("model {!r} is loaded again in worker {}", model.model_id, replica.slot.index)
            model.dispatcher.dispatch()

    async def _abandon(self, record: LoadedModelRecord, deaths: int, error: MlpkitError) -> None:
        logger.error("model {!r} is given up: its worker died {} times while loading it", record.model_id, deaths)
        self._replicas.forget_deaths(record.model_id)
        await self._models.give_up(record, error)

    def _later(self, pause: float, retry: Callable[..., Awaitable[None]], *args: object) -> None:
        async def wait() -> None:
            await asyncio.sleep(pause)
            with with_request_id("reload"):
                await retry(*args)

        self._models.start(wait)
