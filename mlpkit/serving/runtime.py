"""The models and hooks of one process.

It is the inside of a worker process, `python -m mlpkit.serving` (`main`), and the whole of serving if models live in
the server process (`--workers 0`). `serving/worker.py` is the server's end. `serving/execution.py` describes in which
thread the user's code runs.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread
import contextlib
import contextvars
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from mlpkit import formats
from mlpkit.app import App
from mlpkit.errors import BelowGate, MlpkitError, ModelNotLoaded, UserCodeError
from mlpkit.injection import ProcessScope
from mlpkit.log import logger, request_id, subject, with_request_id
from mlpkit.processes import (
    BlockingChannel,
    capture_output,
    channel_of_child,
    flush_streams,
    leave_signals_to_the_server,
    listen_for_debugger,
    name_requests_in_loguru,
)
from mlpkit.script import import_app
from mlpkit.serving.execution import CallingThread, EventLoopThread, Thread, ThreadState, WorkerThreads
from mlpkit.serving.memory import Growth
from mlpkit.serving.messages import (
    PARALLEL_LOADS,
    Broken,
    Cancel,
    Failure,
    Item,
    Load,
    LoadResult,
    Logged,
    Predict,
    Ready,
    Reply,
    Result,
    RunHook,
    StartWorker,
    Stop,
    Unload,
    Work,
    decode_server_message,
    encode,
)
from mlpkit.serving.runner import PredictRunner
from mlpkit.serving.stores import Stores
from mlpkit.settings import Settings, decode_settings
from mlpkit.storage import Manifest, ModelDir, Storage, gate_problem, open_model, without_outer_slashes
from mlpkit.tracing import note_failure, span

_STOP_SECONDS = 5.0
"""How long a worker gets to close its models after it was asked to stop."""
_KEPT = 4 << 20
"""Bytes; glibc then keeps up to twice as many that were freed."""
_LONGEST_NAME = 64
_QUICK = 0.02
"""Seconds that other requests may wait for a request of the model whose thread reads the channel."""

Close = Callable[[], object]
_Files = tuple[Storage, ModelDir | None]
"""A storage that was borrowed, or files that it holds."""


@dataclass(frozen=True)
class _LoadedModel:
    """A model in this process.

    `predict` hands a request to the thread or the event loop that answers it. `thread` is the model's own, in which
    `load` ran; `predict_threads` are further ones, if it has them. `files` must stay in the cache as long as it lives.
    """

    runner: PredictRunner
    predict: Callable[[Predict], object]
    thread: Thread
    predict_threads: Thread | None
    closers: list[Close]
    files: list[_Files]


class WorkerRuntime:
    """The models of one process, and what it runs for them.

    `send` gets the reply to every request, in any thread.

    Args:
        single: the process has one model, whose handlers run in the thread that calls `take`.
        warm_up: predict the examples of an algorithm after each load.
    """

    def __init__(
        self,
        app: App,
        settings: Settings,
        send: Callable[[Reply], None],
        *,
        single: bool = False,
        warm_up: bool = True,
    ) -> None:
        self._app = app
        self._algorithms = app.build()
        self._settings = settings
        self._send = send
        self._single = single
        self._warms_up = warm_up
        self._models: dict[str, _LoadedModel] = {}
        self._unloading = 0
        self._lock = threading.Lock()
        self._growth = Growth()
        self._hooks: WorkerThreads | None = None
        self._async = EventLoopThread()
        self._stores = Stores(settings)
        self._scope = ProcessScope(self._service, app.overrides(), self._async.run)

    def start(self) -> None:
        """Runs the `on_start` hooks in this thread.

        Models begin with what these and the import have left.

        Raises:
            UserCodeError: one of them failed.
        """
        for hook in self._app.lifecycle("on_start"):
            hook.plan({}, self._service, self._scope)
        self._state = ThreadState()

    def stop(self, limit: float = _STOP_SECONDS) -> None:
        """Drops the models, and runs the `on_stop` hooks here.

        Models that have not closed after `limit` seconds are left as they are.
        """
        dropped = [self._drop_soon(model_id) for model_id in list(self._models)]
        end = time.monotonic() + limit
        for done in dropped:
            done.wait(max(0.0, end - time.monotonic()))
        for hook in self._app.lifecycle("on_stop"):
            try:
                hook.plan({}, self._service, self._scope)
            except MlpkitError as error:
                logger.error("on_stop failed: {}", error, trace=error.trace)
        _clean_up(self._scope.close)
        if self._hooks is not None:
            self._hooks.close()
        self._async.close()
        self._stores.close()

    def take(self, request: Work) -> None:
        """Hands a request to the thread that answers it."""
        if type(request) is Predict:
            model = self._models.get(request.model_id)
            if model is not None:
                model.predict(request)
            else:
                missing = Failure.of(ModelNotLoaded(request.model_id))
                self._send(Reply(request.id, [missing] * len(request.items)))
            return
        try:
            if isinstance(request, Load):
                self._begin_load(request)
            elif isinstance(request, Unload):
                self._begin_unload(request)
            elif isinstance(request, RunHook):
                self._begin_hook(request)
        except RuntimeError as error:
            failure = MlpkitError(f"the system allows no more threads in this process: {error}")
            self._send(Reply(request.id, [Failure.of(failure)]))

    def cancel(self, request: Cancel) -> None:
        """Lets a generator be closed whose caller has gone."""
        model = self._models.get(request.model_id)
        if model is not None:
            model.runner.cancel(request.id)

    def reader(self) -> _LoadedModel | None:
        """The model whose thread may read the channel, or None.

        That is the only model of the process, if it is plain and quick.
        """
        if self._single or len(self._models) != 1:
            return None
        (model,) = self._models.values()
        # While a generator runs, this thread must see that its caller goes away.
        is_plain = model.predict_threads is None and not (model.runner.is_async or model.runner.is_generator)
        return model if is_plain and model.runner.seconds < _QUICK else None

    def _begin_load(self, request: Load) -> None:
        name = _thread_name("model", request.model_id)
        plan = self._algorithms[request.algorithm].plan("predict")
        # A generator runs while this thread reads the channel, to see that its caller goes away.
        in_this_thread = self._single and not (plan is not None and plan.is_generator)
        thread: Thread = CallingThread() if in_this_thread else WorkerThreads(name, self._state)

        def load(request: Load) -> bytes:
            try:
                with self._growth.measured(whole=self._single) as growth:
                    manifest = self._load(request, thread)
                    evaluation = manifest.evaluation if manifest is not None else {}
                    size = sum(manifest.files.values()) if manifest is not None else 0
                    return msgspec.json.encode(LoadResult(growth(), evaluation, size))
            except BaseException:
                thread.close()
                raise

        thread.put(self._answer, (request, load))

    def _begin_unload(self, request: Unload) -> None:
        model = self._models.get(request.model_id)
        if model is None:
            self._send(Reply(request.id, [b"null"]))
            return
        with self._lock:
            self._unloading += 1
        model.thread.put(self._answer, (request, self._unload))

    def _begin_hook(self, request: RunHook) -> None:
        if self._hooks is None:
            self._hooks = WorkerThreads("mlpkit-hook", self._state, PARALLEL_LOADS)
        self._hooks.put(self._answer, (request, self._run_hook))

    def _answer(self, call: tuple[Any, Callable[[Any], bytes]]) -> None:
        """Answers a request with what a function makes of it; never raises."""
        request, function = call
        started = time.perf_counter()
        name = request.hook if isinstance(request, RunHook) else type(request).__name__.lower()
        with with_request_id(request.log_uuid, request.traceparent), span(name):
            try:
                result: Result = function(request)
            except MlpkitError as error:
                note_failure(error)
                result = Failure.of(error)
            except Exception as error:
                logger.exception("{} failed inside mlpkit", type(request).__name__)
                result = Failure.of(MlpkitError(f"internal error: {error}"))
        self._send(Reply(request.id, [result], time.perf_counter() - started))

    def _load(self, request: Load, thread: Thread) -> Manifest | None:
        """Calls `load` in this thread, which is the model's from now on.

        Gives the model's manifest, if `load` took its folder.
        """
        # This thread and its context are the model's from now on.
        subject.set({"algorithm": request.algorithm, "model_id": request.model_id})
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
            path = without_outer_slashes(request.model_path or "") or None
            # Also when it is loaded again: the same id may have been trained again meanwhile. It is asked before its
            # files are fetched, which may be gigabytes.
            if request.gated and (problem := gate_problem(storage, self._settings, request.model_id, path)):
                raise BelowGate(f"model [{request.model_id}] is below its gate: {problem}")
            found = open_model(storage, self._settings, request.model_id, path)
            files.append((storage, found))
            _warn_of_other_algorithm(found, request)
            return found

        try:
            model, closers = plan.open(fields, service, self._scope)
            runner = PredictRunner(
                algorithm, request.model_id, model, self._settings, self._service, self._scope, self._send
            )
            loaded = self._with_threads(runner, thread, closers, files)
            self._warm_up(loaded)
        except BaseException as error:
            self._release(files)
            if isinstance(error, MlpkitError):
                level = "DEBUG" if request.failures else "ERROR"
                logger.log(level, "load of model {!r} failed: {}", request.model_id, error, trace=error.trace)
            raise
        self._models[request.model_id] = loaded
        # What a model holds lives long: outside the collector's generations it makes no collection slower.
        gc.collect()
        gc.freeze()
        return next((found.manifest for _, found in files if found is not None), None)

    def _with_threads(
        self, runner: PredictRunner, thread: Thread, closers: list[Close], files: list[_Files]
    ) -> _LoadedModel:
        """The model, with what its predictions run in.

        Predictions begin with what this thread, in which `load` ran, has now.
        """
        if runner.is_async:
            call_soon: Callable[..., object] = self._async.loop.call_soon_threadsafe
            predict = partial(call_soon, runner.start, context=contextvars.copy_context())
            return _LoadedModel(runner, predict, thread, None, closers, files)
        count = runner.algorithm.predict_options.threads
        if count == 1:
            return _LoadedModel(runner, partial(thread.put, runner.run), thread, None, closers, files)
        threads = WorkerThreads(_thread_name("predict", runner.model_id), ThreadState(), count)
        return _LoadedModel(runner, partial(threads.put, runner.run), thread, threads, closers, files)

    def _warm_up(self, loaded: _LoadedModel) -> None:
        """Predicts the examples of the algorithm, on the way of all predictions.

        What is only done once, such as allocations and imports, is then not left to the first caller. An example that
        fails is logged: the model is loaded even so, because only the author's example may be wrong.
        """
        runner = loaded.runner
        algorithm = runner.algorithm
        if not (self._warms_up and algorithm.load_options.warm_up and algorithm.plan("predict")):
            return
        replies: SimpleQueue[Reply] = SimpleQueue()
        runner.send = replies.put
        # The thread of `load` also predicts, unless there are several or a loop.
        predict = runner.run if loaded.predict_threads is None and not runner.is_async else loaded.predict
        for number, example in enumerate(algorithm.examples, 1):
            try:
                item = Item(params=b"null", uuid=None, log_uuid=request_id.get(), features=formats.to_json(example))
                predict(Predict(0, runner.model_id, [item]))
                result = replies.get(timeout=self._settings.load_timeout).results[0]
                problem = result.text if isinstance(result, Failure) else ""
            except Empty:
                problem = f"there was no answer within {self._settings.load_timeout:g} s"
            except (TypeError, ValueError) as error:
                problem = str(error)
            if problem:
                logger.warning(
                    "model {!r} is loaded, but example {} of {!r} cannot be predicted: {}",
                    *(runner.model_id, number, algorithm.name, problem),
                )
        runner.send = self._send

    def _unload(self, request: Unload) -> bytes:
        try:
            model = self._models.get(request.model_id)
            if model is not None:
                self._call_unload(model.runner)
                self._drop(request.model_id)
        finally:
            with self._lock:
                self._unloading -= 1
                is_last = self._unloading == 0
        if is_last:
            # The collector looks at everything that the process holds: after many unloads at a time, once for all.
            gc.unfreeze()
            gc.collect()
            gc.freeze()
        return b"null"

    def _call_unload(self, runner: PredictRunner) -> None:
        plan = runner.algorithm.plan("unload")
        if plan is None:
            return
        try:
            plan({"model_id": runner.model_id, "model": runner.model}, self._service, self._scope)
        except MlpkitError as error:
            logger.error("unload of model {!r} failed, it is dropped: {}", runner.model_id, error, trace=error.trace)

    def _drop_soon(self, model_id: str) -> threading.Event:
        """Drops a model in its own thread.

        The event is set when that is done.
        """
        done = threading.Event()

        def drop(model_id: str) -> None:
            try:
                self._drop(model_id)
            finally:
                done.set()

        self._models[model_id].thread.put(drop, model_id)
        return done

    def _drop(self, model_id: str) -> None:
        """Releases a model, in its own thread."""
        model = self._models.pop(model_id, None)
        if model is None:
            # The process stops while the model is being unloaded: the unload dropped it.
            return
        model.runner.model = None
        for close in model.closers:
            _clean_up(close)
        self._release(model.files)
        for threads in (model.thread, model.predict_threads):
            if threads is not None:
                threads.close()

    def _release(self, files: list[_Files]) -> None:
        """Releases the cached files of a model that is gone."""
        for storage, folder in reversed(files):
            if folder is None:
                self._stores.give_back(storage)
            else:
                storage.release(folder)

    def _run_hook(self, request: RunHook) -> bytes:
        subject.set({"algorithm": request.algorithm})
        plan = self._algorithms[request.algorithm].plan(request.hook)
        if plan is None:
            raise UserCodeError(f"algorithm {request.algorithm!r} has no {request.hook} function")
        try:
            fields = {name: msgspec.Raw(value) for name, value in request.fields.items()}
            answer = plan(fields, self._service, self._scope)
        except UserCodeError as error:
            logger.error("{} of {!r} failed: {}", request.hook, request.algorithm, error, trace=error.trace)
            raise
        try:
            return formats.to_json(answer)
        except (TypeError, ValueError) as error:
            raise UserCodeError(f"{request.hook} answered what JSON cannot hold: {error}") from error

    def _service(self, wanted: type) -> object:
        return self._stores.own() if wanted is Storage else wanted()


@contextlib.contextmanager
def runtime_here(app: App, settings: Settings, *, single: bool = False) -> Iterator[Callable[[Load | Predict], bytes]]:
    """A runtime in this process, for one caller who waits for answers.

    It gives what asks it, which raises the error of an answer. `single` is as for `WorkerRuntime`.
    """
    replies: SimpleQueue[Reply] = SimpleQueue()
    runtime = WorkerRuntime(app, settings, replies.put, single=single, warm_up=False)

    def ask(request: Load | Predict) -> bytes:
        runtime.take(request)
        while (reply := replies.get()).id != request.id:
            pass  # an interrupt has ended the wait for that one
        result = reply.results[0]
        if isinstance(result, Failure):
            # The runtime has logged its traceback.
            raise result.to_error()
        return result

    runtime.start()
    try:
        yield ask
    finally:
        runtime.stop()


_NOT_QUICK = object()
"""What the thread of a model returns when it has taken long: the main thread reads the channel again."""


def _thread_name(what: str, model_id: str) -> str:
    return f"mlpkit-{what}-{model_id}"[:_LONGEST_NAME]


def _warn_of_other_algorithm(files: ModelDir, request: Load) -> None:
    """Warns before `load` runs what the likely cause is if it fails."""
    trained_by = files.manifest.algorithm if files.manifest is not None else request.algorithm
    if trained_by != request.algorithm and not request.failures:
        logger.warning("model {!r} is of algorithm {!r}, not {!r}", request.model_id, trained_by, request.algorithm)


def _clean_up(close: Close) -> None:
    """Runs a clean-up; a failure is only logged."""
    try:
        close()
    except MlpkitError as error:
        logger.error("the clean-up failed: {}", error, trace=error.trace)


def main() -> None:
    """Runs a worker process.

    It ends when it is told to stop, or the server is gone.
    """
    leave_signals_to_the_server()
    _keep_freed_memory()
    channel = BlockingChannel(channel_of_child())
    message = channel.receive()
    if message is None:
        # The server is gone already.
        return
    start = decode_server_message(message)
    assert isinstance(start, StartWorker)
    settings = decode_settings(start.settings)
    capture_output(lambda line: channel.send(encode(Logged(line))), process=start.name, level=settings.log_level)
    sys.path[:] = start.sys_path
    try:
        listen_for_debugger(settings.debugpy)
        app = import_app(start.target)
        name_requests_in_loguru()
        runtime = WorkerRuntime(app, settings, _sender(channel), single=start.single)
        runtime.start()
    except MlpkitError as error:
        channel.send(encode(Broken(str(error))))
        channel.close()
        return
    channel.send(encode(Ready()))
    _work(channel, runtime)
    _end(channel, runtime)


def _keep_freed_memory() -> None:
    """Lets the memory of one long request be used for the next.

    Otherwise it is given back to the system, and cleared each time.

    glibc takes its limits for that from the largest block that was freed: mallopt(3), M_MMAP_THRESHOLD.
    """
    bytearray(_KEPT)


def _sender(channel: BlockingChannel) -> Callable[[Reply], None]:
    """What writes replies to the channel, from any thread."""
    worker = os.getpid()

    def send(reply: Reply) -> None:
        if os.getpid() != worker:
            # A process that the author's code has forked, and that came back from the handler: its parent may wait for
            # its end, and answers.
            flush_streams()
            os._exit(any(isinstance(result, Failure) for result in reply.results))
        try:
            channel.send(encode(reply))
        except Exception as error:
            # Too long, or no memory to write it: the caller must be told.
            failure = Failure.of(MlpkitError(f"the answer cannot be sent: {error!r}"))
            channel.send(encode(Reply(reply.id, [failure] * len(reply.results), reply.seconds)))

    return send


def _work(channel: BlockingChannel, runtime: WorkerRuntime) -> None:
    """Takes requests until the server says stop, or is gone.

    This thread reads the channel and hands each request to the thread of its model. Changing threads twice costs more
    than a quick model takes. So if the process has one quick model, that model's thread reads the channel itself, until
    a request is not for it, or it is not quick any more.
    """
    returned: SimpleQueue[Any] = SimpleQueue()
    while True:
        model = runtime.reader()
        if model is None:
            message = channel.receive()
            request = None if message is None else decode_server_message(message)
        else:
            model.thread.put(_read_for, (channel, model.runner, returned))
            # It must not keep the model alive after its unload.
            model = None
            request = returned.get()
            if request is _NOT_QUICK:
                continue
        if request is None or type(request) is Stop:
            return
        if type(request) is Cancel:
            runtime.cancel(request)
            continue
        runtime.take(request)  # type: ignore[arg-type]
        # A waiting thread must not keep a long request.
        message = request = None


def _read_for(call: tuple[BlockingChannel, PredictRunner, SimpleQueue[Any]]) -> None:
    """Reads the channel in a model's thread, and answers its requests.

    Puts the first request that is not for it into the queue.
    """
    channel, runner, returned = call
    while runner.seconds < _QUICK:
        message = channel.receive()
        request = None if message is None else decode_server_message(message)
        if type(request) is not Predict or request.model_id != runner.model_id:
            returned.put(request)
            return
        runner.run(request)
        message = request = None
    returned.put(_NOT_QUICK)


def _end(channel: BlockingChannel, runtime: WorkerRuntime) -> None:
    """Closes the models and ends the process.

    Also if a handler never returns.
    """
    late = threading.Timer(_STOP_SECONDS, os._exit, (0,))
    late.daemon = True
    with contextlib.suppress(RuntimeError):
        late.start()
    runtime.stop()
    # As Python's own exit does: `atexit` waits for the processes of a pool, which end only if the pool is told to. But
    # the tasks of a thread pool may never end.
    concurrent.futures.thread._threads_queues.clear()  # type: ignore[attr-defined]
    for end in reversed(threading._threading_atexits):  # type: ignore[attr-defined]
        with contextlib.suppress(Exception):
            end()
    atexit._run_exitfuncs()
    channel.close()
    # Without waiting for threads that handlers have started.
    os._exit(0)
