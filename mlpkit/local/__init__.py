"""An app in your own process, without a service: for notebooks.

    local = app.local()
    model_id = local.train("reviews.tsv", {"c": 2.0})
    local.predict({"sentence": "lovely"})

The app may be made in the notebook itself, because no other process imports it.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import itertools
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import msgspec

from mlpkit import formats
from mlpkit.app import App
from mlpkit.client import LocalFiles, upload
from mlpkit.errors import ArgumentError, TrainFailed
from mlpkit.script import choose_algorithm
from mlpkit.serving.messages import Item, Load, Predict
from mlpkit.serving.runtime import runtime_here
from mlpkit.settings import Settings, load_settings
from mlpkit.storage import open_storage
from mlpkit.training import Job, JobOutcome, Progress, check_job, new_model_id, run_train

if TYPE_CHECKING:
    from mlpkit.training import Snapshot

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["Local"]


class Local:
    """Trains and predicts in this process, without a service; `app.local()` makes one.

    Your functions run in threads of their own, so an event loop that runs here, as in Jupyter, is not in their way.
    Models are stored where `mlpkit train` would store them, and stay loaded until `close`.

    Args:
        app: the app, which may be made in a notebook.
        settings: as for a service; read from the environment if None.

    Raises:
        DeclarationError: the app has mistakes.
    """

    def __init__(self, app: App, settings: Settings | None = None) -> None:
        app.build()
        self._app = app
        self._settings = settings or load_settings()
        self._numbers = itertools.count(1)
        self._runtime = contextlib.ExitStack()
        self._ask_runtime: Callable[[Load | Predict], bytes] | None = None
        self._loaded: set[str] = set()
        self._trained: dict[str, str] = {}

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def train(
        self,
        data: str | Path | None = None,
        parameters: object = None,
        *,
        algorithm: str | None = None,
        test: str | Path | None = None,
        extend: object = None,
        dictionary: str | Path | None = None,
        extra: str | Path | None = None,
        pretrained: str | Path | None = None,
    ) -> str:
        """Trains on these files, stores the model and gives its id.

        The progress is shown on stderr. An interrupt raises KeyboardInterrupt in your `train` too.

        Raises:
            ArgumentError: a file does not exist, or a field of the request does not fit.
            TrainFailed: with the reason; the traceback was printed to stderr.
        """
        chosen = choose_algorithm(self._app, algorithm)
        files = LocalFiles.of(data, dictionary, extra, pretrained, test)
        with contextlib.closing(open_storage(self._settings)) as storage:
            request = upload(files, storage, self._settings.data_bucket, "local", parameters, extend)
            try:
                job = Job(
                    new_model_id(),
                    chosen.name,
                    data=_json(request.data),
                    parameters=_json(request.parameters),
                    extend=_json(request.extend),
                )
                check_job(chosen, job, self._settings)
                outcome = self._run(job, files.names(request.data))
            finally:
                request.remove(storage)
        if outcome.state != "completed":
            print(outcome.trace, end="", file=sys.stderr)
            raise TrainFailed(outcome.message)
        self._trained[job.model_id] = chosen.name
        return job.model_id

    def predict(
        self, features: object, params: object = None, *, model: str | None = None, algorithm: str | None = None
    ) -> Any:
        """What a service would answer, decoded.

        Args:
            model: the id of a model in the store; the one that was trained here last, if None. It is loaded when it is
                first asked.
            algorithm: whose model that is, if the app has several and it was not trained here.

        Raises:
            ArgumentError: there is no model yet, or `features` or `params` do not fit.
            MlpkitError: your `load` or `predict` failed; the traceback was printed to stderr.
        """
        model_id = model or next(reversed(self._trained), None)
        if model_id is None:
            raise ArgumentError("no model was trained here yet: call train, or name one with model=")
        if model_id not in self._loaded:
            name = choose_algorithm(self._app, algorithm or self._trained.get(model_id)).name
            self._ask(Load(next(self._numbers), name, model_id, None, b"null", None, "-"))
            self._loaded.add(model_id)
        item = Item(params=formats.to_json(params), uuid=None, log_uuid="-", features=formats.to_json(features))
        return msgspec.json.decode(self._ask(Predict(next(self._numbers), model_id, [item])))

    def close(self) -> None:
        """Unloads all models; a later `predict` loads its model again."""
        self._runtime.close()
        self._ask_runtime = None
        self._loaded.clear()

    def _run(self, job: Job, data_names: dict[str, str]) -> JobOutcome:
        from mlpkit.client.bar import ProgressBar

        def show(snapshot: Snapshot) -> None:
            bar.show("training", msgspec.to_builtins(snapshot))

        progress = Progress(show)
        with tempfile.TemporaryDirectory(prefix="mlpkit-train-") as folder, ProgressBar(job.algorithm) as bar:
            out = Path(folder, "out")
            out.mkdir()
            outcome = _in_thread(run_train, self._app, job, self._settings, out, progress, data_names)
            progress.close()
            bar.show(outcome.state, msgspec.to_builtins(progress.snapshot()))
        return outcome

    def _ask(self, request: Load | Predict) -> bytes:
        """What the model's thread answers.

        Raises:
            MlpkitError: the error of the answer.
        """
        if self._ask_runtime is None:
            self._ask_runtime = self._runtime.enter_context(runtime_here(self._app, self._settings))
        return self._ask_runtime(request)


def _json(value: object) -> str:
    return formats.to_json(value).decode()


def _in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the function returns, which must not raise.

    No event loop runs in its thread. An interrupt of this thread, which waits, raises KeyboardInterrupt there too.
    """
    results: list[T] = []
    context = contextvars.copy_context()
    ended = threading.Event()

    def run() -> None:
        results.append(context.run(function, *args, **kwargs))
        ended.set()

    thread = threading.Thread(target=run, name="mlpkit-train", daemon=True)

    def wait() -> None:
        # Not Thread.join: after an interrupt it takes the thread for ended, before Python 3.13.
        while thread.is_alive() and not ended.wait(1.0):
            pass

    try:
        thread.start()
        wait()
    except KeyboardInterrupt:
        # It is raised at the next instruction of Python: what runs in C, or waits, ends first.
        # https://docs.python.org/3/c-api/threads.html#c.PyThreadState_SetAsyncExc
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
        )
        wait()
        raise
    return results[0]
