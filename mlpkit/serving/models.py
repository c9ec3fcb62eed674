"""The front door of serving: loads, predicts and unloads models.

Guarantees: one load per model id however many ask; a failed load leaves nothing behind; unload waits for the
predictions in flight; a worker that dies is replaced and loads its models again; what was loaded is loaded again after
a restart (`recovery.py`). Models that predictions ask for are loaded then (`lazy.py`), and idle ones leave if memory is
short (`eviction.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from mlpkit.algorithm import Algorithm
from mlpkit.app import App
from mlpkit.errors import (
    AlgorithmNotFound,
    MlpkitError,
    ModelInUse,
    ModelNotLoaded,
    Overloaded,
    ServiceStopping,
    SettingsError,
    WorkerLost,
)
from mlpkit.injection import NULL
from mlpkit.log import LogOutput, logger, request_id, traceparent, with_request_id
from mlpkit.processes import Devices
from mlpkit.serving.dispatch import Counts, Dispatcher, OnOutcome, OnPart, PendingPrediction, Replica
from mlpkit.serving.eviction import Eviction
from mlpkit.serving.lazy import LazyLoads
from mlpkit.serving.memory import MemoryBudget
from mlpkit.serving.messages import Item, Json, RunHook
from mlpkit.serving.model import (
    Claims,
    EvictedModel,
    LoadedModelRecord,
    Loads,
    MissingModel,
    ModelInfo,
    ModelState,
    ModelWord,
    WorkerInfo,
    load_error,
)
from mlpkit.serving.pool import Pool, WorkerSlot
from mlpkit.serving.recovery import Ledger, Recovery
from mlpkit.serving.replicas import LOAD_ROUNDS, STOPPING, ReplicaLoads
from mlpkit.serving.worker import LocalWorker, ProcessWorker, Worker, ask, request_ids
from mlpkit.settings import Settings

if TYPE_CHECKING:
    from mlpkit.storage import Storage

_WATCH = 0.1
"""Seconds between two looks at the time limits."""
_SATURATION_SECONDS = 15.0
"""Over how long `saturation` is averaged: as long as Prometheus usually waits between two looks."""
_LAST_SECOND = 1.0
"""How long workers get to end by themselves when what they do has outlived the grace."""
_EVICTED = "evicted: memory is short"


_MakeWorker = Callable[[WorkerSlot], Worker]


class Models:
    """The models of a service, and the workers that hold them.

    Opened and closed once; used on one event loop.

    Args:
        target: by which workers import the app again.
        make_worker: makes the worker of a slot; None: a process, or this process if `settings.workers` is 0.
        storage: where a prediction finds a model that is not loaded.
        devices: the GPUs that models share with jobs; those of the settings if it is None.

    Attributes:
        on_change: called with a model id and what has happened to the model.
    """

    def __init__(
        self,
        app: App,
        target: str,
        settings: Settings,
        log: LogOutput,
        make_worker: _MakeWorker | None = None,
        storage: Storage | None = None,
        devices: Devices | None = None,
    ) -> None:
        self._app = app
        self._algorithms = app.build()
        _check_placements(self._algorithms, settings)
        self._target = target
        self._settings = settings
        self._log = log
        self.states: dict[str, ModelState] = {}
        """The models that there are now, by id."""
        algorithms = self._algorithms.values()
        self.claims = Claims(model_id for algorithm in algorithms for model_id in algorithm.load_options.preload)
        self.make_worker = make_worker or self._make_worker
        self._pool = Pool(self, devices or Devices(settings.gpus))
        self._ledger = Ledger(settings.home / "models.json")
        self._budget = MemoryBudget(settings.home / "memory.json")
        self._replicas = ReplicaLoads(self, self._pool, self._budget, settings)
        self._recovery = Recovery(self, self._replicas)
        self.lazy = LazyLoads(self, self._algorithms, self._ledger, settings, storage)
        self._eviction = Eviction(self, settings.model_memory)
        self._local_state = LocalWorker.state_here() if settings.workers == 0 else None
        self.closing = False
        """Whether the service stops: it takes no more work."""
        self._closed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
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
        self.closing = True
        self.lazy.close(ServiceStopping(STOPPING))
        end = time.monotonic() + grace
        in_time = await asyncio.gather(*(model.at_rest(end) for model in self.states.values()))
        for model in self.states.values():
            if model.state == "loaded":
                model.state = "unloading"
            model.dispatcher.fail_waiting(ServiceStopping(STOPPING))
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
        by_table: bool = False,
    ) -> None:
        """Returns when the model is loaded.

        A model that is loaded already is left as it is. `failures` is how often the caller has tried in vain already.
        `by_alias`: it is wanted only as long as an alias leads to it. `by_table`: the platform's table names it. With
        either, a model below its gate is refused, also when it has to be loaded again.

        Raises:
            AlgorithmNotFound: the app does not have this algorithm.
            ArgumentError: the id is the name of an alias.
            LoadFailed: the user's `load` failed, or no worker could take the model.
            ServiceStopping: the service is being shut down.
        """
        extend_text = bytes(extend).decode()
        record = LoadedModelRecord(algorithm, model_id, model_path, extend_text, by_alias=by_alias, by_table=by_table)
        await self.load_record(record, failures, uuid)

    async def unload(self, model_id: str) -> None:
        """Returns when the model is gone and its predictions have ended.

        If the model is not loaded, nothing happens.

        Raises:
            ModelInUse: an alias leads to it.
            ArgumentError: the id is the name of an alias.
        """
        self.claims.check_unloadable(model_id)
        self._recovery.forget(model_id)
        model = self.states.get(model_id)
        if model is not None and model.state == "loading":
            for replica in list(model.replicas):
                if replica.slot.starting is not None:
                    # It may wait for a place on the cluster for minutes: the load fails then.
                    await self._pool.remove(replica.slot, 0)
            with contextlib.suppress(MlpkitError):
                await model.wait_settled()
            self.claims.check_unloadable(model_id)
        if model is not None and model.state == "loaded":
            model.begin_unload()
            self._tell(model, "unloading")
            self.start(self._unload_model, model)
        if model is not None and self.states.get(model_id) is model:
            await model.wait_settled()
        if model_id not in self.states:
            self._eviction.forget(model_id)
            # Not loaded, or its load has failed, or it was given up meanwhile: a restart would try it again.
            await self._ledger.remove(model_id)

    def release(self, model_id: str) -> None:
        """Unloads a model in the background if only aliases wanted it.

        And none leads to it any more.
        """
        record = self._ledger.get(model_id) or self._recovery.wanted(model_id)
        if record is not None and record.by_alias and self.claims.alias_of(model_id) is None:
            self.start(self._leave, model_id)

    async def leave_to_aliases(self, model_id: str) -> None:
        """Unloads a model as soon as no alias leads to it."""
        if self.claims.alias_of(model_id) is None:
            await self.unload(model_id)
        elif (model := self.states.get(model_id)) is not None and not model.record.by_alias:
            model.record = msgspec.structs.replace(model.record, by_alias=True)
            await self._ledger.add(model.record)
            self.release(model_id)

    def is_wanted_by_aliases_only(self, model_id: str) -> bool:
        """Whether a model leaves when no alias leads to it."""
        model = self.states.get(model_id)
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

        If the model is loaded when it is asked for, the prediction waits for that.

        Raises:
            ModelNotLoaded, ServiceStopping: the model is not loaded; the service takes no more work.
            Overloaded: too many predictions wait for this model already.
            MlpkitError: the model was asked for a moment ago, and could not be loaded.
        """
        parts = on_part is not None
        item = Item(
            params=params, uuid=uuid, log_uuid=request_id.get(), traceparent=trace, parts=parts, features=features
        )
        prediction = PendingPrediction(item, on_outcome, on_part, time.monotonic())
        model = self.states.get(model_id)
        if model is None and model_id in self.claims.named:
            model_id = self.claims.named[model_id].model_id
            model = self.states.get(model_id)
        if model is None or model.state != "loaded":
            if self.closing:
                raise ServiceStopping(STOPPING)
            self.lazy.add(model_id, prediction, leaves=model is not None and model.state == "unloading")
            return prediction
        dispatcher = model.dispatcher
        most = self._settings.max_waiting
        if len(dispatcher.waiting) >= most:
            # A burst in one turn of the loop: what a worker can take does not wait.
            dispatcher.dispatch()
            waiting = len(dispatcher.waiting)
            if waiting >= most:
                raise Overloaded(f"{waiting} predictions wait for model [{model_id}] already: try again later")
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
        model = self.states.get(model_id)
        return model.algorithm.name if model is not None else None

    def state_of(self, model_id: str) -> ModelWord:
        """The state of a model, which may be none of this service."""
        model = self.states.get(model_id)
        return model.state if model is not None else "unloaded"

    def placement(self) -> dict[str, list[int]]:
        """The workers that hold each loaded model."""
        return {
            model.model_id: [replica.slot.index for replica in model.replicas]
            for model in self.states.values()
            if model.state == "loaded"
        }

    def listed(self) -> list[ModelInfo]:
        """Every model that is loaded, being loaded or being unloaded."""
        return [self._info(model) for model in self.states.values()]

    def missing(self) -> list[MissingModel]:
        """The models that should be loaded and are not, with the reason."""
        given_up = [(record, f"given up: {record.given_up}") for record in self._ledger.given_up()]
        return [
            MissingModel(record.model_id, record.algorithm, record.model_path, reason)
            for record, reason in [*self._recovery.missing(), *given_up]
            if record.model_id not in self.states
        ]

    def evicted(self) -> list[EvictedModel]:
        """The models that left because memory was short, the last one last."""
        return self._eviction.evicted()

    def workers(self) -> list[WorkerInfo]:
        """Every worker, with the models that it holds."""
        held: dict[int, list[str]] = {index: [] for index in self._pool.slots}
        for model in self.states.values():
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
                devices=list(slot.devices),
                node=slot.node,
            )
            for slot in self._pool.slots.values()
        ]

    def counts(self, algorithm: str) -> Counts:
        """What the models of an algorithm have done.

        Since the service started, and including models that are gone.
        """
        present = (model.counts for model in self.states.values() if model.algorithm.name == algorithm)
        return sum(present, start=self._past[algorithm])

    @property
    def restarts(self) -> int:
        """How many workers have ended and were replaced."""
        return self._pool.restarts

    def problems(self) -> list[str]:
        """Why predictions cannot all be answered now, a sentence each."""
        found = [self._recovery.problem] if self._recovery.problem else []
        found += self._pool.problems()
        for model in self.states.values():
            # A cluster may have no place for a replica for hours, while the others answer.
            answers = model.is_on_cluster and any(replica.ready for replica in model.replicas)
            if model.returning and not answers:
                found.append(f"model [{model.model_id}] {model.problem}")
        return found

    def warnings(self) -> list[str]:
        """What somebody should look at although predictions are answered, a sentence each."""
        return self._ledger.warnings()

    async def _run(self, opened: asyncio.Event) -> None:
        async with anyio.create_task_group() as self._tasks:
            self._pool.open(self._tasks, max(1, self._settings.workers))
            self._tasks.start_soon(self._watch)
            self._tasks.start_soon(self._ledger.keep)
            self._tasks.start_soon(self._restore)
            opened.set()
            await self._closed.wait()
            self._tasks.cancel_scope.cancel()

    def _info(self, model: ModelState) -> ModelInfo:
        aliases = self.claims.aliases_of(model.model_id)
        return msgspec.structs.replace(model.info(), memory=self._budget.known(model.model_id), aliases=aliases)

    def start(self, function: Any, *args: object) -> None:
        """Starts a coroutine function with its arguments as a task."""
        self._tasks.start_soon(function, *args)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH)
            now = time.monotonic()
            for slot in list(self._pool.slots.values()):
                if slot.worker is not None:
                    slot.worker.watch(now)
            for model in list(self.states.values()):
                model.dispatcher.expire(now)
            self.lazy.expire(now)
            self._eviction.trim()
            self._note_busy()

    def _note_busy(self) -> None:
        """Takes a sample of which workers are busy: this costs predictions nothing."""
        busy = {replica.slot.index for model in self.states.values() for replica in model.replicas if replica.busy}
        share = len(busy) / max(1, len(self._pool.slots))
        self.saturation += (share - self.saturation) * _WATCH / _SATURATION_SECONDS

    async def _restore(self) -> None:
        """Loads what the last run had, and what the script preloads."""
        records = {record.model_id: record for record in self._ledger.read()}
        for evicted in self._ledger.evicted():
            self._eviction.note(evicted)
        for record in self.claims.named.values():
            records.setdefault(record.model_id, record)
        for algorithm in self._algorithms.values():
            for model_id in algorithm.load_options.preload:
                record = records.get(model_id) or LoadedModelRecord(algorithm.name, model_id)
                records[model_id] = msgspec.structs.replace(record, by_alias=False)
        for record in list(records.values()):
            if record.by_alias and self.claims.alias_of(record.model_id) is None:
                # The last run ended after an alias had moved, and before the old model was unloaded.
                del records[record.model_id]
                await self._ledger.remove(record.model_id)
        isolated = [algorithm.name for algorithm in self._algorithms.values() if algorithm.load_options.isolated]
        await self._recovery.restore(records.values(), self._pool.shared, isolated, self._settings.start_timeout)

    async def load_record(self, record: LoadedModelRecord, failures: int = 0, uuid: str | None = None) -> None:
        """Loads a model as `load` does."""
        if record.algorithm not in self._algorithms:
            raise AlgorithmNotFound(record.algorithm)
        self.claims.check_model_id(record.model_id)
        if self.closing:
            raise ServiceStopping(STOPPING)
        while (model := self.states.get(record.model_id)) is not None and model.state == "unloading":
            await model.wait_settled()
        if model is None:
            earlier = self._ledger.get(record.model_id)
            if record.by_alias and earlier is not None and earlier.evicted:
                # An alias takes the model as it was loaded before, and it stays without the alias too.
                record = msgspec.structs.replace(earlier, evicted=0.0)
            model = self._new_model(record, uuid, failures)
        if model.state == "loading":
            await model.wait_settled()
        if (model.record.by_alias or model.record.lazy) and not (record.by_alias or record.lazy):
            # From now on it stays without an alias too, and is loaded again after a restart.
            model.record = msgspec.structs.replace(model.record, by_alias=False, by_table=record.by_table, lazy=False)
            await self._ledger.add(model.record)

    async def load_asked(self, record: LoadedModelRecord) -> ModelState:
        """Loads a model that a prediction has asked for."""
        is_new = record.model_id not in self.states
        await self.load_record(record)
        model = self.states.get(record.model_id)
        if model is None or model.state != "loaded":
            # Somebody has unloaded it meanwhile.
            raise ModelNotLoaded(record.model_id)
        self.loads[record.algorithm].lazy += is_new
        return model

    def _new_model(self, record: LoadedModelRecord, uuid: str | None, failures: int) -> ModelState:
        """A model whose load has begun."""
        if self.closing:
            raise ServiceStopping(STOPPING)
        algorithm = self._algorithms[record.algorithm]
        usual = self._settings.predict_timeout
        limit = algorithm.predict_options.timeout or usual
        dispatcher = Dispatcher(algorithm, record.model_id, limit, longest_wait=max(limit, usual))
        model = ModelState(algorithm, record, uuid, dispatcher, failures=failures)
        self.states[record.model_id] = model
        self._tell(model, "loading")
        self.start(self._load_model, model, request_id.get())
        return model

    async def _load_model(self, model: ModelState, log_uuid: str) -> None:
        with with_request_id(log_uuid, traceparent.get(), algorithm=model.algorithm.name, model_id=model.model_id):
            started = time.monotonic()
            options = model.algorithm.load_options
            isolated = options.isolated and self._settings.workers > 0
            copies = options.replicas if isolated else min(options.replicas, len(self._pool.shared))
            on_cluster = isolated and options.placement == "cluster"
            # Those that take memory of this machine.
            copies_here = 0 if on_cluster else copies
            try:
                limit = self._replicas.limit(model)
                await self._eviction.make_room(model, copies_here * self._budget.need(model), limit)
                async with self._budget.taken(model, copies_here, limit):
                    shared = [] if isolated else self._pool.place(options.replicas)
                    for number in range(copies):
                        if on_cluster:
                            slot = self._pool.add(isolated=True, cluster=options)
                        elif isolated:
                            slot = self._pool.add(isolated=True, gpus=options.gpus)
                        else:
                            slot = shared[number]
                        slot.models += 1
                        model.replicas.append(Replica(slot))
                    await self._replicas.load_all(model)
                    self._eviction.count(model, copies_here * self._budget.need(model))
                    if not model.record.lazy:
                        await self._ledger.add(model.record)
                    # Meanwhile the load of another model may have ended a worker that had this one already.
                    await self._replicas.load_all(model)
                if not all(replica.ready for replica in model.replicas):
                    await self._ledger.remove(model.model_id)
                    raise WorkerLost(f"the workers that held the model ended {LOAD_ROUNDS} times while it was loaded")
            except Exception as error:
                await self._forget(model)
                failure = load_error(error)
                self.loads[model.algorithm.name].failures += 1
                self._tell(model, "failed", str(failure))
                model.settled.set_exception(failure)
                return
            model.state = "loaded"
            model.since = time.time()
            self._eviction.forget(model.model_id)
            self.lazy.forget_failure(model.model_id)
            workers = ", ".join(
                f"{replica.slot.index} on {replica.slot.node}" if replica.slot.node else str(replica.slot.index)
                for replica in model.replicas
            )
            taken = time.monotonic() - started
            self.loads[model.algorithm.name].seconds.add(taken)
            logger.info("model {!r} is loaded in worker {} after {:.2f} s", model.model_id, workers, taken)
            self._tell(model, "loaded")
            model.settled.set_result(None)
            for replica in list(model.replicas):
                self._replicas.rejoin_soon(model, replica)
            # At the start, an alias may have moved to another model meanwhile.
            self.release(model.model_id)

    async def load_again(self, model: ModelState, replica: Replica) -> None:
        """Loads a model again into a worker that was replaced."""
        async with self._budget.taken(model, 1 if replica.slot.cluster is None else 0, self._replicas.limit(model)):
            await self._replicas.load(model, replica)
        if all(other.ready for other in model.replicas):
            self._tell(model, "loaded")
        self._replicas.rejoin_soon(model, replica)

    def evict(self, model: ModelState) -> None:
        """Begins to unload a model because memory is short."""
        model.begin_unload()
        model.evicted = True
        self.loads[model.algorithm.name].evictions += 1
        self._tell(model, "unloading", _EVICTED)
        self.start(self._unload_model, model)

    async def _leave(self, model_id: str) -> None:
        """Unloads a model if no alias leads to it."""
        with contextlib.suppress(ModelInUse):
            await self.unload(model_id)

    async def _unload_model(self, model: ModelState) -> None:
        limit = self._replicas.limit(model)
        dispatcher = model.dispatcher
        # If no worker has it at the moment, nobody would ever answer what waits: it is not loaded again.
        if not any(replica.ready for replica in model.replicas) or not await dispatcher.idle(limit):
            dispatcher.fail_waiting(ModelNotLoaded(model.model_id))
        record = msgspec.structs.replace(model.record, evicted=time.time())
        if model.evicted:
            self._eviction.note(record)
        if model.evicted and not record.lazy:
            # Before it is gone: a prediction that asks for it then finds how it was loaded.
            await self._ledger.add(record)
        await self._forget(model)
        if not model.evicted:
            await self._ledger.remove(model.model_id)
        logger.info("model {!r} is {}", model.model_id, "evicted" if model.evicted else "unloaded")
        self._tell(model, "unloaded", _EVICTED if model.evicted else "")
        model.settled.set_result(None)

    async def _forget(self, model: ModelState) -> None:
        """Takes a model out of its workers and out of the list."""
        limit = self._replicas.limit(model)
        for replica in list(model.replicas):
            replica.slot.models -= 1
            if replica.ready:
                await self._replicas.unload(replica, model.model_id, limit)
            if replica.slot.isolated:
                await self._pool.remove(replica.slot, grace=5.0)
        model.dispatcher.fail_waiting(ModelNotLoaded(model.model_id))
        self._past[model.algorithm.name] += model.counts
        self.states.pop(model.model_id, None)

    def _make_worker(self, slot: WorkerSlot) -> Worker:
        if self._local_state is not None:
            return LocalWorker(slot.index, self._app, self._settings, self._local_state)
        name = f"worker-{slot.index}"
        return ProcessWorker(
            *(slot.index, self._target, self._settings, self._log),
            name=name,
            single=slot.isolated,
            devices=slot.devices,
            cluster=slot.cluster,
        )

    def worker_up(self, slot: WorkerSlot) -> None:
        """Loads the models of a worker that was replaced."""
        self.start(self._recovery.reload, slot)

    def worker_down(self, slot: WorkerSlot, how: str) -> None:
        """Notes that a worker has ended, and lost its models."""
        for model in self.states.values():
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

    async def give_up(self, record: LoadedModelRecord, error: MlpkitError) -> None:
        """Drops a model until somebody asks for it."""
        model = self.states.get(record.model_id)
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


def _check_placements(algorithms: Mapping[str, Algorithm], settings: Settings) -> None:
    """Refuses models on a cluster if the service uses none.

    Raises:
        SettingsError: says what to do.
    """
    for algorithm in algorithms.values():
        if algorithm.load_options.placement == "cluster" and settings.engine != "ray" and settings.workers > 0:
            raise SettingsError(
                f"algorithm {algorithm.name!r} has @app.load(placement='cluster'), and this service uses no Ray "
                "cluster: start it with --engine ray (RAY_ADDRESS says where the cluster is), or leave out placement="
            )
