"""The front door of serving: loads, predicts and unloads models, and keeps what was loaded loaded.

Guarantees: one load per model id however many ask; a failed load leaves nothing behind; unload waits for the
predictions in flight; a worker that dies is replaced and loads its models again; what was loaded is loaded again after
a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from mlpkit.app import App
from mlpkit.errors import (
    AlgorithmNotFound,
    ArgumentError,
    LoadFailed,
    MlpkitError,
    ModelNotLoaded,
    Overloaded,
    ServiceStopping,
    UserCodeError,
    WorkerLost,
)
from mlpkit.injection import NULL
from mlpkit.log import LogOutput, logger, request_id, with_request_id
from mlpkit.serving.ledger import Entry, Ledger
from mlpkit.serving.messages import Item, Json, Load, RunHook, Unload
from mlpkit.serving.model import Counts, Model, Replica
from mlpkit.serving.pool import Pool, Slot
from mlpkit.serving.prediction import Prediction, Settle, future_of
from mlpkit.serving.reloads import Reloads
from mlpkit.serving.room import Room
from mlpkit.serving.view import ModelView, view_of
from mlpkit.serving.worker import LocalWorker, ProcessWorker, Worker, ask, request_ids
from mlpkit.settings import Settings

if TYPE_CHECKING:
    from mlpkit.serving.execution import ThreadState

_WATCH = 0.1
"""Seconds between two looks at the time limits."""
_LAST_SECOND = 1.0
"""How long workers get to end by themselves when what they do has outlived the grace."""
_STOPPING = "the service is stopping and takes no new work"


class Models:
    """The models of a service and the workers that hold them. Opened and closed once; used on one event loop."""

    def __init__(self, app: App, target: str, settings: Settings, log: LogOutput) -> None:
        self._app, self._algorithms, self._target = app, app.build(), target
        self._settings, self._log = settings, log
        self._models: dict[str, Model] = {}
        self._pool = Pool(self._make_worker, self._worker_up, self._worker_down)
        self._ledger = Ledger(settings.home / "models.json")
        self._room = Room(settings.home / "memory.json")
        self._reloads = Reloads(self._models, self.load, self._load_replica_again, self._give_up)
        self._closing = False
        self._closed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._local_state = _state_of_this_thread() if settings.workers == 0 else None
        self._past = {name: Counts() for name in self._algorithms}

    async def open(self) -> None:
        """Starts the workers and begins to load what is to be loaded; does not wait for either (see `problems`)."""
        opened = asyncio.Event()
        self._running = asyncio.get_running_loop().create_task(self._run(opened))
        await opened.wait()

    async def drain(self, grace: float) -> None:
        """Takes no more work and gives what runs `grace` seconds; what has not ended then fails. The ledger stays."""
        self._closing = True
        end = time.monotonic() + grace
        in_time = await asyncio.gather(*(_at_rest(model, end) for model in self._models.values()))
        for model in self._models.values():
            if model.state == "loaded":
                model.state = "unloading"
            model.fail_waiting(ServiceStopping(_STOPPING))
        if not all(in_time):
            await self._pool.close(_LAST_SECOND)

    async def close(self, grace: float = 5.0) -> None:
        """Drains, where that was not done yet, and ends the workers; they get `grace` seconds to close their models."""
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
    ) -> None:
        """Returns when the model is loaded; a model that is loaded already is left as it is.

        Raises:
            AlgorithmNotFound: there is no such algorithm here.
            LoadFailed: the user's `load` failed, or no worker could take the model.
            ServiceStopping: the service is being shut down.
        """
        if algorithm not in self._algorithms:
            raise AlgorithmNotFound(algorithm)
        if self._closing:
            raise ServiceStopping(_STOPPING)
        while (model := self._models.get(model_id)) is not None and model.state == "unloading":
            await _settled(model)
        if model is None:
            model = self._begin_load(Entry(algorithm, model_id, model_path, bytes(extend).decode()), uuid)
        if model.state == "loading":
            await _settled(model)

    async def unload(self, model_id: str) -> None:
        """Returns when the model is gone and its predictions have ended. A model that is not loaded is no error."""
        self._reloads.forget(model_id)
        model = self._models.get(model_id)
        if model is not None and model.state == "loading":
            with contextlib.suppress(MlpkitError):
                await _settled(model)
        if model is not None and model.state == "loaded":
            model.begin_unload()
            self._start(self._unload, model)
        if model is not None and self._models.get(model_id) is model:
            await _settled(model)
        if model_id not in self._models:
            # Not loaded, or its load has failed, or it was given up meanwhile: a restart would try it again.
            await self._ledger.remove(model_id)

    def predict(self, model_id: str, features: Json, params: bytes, uuid: str | None) -> asyncio.Future[bytes]:
        """A future of the answer's `predictions` as JSON.

        Raises:
            MlpkitError: what `begin` refuses, at once; PredictFailed, WorkerLost and so on through the future.
        """
        return future_of(lambda settle: self.begin(model_id, features, params, uuid, settle))

    def begin(self, model_id: str, features: Json, params: bytes, uuid: str | None, settle: Settle) -> Prediction:
        """Accepts a prediction, whose outcome `settle` is told.

        Raises:
            ModelNotLoaded, ServiceStopping: the model is not loaded; the service takes no more work.
            Overloaded: too many predictions wait for this model already.
        """
        model = self._models.get(model_id)
        if model is None or model.state != "loaded":
            raise ServiceStopping(_STOPPING) if self._closing else ModelNotLoaded(model_id)
        if len(model.waiting) >= self._settings.max_waiting and not model.make_room(self._settings.max_waiting):
            raise Overloaded(f"{len(model.waiting)} predictions wait for model [{model_id}] already: try again later")
        item = Item(params=params, uuid=uuid, log_uuid=request_id.get(), features=features)
        return model.begin(item, settle)

    async def call(self, algorithm: str, hook: str, fields: Mapping[str, object]) -> Any:
        """What the user's `status`, `model_id` or `delete` answers, run in a worker.

        Raises:
            UserCodeError: the hook raised.
        """
        limit = self._settings.hook_timeout
        encoded = {name: msgspec.json.encode(value) for name, value in fields.items()}
        worker = await self._pool.next().wait_ready(limit)
        request = RunHook(next(request_ids), algorithm, hook, encoded, request_id.get())
        return msgspec.json.decode(await ask(worker, request, limit))

    def algorithm_of(self, model_id: str) -> str | None:
        """The algorithm that a model was loaded with; None where it is not loaded."""
        model = self._models.get(model_id)
        return model.algorithm.name if model is not None else None

    def placement(self) -> dict[str, list[int]]:
        """The workers that hold each loaded model."""
        return {
            model.model_id: [replica.slot.index for replica in model.replicas]
            for model in self._models.values()
            if model.state == "loaded"
        }

    def listed(self) -> list[ModelView]:
        """Every model that is loaded, being loaded or being unloaded."""
        return [view_of(model) for model in self._models.values()]

    def counts(self, algorithm: str) -> Counts:
        """What the models of an algorithm have done since the service started, those that are gone too."""
        present = (model.counts for model in self._models.values() if model.algorithm.name == algorithm)
        return sum(present, start=self._past[algorithm])

    @property
    def restarts(self) -> int:
        """How many workers have ended and were replaced."""
        return self._pool.restarts

    def problems(self) -> list[str]:
        """Why predictions cannot all be answered now, a sentence each; empty when all is well."""
        found = [self._reloads.problem] if self._reloads.problem else []
        found += self._pool.problems()
        found += [f"model [{each.model_id}] {each.problem}" for each in self._models.values() if each.returning]
        return found

    def warnings(self) -> list[str]:
        """What somebody should look at although predictions are answered, a sentence each."""
        return self._ledger.warnings()

    async def _run(self, opened: asyncio.Event) -> None:
        async with anyio.create_task_group() as self._tasks:
            self._reloads.open(self._tasks)
            self._pool.open(self._tasks, max(1, self._settings.workers))
            self._tasks.start_soon(self._watch)
            self._tasks.start_soon(self._ledger.keep)
            self._tasks.start_soon(self._restore)
            opened.set()
            await self._closed.wait()
            self._tasks.cancel_scope.cancel()

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
                model.expire(now)

    async def _restore(self) -> None:
        """Loads what was loaded in the last run, and what the script wants preloaded."""
        entries = {entry.model_id: entry for entry in self._ledger.read()}
        for algorithm in self._algorithms.values():
            for model_id in algorithm.load_options.preload:
                entries.setdefault(model_id, Entry(algorithm.name, model_id))
        isolated = [each.name for each in self._algorithms.values() if each.load_options.isolated]
        await self._reloads.restore(entries.values(), self._pool.shared, isolated, self._settings.start_timeout)

    def _begin_load(self, entry: Entry, uuid: str | None) -> Model:
        if self._closing:
            raise ServiceStopping(_STOPPING)
        algorithm = self._algorithms[entry.algorithm]
        usual = self._settings.predict_timeout
        limit = algorithm.predict_options.timeout or usual
        extend = entry.extend.encode()
        model = Model(algorithm, entry.model_id, entry.model_path, extend, uuid, limit, patience=max(limit, usual))
        model.settled.add_done_callback(_look_at)
        self._models[entry.model_id] = model
        self._start(self._load, model, entry, request_id.get())
        return model

    async def _load(self, model: Model, entry: Entry, log_uuid: str) -> None:
        with with_request_id(log_uuid):
            started = time.monotonic()
            options = model.algorithm.load_options
            isolated = options.isolated and self._settings.workers > 0
            copies = options.replicas if isolated else min(options.replicas, len(self._pool.shared))
            try:
                async with self._room.taken(model, copies, self._load_limit(model)):
                    slots = self._pool.place(options.replicas, isolated=isolated)
                    model.replicas = [Replica(slot) for slot in slots]
                    for replica in model.replicas:
                        replica.slot.models += 1
                    await _all(self._load_replica(model, replica) for replica in model.replicas)
                await self._ledger.add(entry)
                if not all(replica.ready for replica in model.replicas):
                    await self._ledger.remove(entry.model_id)
                    raise WorkerLost("a worker ended while the model was being loaded into another")
            except Exception as error:
                await self._forget(model)
                model.settled.set_exception(_load_error(error))
                return
            model.state, model.since = "loaded", time.time()
            places = ", ".join(str(replica.slot.index) for replica in model.replicas)
            taken = time.monotonic() - started
            logger.info("model {!r} is loaded in worker {} after {:.2f} s", model.model_id, places, taken)
            model.settled.set_result(None)

    async def _load_replica_again(self, model: Model, replica: Replica) -> None:
        async with self._room.taken(model, 1, self._load_limit(model)):
            await self._load_replica(model, replica)

    async def _load_replica(self, model: Model, replica: Replica) -> None:
        limit = self._load_limit(model)
        number, name, log_uuid = next(request_ids), model.algorithm.name, request_id.get()
        request = Load(number, name, model.model_id, model.model_path, model.extend, model.uuid, log_uuid)
        async with replica.slot.loads:
            worker = await replica.slot.wait_ready(min(limit, self._settings.start_timeout))
            growth = msgspec.json.decode(await ask(worker, request, limit), type=int | None)
            replica.ready = True
        if growth is not None:
            await self._room.remember(model.model_id, growth)

    async def _unload(self, model: Model) -> None:
        limit = self._load_limit(model)
        # Where no worker has it at the moment, nobody would ever answer what waits: it is not loaded again.
        if not any(replica.ready for replica in model.replicas) or not await model.idle(limit):
            model.fail_waiting(ModelNotLoaded(model.model_id))
        await self._forget(model)
        await self._ledger.remove(model.model_id)
        logger.info("model {!r} is unloaded", model.model_id)
        model.settled.set_result(None)

    async def _forget(self, model: Model) -> None:
        """Takes a model out of the workers that have it, and out of the list."""
        limit = self._load_limit(model)
        for replica in model.replicas:
            replica.slot.models -= 1
            worker = replica.slot.worker
            if replica.ready and worker is not None:
                with contextlib.suppress(MlpkitError):
                    await ask(worker, Unload(next(request_ids), model.model_id, request_id.get()), limit)
            replica.ready = False
            if replica.slot.isolated:
                await self._pool.remove(replica.slot, grace=5.0)
        model.fail_waiting(ModelNotLoaded(model.model_id))
        self._past[model.algorithm.name] += model.counts
        self._models.pop(model.model_id, None)

    def _load_limit(self, model: Model) -> float:
        return model.algorithm.load_options.timeout or self._settings.load_timeout

    def _make_worker(self, slot: Slot) -> Worker:
        if self._local_state is not None:
            return LocalWorker(slot.index, self._app, self._settings, self._local_state)
        name = f"worker-{slot.index}"
        return ProcessWorker(slot.index, self._target, self._settings, self._log, name=name, single=slot.isolated)

    def _worker_up(self, slot: Slot) -> None:
        self._start(self._reloads.reload, slot)

    def _worker_down(self, slot: Slot, how: str) -> None:
        for model in self._models.values():
            for replica in model.replicas:
                if replica.slot is slot:
                    replica.ready = False
                    if model.state == "loaded":
                        model.returning = True
                        model.problem = f"is down in worker {slot.index}, which {how}"
            if model.state == "unloading" and not any(replica.ready for replica in model.replicas):
                # It does not come back, so nobody would ever answer them.
                model.fail_waiting(WorkerLost(f"worker {slot.index} {how} while the model was being unloaded"))

    async def _give_up(self, entry: Entry, error: MlpkitError) -> None:
        model = self._models.get(entry.model_id)
        if model is not None:
            if model.state != "loaded":
                return  # Somebody else has begun to load or unload it.
            model.begin_unload()
            model.fail_waiting(error)
            await self._forget(model)
            model.settled.set_result(None)
        await self._ledger.give_up(entry, str(error))


def _state_of_this_thread() -> ThreadState:
    # A server whose models live in workers needs none of this module.
    from mlpkit.serving.execution import ThreadState

    return ThreadState()


async def _at_rest(model: Model, end: float) -> bool:
    """Whether the model's load, unload and predictions have ended; waits for that until `end` (monotonic seconds)."""
    await asyncio.wait([model.settled], timeout=max(0.0, end - time.monotonic()))
    return model.settled.done() and await model.idle(max(0.0, end - time.monotonic()))


def _load_error(error: Exception) -> MlpkitError:
    if not isinstance(error, MlpkitError):
        logger.opt(exception=error).error("a load failed inside mlpkit")
        return LoadFailed(f"internal error: {error}")
    if isinstance(error, (LoadFailed, ArgumentError, Overloaded)):
        return error
    failed = LoadFailed(str(error))
    failed.trace, failed.__cause__ = error.trace, error
    return failed


async def _settled(model: Model) -> None:
    """Waits for a load or unload that others may wait for too: a caller that goes away does not end it."""
    await asyncio.shield(model.settled)


def _look_at(future: asyncio.Future[None]) -> None:
    """A failed load may have no caller left; asyncio need not complain about that."""
    if not future.cancelled():
        future.exception()


async def _all(loads: Iterable[Any]) -> None:
    """Waits for all, also when one fails, and then raises the first failure."""
    results = await asyncio.gather(*loads, return_exceptions=True)
    for result in results:
        if isinstance(result, MlpkitError):
            raise result
        if isinstance(result, BaseException):
            raise UserCodeError(f"internal error: {result!r}")
