"""`mlpkit train` and `mlpkit predict`: in this process, so that a debugger and a profiler see the handlers."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpkit import start_folder
from mlpkit.cli.options import FILE, algorithm_name, json_value, target
from mlpkit.errors import ArgumentError, TrainFailed
from mlpkit.script import choose_algorithm
from mlpkit.settings import Settings, load_settings

if TYPE_CHECKING:
    from mlpkit.algorithm import Algorithm
    from mlpkit.app import App
    from mlpkit.client.bar import ProgressBar
    from mlpkit.serving.messages import Load, Predict, Reply
    from mlpkit.training import Job, JobOutcome


@click.command()
@target
@algorithm_name
@click.option("--data", type=FILE, metavar="FILE", help="Training data; without it the request has no location.")
@click.option("--parameters", default="{}", metavar="JSON", help="The request's parameter: JSON, or @FILE.")
@click.option("--extend", default="{}", metavar="JSON", help="The request's extend: JSON, or @FILE.")
@click.option("--model-id", metavar="ID", show_default="a new one", help="Id of the model.")
def train(
    target: str, algorithm: str | None, data: Path | None, parameters: str, extend: str, model_id: str | None
) -> None:
    """Train here, in this process, with a progress bar. The model is stored as the service would store it.

    No service is needed. breakpoint() works, and so does python -m pdb -m mlpkit train. Where the model is goes to
    stdout, and what the script prints to stderr where stdout is no terminal.

    TARGET is the app: module:app, file.py:app, or file.py where it has one app.

    \b
    Examples:
      mlpkit train sentiment.py --data reviews.tsv --parameters '{"c": 2.0}'
      mlpkit train nlp:app --algorithm ner --data names.txt --parameters @hyper.json
    """
    from mlpkit.log import configure
    from mlpkit.script import import_app
    from mlpkit.training import Job, new_model_id

    settings = load_settings()
    data = Path(start_folder, data) if data else None
    parameters = json_value(parameters, "--parameters").decode()
    extend = json_value(extend, "--extend").decode()
    configure(level=settings.log_level, process="train")
    with script_prints_to_stderr():
        app = import_app(target)
        wanted = choose_algorithm(app, algorithm)
        with _uploaded(data, settings) as asked:
            job = Job(
                model_id or new_model_id(),
                wanted.name,
                data=asked,
                parameters=parameters,
                extend=extend,
            )
            _check(wanted, job, settings, data)
            outcome = _run(app, job, settings, data)
    if outcome.state == "error":
        print(outcome.trace, file=sys.stderr)
        raise TrainFailed(outcome.message)
    print(_place(job, settings))


def _check(algorithm: Algorithm, job: Job, settings: Settings, data: Path | None) -> None:
    from mlpkit.training import check_job

    try:
        check_job(algorithm, job, settings)
    except ArgumentError as error:
        if data is None and "location" in str(error):
            raise ArgumentError(f"{error}; give it with --data FILE") from None
        raise


@contextlib.contextmanager
def _uploaded(data: Path | None, settings: Settings) -> Iterator[str]:
    """The request's `data` as JSON, while its file is in the data bucket."""
    import msgspec

    from mlpkit.storage import open_storage

    if data is None:
        yield "{}"
        return
    if not data.is_file():
        raise ArgumentError(f"--data: there is no file {data}")
    location = f"foreground/{secrets.token_hex(16)}/{data.name}"
    path = f"{settings.data_bucket}/{location}"
    with contextlib.closing(open_storage(settings)) as storage:
        storage.save(data, path)
        try:
            yield msgspec.json.encode({"location": location}).decode()
        finally:
            storage.delete(path)


def _run(app: App, job: Job, settings: Settings, data: Path | None) -> JobOutcome:
    import msgspec

    from mlpkit.client.bar import ProgressBar
    from mlpkit.log import configure
    from mlpkit.training import Progress, Snapshot, run_train

    with tempfile.TemporaryDirectory(prefix="mlpkit-train-") as folder, ProgressBar(job.algorithm) as bar:
        bar.show("training", None)

        def show(snapshot: Snapshot) -> None:
            bar.show("training", msgspec.to_builtins(snapshot))

        # Again, as the bar has begun: log lines now go above it.
        configure(level=settings.log_level, process="train")
        progress = Progress(show)
        with _bar_out_of_the_way(bar):
            outcome = run_train(app, job, settings, Path(folder), progress, data_name=str(data) if data else None)
        progress.close()
        bar.show(outcome.state, msgspec.to_builtins(progress.snapshot()))
    return outcome


@contextlib.contextmanager
def _bar_out_of_the_way(bar: ProgressBar) -> Iterator[None]:
    """A debugger needs the terminal for itself: the bar ends when one starts."""
    hook: Callable[..., object] = sys.breakpointhook

    def stop_and_break(*args: object, **kwargs: object) -> object:
        bar.stop()
        if "PYTHONBREAKPOINT" in os.environ:
            return hook(*args, **kwargs)
        # Not the hook: it would stop in this function in place of the handler.
        import pdb

        pdb.Pdb().set_trace(sys._getframe(1))
        return None

    if sys.gettrace() is not None:
        bar.stop()
    sys.breakpointhook = stop_and_break
    try:
        yield
    finally:
        sys.breakpointhook = hook


def _place(job: Job, settings: Settings) -> str:
    from mlpkit.storage import folder_of
    from mlpkit.training import destination

    prefix = destination(job, settings)
    folder = folder_of(settings)
    return prefix if folder is None else str(folder / prefix)


@click.command()
@target
@click.option(
    "--model", required=True, metavar="MODEL", help="A model's folder, its id in the model bucket, or bucket/prefix."
)
@click.option("--features", required=True, metavar="JSON", help="The request's features: JSON, or @FILE.")
@click.option("--params", default="null", metavar="JSON", help="The request's params: JSON, or @FILE.")
@algorithm_name
def predict(target: str, model: str, features: str, params: str, algorithm: str | None) -> None:
    """Load a model in this process and print its answer as JSON. No service is needed.

    What the script prints goes to stderr where stdout is no terminal.

    TARGET is the app: module:app, file.py:app, or file.py where it has one app.

    \b
    Examples:
      mlpkit predict sentiment:app --model MODEL_ID --features @features.json --params '{"top_n": 1}'
      mlpkit predict sentiment.py --model .mlpkit/storage/ml-platform-model/MODEL_ID \\
          --features '{"sentence": "good"}'
    """
    from mlpkit.log import configure
    from mlpkit.script import import_app

    settings = load_settings()
    asked = json_value(features, "--features"), json_value(params, "--params")
    configure(level=settings.log_level, process="predict")
    with script_prints_to_stderr():
        app = import_app(target)
        name = choose_algorithm(app, algorithm).name
        with _placed(model, settings) as (model_id, model_path):
            answer = _predicted(app, settings, name, model_id, model_path, *asked)
    print(answer.decode())


@contextlib.contextmanager
def _placed(model: str, settings: Settings) -> Iterator[tuple[str, str | None]]:
    """The id and the path by which the store knows a model; a folder from elsewhere is in the store for that long."""
    from mlpkit.storage import folder_of, open_storage

    folder, store = Path(start_folder, model), folder_of(settings)
    if not folder.exists():
        yield (model, None) if "/" not in model else (model.rstrip("/").rpartition("/")[2], model)
    elif not folder.is_dir():
        raise ArgumentError(f"--model: {model} is a file; the folder of a model is needed")
    elif store is not None and folder.is_relative_to(store):
        yield folder.name, folder.relative_to(store).as_posix()
    else:
        path = f"{settings.model_bucket}/foreground/{secrets.token_hex(16)}"
        with contextlib.closing(open_storage(settings)) as storage:
            storage.save_dir(folder, path)
            try:
                yield folder.name, path
            finally:
                storage.delete(path + "/", recursive=True)


def _predicted(
    app: App, settings: Settings, algorithm: str, model_id: str, model_path: str | None, features: bytes, params: bytes
) -> bytes:
    """The answer of a model that lives in this process, in threads as in a worker."""
    from queue import SimpleQueue

    from mlpkit.serving.messages import Item, Load, Predict
    from mlpkit.serving.runtime import WorkerRuntime

    replies: SimpleQueue[Reply] = SimpleQueue()
    isolated = app.build()[algorithm].load_options.isolated
    runtime = WorkerRuntime(app, settings, replies.put, single=isolated)

    def result(request: Load | Predict) -> bytes:
        runtime.take(request)
        found = replies.get().results[0]
        if isinstance(found, bytes):
            return found
        # The runtime has logged its traceback.
        raise found.to_error()

    runtime.start()
    try:
        result(Load(1, algorithm, model_id, model_path, b"null", None, "-"))
        return result(Predict(2, model_id, [Item(params=params, uuid=None, log_uuid="-", features=features)]))
    finally:
        runtime.stop()


@contextlib.contextmanager
def script_prints_to_stderr() -> Iterator[None]:
    """Sends what the script prints to stderr, where stdout is a file or a pipe; a terminal shows both anyway."""
    if os.isatty(1):
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    # The descriptor itself: C code and grandchildren write there too.
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
