"""The front door of serving: loads, predicts and unloads models.

Guarantees: one load per model id however many ask; a failed load leaves nothing behind; unload waits for the
predictions in flight; a worker that dies is replaced and loads its models again; what was loaded is loaded again after
a restart (`recovery.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import anyio
import msgspec

from mlpkit.app import App
from mlpkit.errors import (
    AlgorithmNotFound,
    ArgumentError,
    MlpkitError,
    ModelInUse,
    ModelNotLoaded,
    Overloaded,
    ServiceStopping,
    WorkerLost,
)
from mlpkit.injection import NULL
from mlpkit.log import LogOutput, logger, request_id, traceparent, with_request_id
from mlpkit.serving.dispatch import Counts, Dispatcher, OnOutcome, OnPart, PendingPrediction, Replica
from mlpkit.serving.memory import MemoryBudget
from mlpkit.serving.messages import Item, Json, Load, LoadResult, RunHook, Unload
from mlpkit.serving.model import LoadedModelRecord, Loads, MissingModel, ModelInfo, ModelState, WorkerInfo, load_error
from mlpkit.serving.pool import Pool, WorkerSlot
from mlpkit.serving.recovery import Ledger, Recovery, has_ended_worker
from mlpkit.serving.worker import LocalWorker, ProcessWorker, Worker, all_of, ask, request_ids
from mlpkit.settings import Settings

_WATCH = 0.1
"""Seconds between two looks at the time limits."""
_SATURATION_SECONDS = 15.0
"""Over how long `saturation` is averaged: as long as Prometheus usually waits between two looks."""
_LAST_SECOND = 1.0
"""How long workers get to end by themselves when what they do has outlived the grace."""
_LOAD_ROUNDS = 3
"""How often a load goes back to workers that ended after they had the model."""
_STOPPING = "the service is stopping and takes no new work"


class _LostWithOthers(WorkerLost):
    """A worker died during a load, and held other requests too.

    Any of them may have ended it.
    """


MakeWorker = Callable[[WorkerSlot], Worker]


class Models:
    """The models of a service, and the workers that hold them.

    Opened and closed once; used on one event loop.

    Args:
        target: by which workers import the app again.
        make_worker: makes the worker of a slot; None: a process, or this process if `settings.workers` is 0.

    Attributes:
        on_change: called with a model id and what has happened to the model.
    """

    def __init__(
        self, app: App, target: str, settings: Settings, log: LogOutput, make_worker: MakeWorker | None = None
    ) -> None:
        self._app = app
        self._algorithms = app.build()
        self._target = target
        self._settings = settings
        self._log = log
        self._models: dict[str, ModelState] = {}
        self.named: dict[str, LoadedModelRecord] = {}
        """The models that aliases lead to, by the alias's name; `Aliases` changes it."""
        self._kept: dict[str, str] = {}
        """The models that aliases are about to lead to, by the alias's name."""
        self._pool = Pool(make_worker or self._make_worker, self._worker_up, self._worker_down)
        self._ledger = Ledger(settings.home / "models.json")
        self._budget = MemoryBudget(settings.home / "memory.json")
        self._recovery = Recovery(self._models, self._load_record, self._load_again, self._give_up)
        self._local_state = LocalWorker.state_here() if settings.workers == 0 else None
        self._closing = False
        self._closed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self.on_change: Callable[[str, dict[str, object]], None] | None = None
        self._past = {name: Counts() for name in self._algorithms}
        """What models that are gone have done, by algorithm."""
        self.loads = {name: Loads() for name in self._algorithms}
        self.saturation = 0.0
        """The share of the workers that were busy, 0 to 1, in the last seconds."""

    async def open(self) -> None:
        """Starts the workers, and begins to load models.

        Does not wait for either (see `problems`).
        """
        opened = asyncio.Event()
        self._running = asyncio.get_running_loop().create_task(self._run(opened))
        await opened.wait()

    async def drain(self, grace: float) -> None:
        """Takes no more work, and gives what runs `grace` seconds.

        What has not ended then fails. The list of loaded models stays as it is.
        """
        self._closing = True
        end = time.monotonic() + grace
        in_time = await asyncio.gather(*(model.at_rest(end) for model in self._models.values()))
        for model in self._models.values():
            if model.state == "loaded":
                model.state = "unloading"
            model.dispatcher.fail_waiting(ServiceStopping(_STOPPING))
        if not all(in_time):
            await self._pool.close(_LAST_SECOND)

    async def close(self, grace: float = 5.0) -> None:
        """Drains, and ends the workers.

        They get `grace` seconds to close their models.
        """
        await self.drain(0)
        await self._pool.close(grace)
        self._closed.set()
        if self._running is not None:
            await self._running

    async def load(
        self,
        algorithm: str,
        model_id: str,
        model_path: str | None = None,
        extend: msgspec.Raw = NULL,
        uuid: str | None = None,
        failures: int = 0,
        by_alias: bool = False,
    ) -> None:
        """Returns when the model is loaded.

        A model that is loaded already is left as it is. `failures` is how often the caller has tried in vain already.
        `by_alias`: it is wanted only as long as an alias leads to it.

        Raises:
            AlgorithmNotFound: the app does not have this algorithm.
            ArgumentError: the id is the name of an alias.
            LoadFailed: the user's `load` failed, or no worker could take the model.
            ServiceStopping: the service is being shut down.
        """
        if algorithm not in self._algorithms:
            raise AlgorithmNotFound(algorithm)
        self._check_model_id(model_id)
        if self._closing:
            raise ServiceStopping(_STOPPING)
        while (model := self._models.get(model_id)) is not None and model.state == "unloading":
            await model.ended()
        if model is None:
            record = LoadedModelRecord(algorithm, model_id, model_path, bytes(extend).decode(), by_alias=by_alias)
            model = self._new_model(record, uuid, failures)
        if model.state == "loading":
            await model.ended()
        if model.record.by_alias and not by_alias:
            # From now on it stays without an alias too.
            model.record = msgspec.structs.replace(model.record, by_alias=False)
            await self._ledger.add(model.record)

    async def unload(self, model_id: str) -> None:
        """Returns when the model is gone and its predictions have ended.

        If the model is not loaded, nothing happens.

        Raises:
            ModelInUse: an alias leads to it.
            ArgumentError: the id is the name of an alias.
        """
        self.check_unloadable(model_id)
        self._recovery.forget(model_id)
        model = self._models.get(model_id)
        if model is not None and model.state == "loading":
            with contextlib.suppress(MlpkitError):
                await model.ended()
            self.check_unloadable(model_id)
        if model is not None and model.state == "loaded":
            model.begin_unload()
            self._tell(model, "unloading")
            self._start(self._unload_model, model)
        if model is not None and self._models.get(model_id) is model:
            await model.ended()
        if model_id not in self._models:
            # Not loaded, or its load has failed, or it was given up meanwhile: a restart would try it again.
            await self._ledger.remove(model_id)

    def check_unloadable(self, model_id: str) -> None:
        """Checks that the model may be unloaded.

        Raises:
            ModelInUse: an alias leads to it, or is about to.
            ArgumentError: the id is the name of an alias.
        """
        self._check_model_id(model_id)
        if (alias := self._alias_of(model_id)) is not None:
            raise ModelInUse(model_id, alias)

    def release(self, model_id: str) -> None:
        """Unloads a model in the background if only aliases wanted it.

        And none leads to it any more.
        """
        record = self._ledger.get(model_id)
        if record is not None and record.by_alias and self._alias_of(model_id) is None:
            self._start(self._leave, model_id)

    async def leave_to_aliases(self, model_id: str) -> None:
        """Unloads a model as soon as no alias leads to it."""
        if self._alias_of(model_id) is None:
            await self.unload(model_id)
        elif (model := self._models.get(model_id)) is not None and not model.record.by_alias:
            model.record = msgspec.structs.replace(model.record, by_alias=True)
            await self._ledger.add(model.record)
            self.release(model_id)

    @contextlib.contextmanager
    def kept(self, model_id: str, alias: str) -> Iterator[None]:
        """Keeps a model from being unloaded while an alias moves to it."""
        self._kept[alias] = model_id
        try:
            yield
        finally:
            del self._kept[alias]

    def is_wanted_by_aliases_only(self, model_id: str) -> bool:
        """Whether a model leaves when no alias leads to it."""
        model = self._models.get(model_id)
        return model is not None and model.record.by_alias

    def predict(
        self,
        model_id: str,
        features: Json,
        params: bytes,
        uuid: str | None,
        on_outcome: OnOutcome,
        on_part: OnPart | None = None,
        trace: str = "",
    ) -> PendingPrediction:
        """Accepts a prediction, and tells `on_outcome` its outcome.

        `on_part` is told the parts of a streamed answer before. `trace` is its `traceparent`.

        Raises:
            ModelNotLoaded, ServiceStopping: the model is not loaded; the service takes no more work.
            Overloaded: too many predictions wait for this model already.
        """
        model = self._models.get(model_id)
        if model is None and model_id in self.named:
            model = self._models.get(self.named[model_id].model_id)
        if model is None or model.state != "loaded":
            raise ServiceStopping(_STOPPING) if self._closing else ModelNotLoaded(model_id)
        dispatcher = model.dispatcher
        most = self._settings.max_waiting
        if len(dispatcher.waiting) >= most:
            # A burst in one turn of the loop: what a worker can take does not wait.
            dispatcher.dispatch()
            waiting = len(dispatcher.waiting)
            if waiting >= most:
                raise Overloaded(f"{waiting} predictions wait for model [{model_id}] already: try again later")
        parts = on_part is not None
        item = Item(
            params=params, uuid=uuid, log_uuid=request_id.get(), traceparent=trace, parts=parts, features=features
        )
        prediction = PendingPrediction(item, on_outcome, on_part, time.monotonic())
        dispatcher.add(prediction)
        return prediction

    async def call(self, algorithm: str, hook: str, fields: Mapping[str, object]) -> Any:
        """What the user's `status`, `model_id` or `delete` answers, run in a worker.

        Raises:
            UserCodeError: the hook raised.
        """
        limit = self._settings.hook_timeout
        encoded = {name: msgspec.json.encode(value) for name, value in fields.items()}
        worker = await self._pool.next().wait_ready(limit)
        request = RunHook(next(request_ids), algorithm, hook, encoded, request_id.get(), traceparent.get())
        return msgspec.json.decode(await ask(worker, request, limit))

    def algorithm_of(self, model_id: str) -> str | None:
        """The algorithm that a model was loaded with.

        None if it is not loaded.
        """
        model = self._models.get(model_id)
        return model.algorithm.name if model is not None else None

    def placement(self) -> dict[str, list[int]]:
        """The workers that hold each loaded model."""
        return {
            model.model_id: [replica.slot.index for replica in model.replicas]
            for model in self._models.values()
            if model.state == "loaded"
        }

    def listed(self) -> list[ModelInfo]:
        """Every model that is loaded, being loaded or being unloaded."""
        return [self._info(model) for model in self._models.values()]

    def missing(self) -> list[MissingModel]:
        """The models that should be loaded and are not, with the reason."""
        given_up = [(record, f"given up: {record.given_up}") for record in self._ledger.given_up()]
        return [
            MissingModel(record.model_id, record.algorithm, record.model_path, reason)
            for record, reason in [*self._recovery.missing(), *given_up]
            if record.model_id not in self._models
        ]

    def workers(self) -> list[WorkerInfo]:
        """Every worker, with the models that it holds."""
        held: dict[int, list[str]] = {index: [] for index in self._pool.slots}
        for model in self._models.values():
            for replica in model.replicas:
                if replica.ready:
                    held.setdefault(replica.slot.index, []).append(model.model_id)
        return [
            WorkerInfo(
                index=slot.index,
                pid=slot.worker.pid if slot.worker is not None else None,
                ready=slot.ready,
                isolated=slot.isolated,
                models=held[slot.index],
                since=slot.since,
                restarts=slot.restarts,
                problem="" if slot.ready else slot.problem,
            )
            for slot in self._pool.slots.values()
        ]

    def counts(self, algorithm: str) -> Counts:
        """What the models of an algorithm have done.

        Since the service started, and including models that are gone.
        """
        present = (model.counts for model in self._models.values() if model.algorithm.name == algorithm)
        return sum(present, start=self._past[algorithm])

    @property
    def restarts(self) -> int:
        """How many workers have ended and were replaced."""
        return self._pool.restarts

    def problems(self) -> list[str]:
        """Why predictions cannot all be answered now, a sentence each."""
        found = [self._recovery.problem] if self._recovery.problem else []
        found += self._pool.problems()
        found += [f"model [{model.model_id}] {model.problem}" for model in self._models.values() if model.returning]
        return found

    def warnings(self) -> list[str]:
        """What somebody should look at although predictions are answered, a sentence each."""
        return self._ledger.warnings()

    async def _run(self, opened: asyncio.Event) -> None:
        async with anyio.create_task_group() as self._tasks:
            self._recovery.open(self._tasks)
            self._pool.open(self._tasks, max(1, self._settings.workers))
            self._tasks.start_soon(self._watch)
            self._tasks.start_soon(self._ledger.keep)
            self._tasks.start_soon(self._restore)
            opened.set()
            await self._closed.wait()
            self._tasks.cancel_scope.cancel()

    def _info(self, model: ModelState) -> ModelInfo:
        aliases = sorted(name for name, record in self.named.items() if record.model_id == model.model_id)
        memory = self._budget.known(model.model_id)
        return msgspec.structs.replace(model.info(), memory=memory, aliases=aliases)

    def _start(self, function: Any, *args: object) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(function, *args)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH)
            now = time.monotonic()
            for slot in list(self._pool.slots.values()):
                if slot.worker is not None:
                    slot.worker.watch(now)
            for model in list(self._models.values()):
                model.dispatcher.expire(now)
            self._note_busy()

    def _note_busy(self) -> None:
        """Takes a sample of which workers are busy: this costs predictions nothing."""
        busy = {replica.slot.index for model in self._models.values() for replica in model.replicas if replica.busy}
        share = len(busy) / max(1, len(self._pool.slots))
        self.saturation += (share - self.saturation) * _WATCH / _SATURATION_SECONDS

    async def _restore(self) -> None:
        """Loads what the last run had, and what the script preloads."""
        records = {record.model_id: record for record in self._ledger.read()}
        for record in self.named.values():
            records.setdefault(record.model_id, record)
        for algorithm in self._algorithms.values():
            for model_id in algorithm.load_options.preload:
                record = records.get(model_id) or LoadedModelRecord(algorithm.name, model_id)
                records[model_id] = msgspec.structs.replace(record, by_alias=False)
        for record in list(records.values()):
            if record.by_alias and self._alias_of(record.model_id) is None:
                # The last run ended after an alias had moved, and before the old model was unloaded.
                del records[record.model_id]
                await self._ledger.remove(record.model_id)
        isolated = [algorithm.name for algorithm in self._algorithms.values() if algorithm.load_options.isolated]
        await self._recovery.restore(records.values(), self._pool.shared, isolated, self._settings.start_timeout)

    def _new_model(self, record: LoadedModelRecord, uuid: str | None, failures: int) -> ModelState:
        """A model whose load has begun."""
        if self._closing:
            raise ServiceStopping(_STOPPING)
        algorithm = self._algorithms[record.algorithm]
        usual = self._settings.predict_timeout
        limit = algorithm.predict_options.timeout or usual
        dispatcher = Dispatcher(algorithm, record.model_id, limit, longest_wait=max(limit, usual))
        model = ModelState(algorithm, record, uuid, dispatcher, failures=failures)
        self._models[record.model_id] = model
        self._tell(model, "loading")
        self._start(self._load_model, model, request_id.get())
        return model

    async def _load_model(self, model: ModelState, log_uuid: str) -> None:
        with with_request_id(log_uuid, algorithm=model.algorithm.name, model_id=model.model_id):
            started = time.monotonic()
            options = model.algorithm.load_options
            isolated = options.isolated and self._settings.workers > 0
            copies = options.replicas if isolated else min(options.replicas, len(self._pool.shared))
            try:
                async with self._budget.taken(model, copies, self._load_limit(model)):
                    for slot in self._pool.place(options.replicas, isolated=isolated):
                        slot.models += 1
                        model.replicas.append(Replica(slot))
                    await self._load_replicas(model)
                    await self._ledger.add(model.record)
                    # Meanwhile the load of another model may have ended a worker that had this one already.
                    await self._load_replicas(model)
                if not all(replica.ready for replica in model.replicas):
                    await self._ledger.remove(model.model_id)
                    raise WorkerLost(f"the workers that held the model ended {_LOAD_ROUNDS} times while it was loaded")
            except Exception as error:
                await self._forget(model)
                failure = load_error(error)
                self.loads[model.algorithm.name].failures += 1
                self._tell(model, "failed", str(failure))
                model.settled.set_exception(failure)
                return
            model.state = "loaded"
            model.since = time.time()
            workers = ", ".join(str(replica.slot.index) for replica in model.replicas)
            taken = time.monotonic() - started
            self.loads[model.algorithm.name].seconds.add(taken)
            logger.info("model {!r} is loaded in worker {} after {:.2f} s", model.model_id, workers, taken)
            self._tell(model, "loaded")
            model.settled.set_result(None)
            for replica in list(model.replicas):
                self._rejoin_soon(model, replica)
            # At the start, an alias may have moved to another model meanwhile.
            self.release(model.model_id)

    async def _load_replicas(self, model: ModelState) -> None:
        """Loads a model into all its workers.

        It is loaded again into those that end meanwhile, a few times.
        """
        for _ in range(_LOAD_ROUNDS):
            lost = [replica for replica in model.replicas if not replica.ready]
            if not lost:
                return
            await all_of(self._load_replica(model, replica) for replica in lost)

    async def _load_record(self, record: LoadedModelRecord, failures: int) -> None:
        """Loads a model of the last run."""
        extend = msgspec.Raw(record.extend.encode())
        path = record.model_path
        await self.load(record.algorithm, record.model_id, path, extend, failures=failures, by_alias=record.by_alias)

    async def _load_again(self, model: ModelState, replica: Replica) -> None:
        """Loads a model again into a worker that was replaced."""
        async with self._budget.taken(model, 1, self._load_limit(model)):
            await self._load_replica(model, replica)
        if all(other.ready for other in model.replicas):
            self._tell(model, "loaded")
        self._rejoin_soon(model, replica)

    async def _load_replica(self, model: ModelState, replica: Replica) -> None:
        """Loads a model into the worker of a replica.

        A suspect gets a worker of its own.
        """
        suspects = self._recovery.suspects
        if not replica.slot.isolated and not suspects.deaths(model.model_id):
            # If the worker dies and held nothing else, this load has ended it.
            with contextlib.suppress(_LostWithOthers):
                await self._send_load(model, replica)
                return
        if replica.slot.isolated:
            await self._send_load(model, replica)
            return
        async with suspects.alone():
            if self._closing:
                raise ServiceStopping(_STOPPING)
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
        limit = self._load_limit(model)
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
        )
        slot = replica.slot
        worker: Worker | None = None
        replica.loading = True
        try:
            async with slot.loads:
                worker = await slot.wait_ready(min(limit, self._settings.start_timeout))
                result = msgspec.json.decode(await ask(worker, request, limit), type=LoadResult | None) or LoadResult()
                model.evaluation = result.evaluation
                replica.ready = True
        except MlpkitError as error:
            if has_ended_worker(error):
                self._recovery.suspects.note_death(model.model_id)
                if worker is not None and worker.held_at_end > 1:
                    raise _LostWithOthers(str(error)) from error
            raise
        finally:
            replica.loading = False
        if not slot.isolated or model.algorithm.load_options.isolated:
            self._recovery.suspects.clear(model.model_id)
        if self._models.get(model.model_id) is not model:
            await self._send_unload(replica, model.model_id, limit)
        elif result.growth is not None:
            await self._budget.remember(model.model_id, result.growth)

    def _rejoin_soon(self, model: ModelState, replica: Replica) -> None:
        """Lets a suspect that was loaded alone return to shared workers."""
        alone = replica.slot.isolated and not model.algorithm.load_options.isolated
        # One that has ended a shared worker twice stays alone.
        if alone and self._recovery.suspects.deaths(model.model_id) == 1:
            self._start(self._rejoin, model, replica)

    async def _rejoin(self, model: ModelState, alone: Replica) -> None:
        """Moves a model from its own process into a shared worker."""
        used = [replica.slot for replica in model.replicas]
        free = [slot for slot in self._pool.place(len(self._pool.shared), isolated=False) if slot not in used]
        if not free:
            return
        shared = Replica(free[0])
        shared.slot.models += 1
        model.replicas.append(shared)
        limit = self._load_limit(model)
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

    async def _leave(self, model_id: str) -> None:
        """Unloads a model if no alias leads to it."""
        with contextlib.suppress(ModelInUse):
            await self.unload(model_id)

    async def _unload_model(self, model: ModelState) -> None:
        limit = self._load_limit(model)
        dispatcher = model.dispatcher
        # If no worker has it at the moment, nobody would ever answer what waits: it is not loaded again.
        if not any(replica.ready for replica in model.replicas) or not await dispatcher.idle(limit):
            dispatcher.fail_waiting(ModelNotLoaded(model.model_id))
        await self._forget(model)
        await self._ledger.remove(model.model_id)
        logger.info("model {!r} is unloaded", model.model_id)
        self._tell(model, "unloaded")
        model.settled.set_result(None)

    async def _forget(self, model: ModelState) -> None:
        """Takes a model out of its workers and out of the list."""
        limit = self._load_limit(model)
        for replica in list(model.replicas):
            replica.slot.models -= 1
            if replica.ready:
                await self._send_unload(replica, model.model_id, limit)
            if replica.slot.isolated:
                await self._pool.remove(replica.slot, grace=5.0)
        model.dispatcher.fail_waiting(ModelNotLoaded(model.model_id))
        self._past[model.algorithm.name] += model.counts
        self._models.pop(model.model_id, None)

    async def _send_unload(self, replica: Replica, model_id: str, limit: float) -> None:
        """Asks the worker of a replica to drop the model."""
        worker = replica.slot.worker
        if worker is not None:
            with contextlib.suppress(MlpkitError):
                await ask(worker, Unload(next(request_ids), model_id, request_id.get(), traceparent.get()), limit)
        replica.ready = False

    def _alias_of(self, model_id: str) -> str | None:
        """An alias that leads to the model, or is about to."""
        leading = (name for name, record in self.named.items() if record.model_id == model_id)
        coming = (name for name, kept in self._kept.items() if kept == model_id)
        return next(leading, None) or next(coming, None)

    def _check_model_id(self, model_id: str) -> None:
        if model_id in self.named or model_id in self._kept:
            raise ArgumentError(f"[{model_id}] is an alias, not the id of a model: /alias and /unalias change it")

    def _load_limit(self, model: ModelState) -> float:
        return model.algorithm.load_options.timeout or self._settings.load_timeout

    def _make_worker(self, slot: WorkerSlot) -> Worker:
        if self._local_state is not None:
            return LocalWorker(slot.index, self._app, self._settings, self._local_state)
        name = f"worker-{slot.index}"
        return ProcessWorker(slot.index, self._target, self._settings, self._log, name=name, single=slot.isolated)

    def _worker_up(self, slot: WorkerSlot) -> None:
        self._start(self._recovery.reload, slot)

    def _worker_down(self, slot: WorkerSlot, how: str) -> None:
        for model in self._models.values():
            for replica in model.replicas:
                if replica.slot is slot:
                    replica.ready = False
                    if model.state == "loaded":
                        model.returning = True
                        model.problem = f"is down in worker {slot.index}, which {how}"
                        self._tell(model, "returning", model.problem)
            if model.state == "unloading" and not any(replica.ready for replica in model.replicas):
                # It does not come back, so nobody would ever answer them.
                lost = WorkerLost(f"worker {slot.index} {how} while the model was being unloaded")
                model.dispatcher.fail_waiting(lost)

    async def _give_up(self, record: LoadedModelRecord, error: MlpkitError) -> None:
        model = self._models.get(record.model_id)
        if model is not None:
            if model.state != "loaded":
                return  # Somebody else has begun to load or unload it.
            model.begin_unload()
            model.dispatcher.fail_waiting(error)
            await self._forget(model)
            self._tell(model, "failed", f"given up: {error}")
            model.settled.set_result(None)
        await self._ledger.give_up(record, str(error))

    def _tell(self, model: ModelState, state: str, message: str = "") -> None:
        if self.on_change is not None:
            workers = [replica.slot.index for replica in model.replicas if replica.ready]
            about = {"algorithm": model.algorithm.name, "state": state, "message": message}
            self.on_change(model.model_id, {**about, "workers": workers})
