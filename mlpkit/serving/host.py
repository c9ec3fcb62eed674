"""The models of one process: runs the user's `load`, `unload` and other hooks, and hands predictions to their models.

It is the inside of a worker process, and the whole of serving where models live in the server process (`--workers 0`).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec

from mlpkit import formats
from mlpkit.app import App
from mlpkit.errors import MlpkitError, ModelNotLoaded, UserCodeError
from mlpkit.injection import Call, Plan, ProcessScope, async_user_code, user_code, user_error
from mlpkit.log import logger, request_id, with_request_id
from mlpkit.serving.memory import Growth
from mlpkit.serving.messages import AT_ONCE, Answer, Failure, Load, Predict, Result, RunHook, Unload
from mlpkit.serving.predictor import Predictor, Surroundings, error_text
from mlpkit.serving.stores import Stores
from mlpkit.settings import Settings
from mlpkit.storage import ModelDir, Storage, open_model

T = TypeVar("T")
Close = Callable[[], Awaitable[None]]


_Files = tuple[Storage, ModelDir | None]
"""A storage that was borrowed, or files that it holds."""


@dataclass(frozen=True)
class _Hosted:
    """A loaded model: its predictions, what cleans up after it, and its files, which the cache must keep meanwhile."""

    predictor: Predictor
    close: Close
    files: list[_Files]


class Host:
    """The models and hooks of one process. `send` gets the answer to every request, on the loop.

    `inline=False` keeps handlers off the loop altogether: for the server process, which must stay responsive.
    """

    def __init__(self, app: App, settings: Settings, send: Callable[[Answer], None], *, inline: bool = True) -> None:
        self._app, self._algorithms, self._settings = app, app.build(), settings
        self._send, self._inline = send, inline
        self._models: dict[str, _Hosted] = {}
        self._unloading = 0
        self._growth = Growth()
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="mlpkit-hook")
        self._tasks: set[asyncio.Task[None]] = set()
        self._stores = Stores(settings)
        scope = ProcessScope(self._service, app.overrides())
        self._around = Surroundings(settings, self._service, scope)

    async def start(self) -> None:
        """Runs the `on_start` hooks.

        Raises:
            UserCodeError: one of them failed.
        """
        for hook in self._app.lifecycle("on_start"):
            await self._call(hook.plan, {})

    async def stop(self) -> None:
        """Drops the models, runs the `on_stop` hooks and the clean-up of process-wide dependencies."""
        for model_id in list(self._models):
            await self._drop(model_id)
        for hook in self._app.lifecycle("on_stop"):
            try:
                await self._call(hook.plan, {})
            except MlpkitError as error:
                logger.error("on_stop failed: {}", error_text(error))
        await self._cleaned_up(lambda: self._in_thread(self._around.scope.close))
        self._threads.shutdown(wait=False)
        self._stores.close()

    def take(self, request: Load | Unload | Predict | RunHook) -> None:
        """Begins with a request; its answer goes to `send`."""
        if not isinstance(request, Predict):
            self._unloading += isinstance(request, Unload)
            task = self._loop.create_task(self._answer(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif (hosted := self._models.get(request.model_id)) is not None:
            hosted.predictor.take(request)
        else:
            missing = Failure.of(ModelNotLoaded(request.model_id))
            self._send(Answer(request.id, [missing] * len(request.items)))

    async def _answer(self, request: Load | Unload | RunHook) -> None:
        started = time.perf_counter()
        result: Result = b"null"
        with with_request_id(request.log_uuid):
            try:
                if isinstance(request, Load):
                    with self._growth.measured(whole=self._is_isolated(request)) as growth:
                        await self._load(request)
                        result = msgspec.json.encode(growth())
                elif isinstance(request, Unload):
                    await self._unload(request)
                else:
                    result = await self._run_hook(request)
            except MlpkitError as error:
                result = Failure.of(error)
            except asyncio.CancelledError:
                # Nobody cancels a request: something that the author's code awaited was.
                result = Failure.of(UserCodeError("CancelledError"))
            except Exception as error:
                logger.exception("{} failed inside mlpkit", type(request).__name__)
                result = Failure.of(MlpkitError(f"internal error: {error}"))
        self._send(Answer(request.id, [result], time.perf_counter() - started))

    def _is_isolated(self, request: Load) -> bool:
        return self._algorithms[request.algorithm].load_options.isolated and self._settings.workers > 0

    async def _load(self, request: Load) -> None:
        algorithm = self._algorithms[request.algorithm]
        plan = algorithm.plan("load")
        if plan is None:
            raise UserCodeError(f"algorithm {request.algorithm!r} has no load function")
        fields = {
            "model_id": request.model_id,
            "model_path": request.model_path,
            "extend": msgspec.Raw(request.extend),
            "uuid": request.uuid,
        }

        files: list[_Files] = []

        def service(wanted: type) -> object:
            if wanted not in (Storage, ModelDir):
                return self._service(wanted)
            storage = self._stores.borrow(request.extend)
            files.append((storage, None))
            if wanted is Storage:
                return storage
            found = open_model(storage, self._settings, request.model_id, request.model_path)
            files.append((storage, found))
            _warn_of_other_algorithm(found, request)
            return found

        try:
            value, close = await self._open(plan, fields, service)
        except BaseException as error:
            self._release(files)
            if isinstance(error, MlpkitError):
                logger.error("load of model {!r} failed: {}", request.model_id, error_text(error))
            raise
        predictor = Predictor(algorithm, request.model_id, value, self._around, self._send, inline=self._inline)
        self._models[request.model_id] = _Hosted(predictor, close, files)
        # What a model holds lives long: outside the collector's generations it makes no collection slower.
        gc.collect()
        gc.freeze()

    async def _open(
        self, plan: Plan, fields: Mapping[str, object], service: Callable[[type], object]
    ) -> tuple[object, Close]:
        """What `load` returns or yields, and what cleans up after it when the model is dropped."""
        call = await self._completed(plan, fields, service)
        if not plan.is_generator:
            return await self._run_and_close(plan, call), _nothing
        opened = plan.function(**call.arguments)

        async def step() -> object:
            return await (async_user_code(_advance, opened) if plan.is_async else self._in_thread(_next, opened))

        async def close() -> None:
            await self._cleaned_up(step)
            await self._cleaned_up(lambda: self._close(call))

        try:
            value = await step()
        except BaseException as error:
            await self._close(call, error)
            raise
        if value is _END:
            await self._close(call)
            raise UserCodeError("load is a generator that yielded no model")
        return value, close

    async def _unload(self, request: Unload) -> None:
        try:
            if request.model_id in self._models:
                await self._call_unload(request.model_id)
                await self._drop(request.model_id)
        finally:
            self._unloading -= 1
        if self._unloading == 0:
            # The collector looks at everything that the process holds: after many unloads at a time, once for all.
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    async def _call_unload(self, model_id: str) -> None:
        predictor = self._models[model_id].predictor
        plan = predictor.algorithm.plan("unload")
        if plan is None:
            return
        try:
            await self._call(plan, {"model_id": model_id, "model": predictor.model})
        except MlpkitError as error:
            logger.error("unload of model {!r} failed, it is dropped: {}", model_id, error_text(error))

    async def _drop(self, model_id: str) -> None:
        hosted = self._models.pop(model_id, None)
        if hosted is None:
            # The process stops while the model is being unloaded: one of the two drops it.
            return
        hosted.predictor.close()
        await hosted.close()
        self._release(hosted.files)

    def _release(self, files: list[_Files]) -> None:
        """Lets the cache have the files of a model that is gone."""
        for storage, each in reversed(files):
            if each is None:
                self._stores.give_back(storage)
            else:
                storage.release(each)

    async def _run_hook(self, request: RunHook) -> bytes:
        plan = self._algorithms[request.algorithm].plan(request.hook)
        if plan is None:
            raise UserCodeError(f"algorithm {request.algorithm!r} has no {request.hook} function")
        try:
            answer = await self._call(plan, {name: msgspec.Raw(value) for name, value in request.fields.items()})
        except UserCodeError as error:
            logger.error("{} of {!r} failed: {}", request.hook, request.algorithm, error_text(error))
            raise
        try:
            return formats.to_json(answer)
        except (TypeError, ValueError) as error:
            raise UserCodeError(f"{request.hook} answered what JSON cannot hold: {error}") from error

    async def _call(self, plan: Plan, fields: Mapping[str, object]) -> Any:
        return await self._run_and_close(plan, await self._completed(plan, fields, self._service))

    async def _completed(self, plan: Plan, fields: Mapping[str, object], service: Callable[[type], object]) -> Call:
        """The call with all its arguments; services and dependencies, which may take long, are made in a thread."""
        complete = partial(plan.complete, plan.decode(fields), fields, service, self._around.scope)
        return complete() if plan.is_simple else await self._in_thread(complete)

    async def _run_and_close(self, plan: Plan, call: Call) -> Any:
        """What the handler answers; the clean-up of its dependencies sees what it raised."""
        try:
            answer = await self._run(plan, call)
        except BaseException as error:
            await self._close(call, error)
            raise
        await self._close(call)
        return answer

    async def _close(self, call: Call, error: BaseException | None = None) -> None:
        if call.exits is not None:
            await self._in_thread(call.close, error)

    async def _run(self, plan: Plan, call: Call) -> Any:
        if plan.is_async:
            return await async_user_code(plan.function, **call.arguments)
        return await self._in_thread(user_code, plan.function, **call.arguments)

    async def _in_thread(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        uuid = request_id.get()

        def run() -> T:
            with with_request_id(uuid):
                return function(*args, **kwargs)

        return await self._loop.run_in_executor(self._threads, run)

    async def _cleaned_up(self, step: Callable[[], Awaitable[object]]) -> None:
        """Runs a clean-up whose failure changes nothing any more: it is logged."""
        try:
            await step()
        except MlpkitError as error:
            logger.error("the clean-up failed: {}", error_text(error))

    def _service(self, wanted: type) -> object:
        return self._stores.own() if wanted is Storage else wanted()


_END = object()


def _warn_of_other_algorithm(files: ModelDir, request: Load) -> None:
    """Says before `load` runs what is the likely cause if it fails."""
    trained_by = files.manifest.algorithm if files.manifest is not None else request.algorithm
    if trained_by != request.algorithm:
        logger.warning("model {!r} is of algorithm {!r}, not {!r}", request.model_id, trained_by, request.algorithm)


def _next(generator: Any) -> Any:
    try:
        return next(generator, _END)
    except BaseException as error:
        raise user_error(error) from None


async def _advance(generator: Any) -> Any:
    return await anext(generator, _END)


async def _nothing() -> None:
    pass
