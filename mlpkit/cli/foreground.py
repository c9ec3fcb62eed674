"""`mlpkit train` and `mlpkit predict`, which run in this process.

So a debugger and a profiler see the handlers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from mlpkit import start_folder
from mlpkit.cli.evaluate import show_report
from mlpkit.cli.options import (
    FILE,
    algorithm_name,
    json_value,
    placed_model,
    quiet_destructors,
    script_prints_to_stderr,
    target,
    training_files,
)
from mlpkit.errors import ArgumentError, ObjectNotFound, StorageError, TrainFailed
from mlpkit.script import choose_algorithm
from mlpkit.settings import Settings, load_settings

if TYPE_CHECKING:
    from mlpkit.algorithm import Algorithm
    from mlpkit.app import App
    from mlpkit.client import LocalFiles
    from mlpkit.client.bar import ProgressBar
    from mlpkit.training import Job, JobOutcome, Progress

_CURSOR_UP = "\x1b[A"
_INTERRUPTED = 130
"""The exit code of a command that Ctrl-C has ended; shells use the same."""


@click.command()
@target
@algorithm_name
@training_files
@click.option("--test", type=FILE, metavar="FILE", help="Test rows: data.test_location. Uploaded to the data bucket.")
@click.option("--parameters", default="{}", metavar="JSON", help="The request's parameter: JSON, or @FILE.")
@click.option("--extend", default="{}", metavar="JSON", help="The request's extend: JSON, or @FILE.")
@click.option("--model-id", metavar="ID", show_default="a new one", help="Id of the model.")
@click.option("--resume-from", metavar="ID", help="Continue from the checkpoint of this model id: extend.resume_from.")
def train(
    target: str,
    algorithm: str | None,
    data: Path | None,
    dictionary: Path | None,
    extra: Path | None,
    pretrained: Path | None,
    test: Path | None,
    parameters: str,
    extend: str,
    model_id: str | None,
    resume_from: str | None,
) -> None:
    """Train in this process, with a progress bar.

    The model is stored as the service would store it. If there are test rows, a table shows how good it is. You need no
    service. breakpoint() works, and so does python -m pdb -m mlpkit train. The place of the model is printed to stdout;
    what the script prints goes to stderr if stdout is not a terminal.

    TARGET is the app: module:app, file.py:app, or file.py if it has one app.

    \b
    Examples:
      mlpkit train sentiment.py --data reviews.tsv --parameters '{"c": 2.0}'
      mlpkit train nlp:app --algorithm ner --data names.txt --parameters @hyper.json
      mlpkit train nlp:app --data names.txt --dictionary words.txt --pretrained bert-base-zh/

    If train takes a Checkpoint, Ctrl-C lets it save one first. A second Ctrl-C ends it immediately.
    """
    import msgspec

    from mlpkit.client import LocalFiles
    from mlpkit.log import configure
    from mlpkit.script import import_app
    from mlpkit.training import Job, JobOutcome, new_model_id

    settings = load_settings()
    configure(level=settings.log_level, process="train")
    files = LocalFiles.of(data, dictionary, extra, pretrained, test, folder=start_folder)
    values = json_value(parameters, "--parameters"), _with_source(json_value(extend, "--extend"), resume_from)
    try:
        with script_prints_to_stderr():
            app = import_app(target)
            wanted = choose_algorithm(app, algorithm)
            with _uploaded(files, settings, *values) as fields:
                json_data, json_parameters, json_extend = fields
                job = Job(
                    model_id or new_model_id(),
                    wanted.name,
                    data=json_data,
                    parameters=json_parameters,
                    extend=json_extend,
                )
                _check(wanted, job, settings, files.data)
                outcome, is_saved = _run(app, job, settings, files.names(msgspec.json.decode(json_data)))
    except KeyboardInterrupt:
        outcome, is_saved = JobOutcome("error", stopped=True), False
    if outcome.state == "completed":
        print(_place(job, settings))
        return
    if is_saved:
        way = f"--model-id {job.model_id} --resume-from {job.model_id}"
        print(f"the checkpoint is kept; add this to the same command to continue: {way}", file=sys.stderr)
    if outcome.stopped:
        print("interrupted: no model was stored", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    print(outcome.trace, file=sys.stderr)
    raise TrainFailed(outcome.message)


def _with_source(extend: bytes, resume_from: str | None) -> bytes:
    import msgspec

    content = msgspec.json.decode(extend)
    if resume_from is None or not isinstance(content, dict):
        return extend
    return msgspec.json.encode({**content, "resume_from": resume_from})


def _check(algorithm: Algorithm, job: Job, settings: Settings, data: Path | None) -> None:
    from mlpkit.training import check_job

    try:
        check_job(algorithm, job, settings)
    except ArgumentError as error:
        if data is None and "location" in str(error):
            raise ArgumentError(f"{error}; give it with --data FILE") from None
        raise


@contextlib.contextmanager
def _uploaded(files: LocalFiles, settings: Settings, parameters: bytes, extend: bytes) -> Iterator[list[str]]:
    """The request's three objects as JSON, while the files are uploaded."""
    import msgspec

    from mlpkit.client import LocalFiles, upload
    from mlpkit.storage import open_storage

    if files == LocalFiles():
        yield ["{}", parameters.decode(), extend.decode()]
        return
    with contextlib.closing(open_storage(settings)) as storage:
        decoded = msgspec.json.decode(parameters), msgspec.json.decode(extend)
        request = upload(files, storage, settings.data_bucket, "foreground", *decoded)
        try:
            yield [msgspec.json.encode(value).decode() for value in (request.data, request.parameters, request.extend)]
        finally:
            request.remove(storage)


def _run(app: App, job: Job, settings: Settings, data_names: dict[str, str]) -> tuple[JobOutcome, bool]:
    """How the training ended, and whether it has left a checkpoint."""
    import msgspec

    from mlpkit.client.bar import ProgressBar
    from mlpkit.log import configure
    from mlpkit.training import JobOutcome, Progress, Snapshot, report_in, run_train, takes_checkpoint

    def show(snapshot: Snapshot) -> None:
        bar.show("training", msgspec.to_builtins(snapshot))

    progress = Progress(show)
    with (
        tempfile.TemporaryDirectory(prefix="mlpkit-train-") as folder,
        ProgressBar(job.algorithm) as bar,
        _interrupts(progress if takes_checkpoint(app.build()[job.algorithm]) else None) as interrupted,
    ):
        bar.show("training", None)
        out = Path(folder, "out")
        out.mkdir()
        with _lines_above(bar, progress) as release, _terminal_for_debugger(release):
            # Again, with the streams as they are now: log lines go above the bar.
            configure(level=settings.log_level, process="train", stream=sys.stderr)
            outcome = run_train(app, job, settings, out, progress, data_names)
        configure(level=settings.log_level, process="train")
        progress.close()
        last = progress.snapshot()
        is_saved = last.checkpoint is not None and last.checkpoint.saved is not None
        if interrupted and outcome.state == "error":
            bar.erase()
            return JobOutcome("error", stopped=True), is_saved
        bar.show(outcome.state, msgspec.to_builtins(last.completed() if outcome.state == "completed" else last))
        report = report_in(out / "evaluation.json") if "evaluation" in last.metrics else None
    if report is not None:
        show_report(report, to_stderr=True)
    return outcome, is_saved


@contextlib.contextmanager
def _interrupts(progress: Progress | None) -> Iterator[list[int]]:
    """Notes each Ctrl-C that ends the training.

    `run_train` turns the exception into a failed training, as it does with any other. With `progress`, of a training
    that keeps a checkpoint, the first Ctrl-C and a SIGTERM only ask it to stop.
    """
    noted: list[int] = []
    numbers = [signal.SIGTERM] if progress is not None else []
    # A shell lets its background jobs ignore it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        if progress is not None and progress.stop_reason is None:
            # What returns early after a Ctrl-C is the model that its user wants; after a SIGTERM it is half of one.
            progress.stop_reason = "cancel" if number == signal.SIGINT else "drain"
            words = "the training may save a checkpoint first; Ctrl-C again ends it immediately"
            # Not in the handler: the code that it has interrupted may hold a lock of the terminal.
            threading.Thread(target=print, args=(words,), kwargs={"file": sys.stderr}).start()
            return
        noted.append(number)
        quiet_destructors()
        signal.default_int_handler(number, frame)

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _interrupt_afterwards() -> Iterator[None]:
    """Holds back a Ctrl-C until the block ends.

    rich would print a line again if Ctrl-C meets it while it is printed.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        before(*held[0])


@contextlib.contextmanager
def _lines_above(bar: ProgressBar, progress: Progress) -> Iterator[Callable[[], None]]:
    """Puts printed lines above the bar, and tqdm's bars into it.

    It gives a function that ends both.
    tqdm's own lines would add a line to the terminal with each redraw, because the bar is there too.
    """
    from mlpkit.processes import LineStream
    from mlpkit.training import read_bar

    def on_line(text: str, redrawn: bool) -> None:
        if redrawn or read_bar(text) is not None:
            progress.redrawn(text)
            return
        # Before this line nested bars have moved the cursor up.
        printed = text.rpartition(_CURSOR_UP)[2]
        if printed:
            with _interrupt_afterwards():
                bar.print(printed)

    stdout = sys.stdout
    stderr = sys.stderr
    streams = LineStream(on_line, stdout), LineStream(on_line, stderr)
    sys.stdout, sys.stderr = streams

    def release() -> None:
        bar.stop()
        for name, stream, original in (("stdout", streams[0], stdout), ("stderr", streams[1], stderr)):
            if getattr(sys, name) is stream:
                setattr(sys, name, original)

    if sys.gettrace() is not None:
        release()
    try:
        yield release
    finally:
        for name, stream, original in (("stdout", streams[0], stdout), ("stderr", streams[1], stderr)):
            stream.close()
            if getattr(sys, name) is stream:
                setattr(sys, name, original)


@contextlib.contextmanager
def _terminal_for_debugger(release: Callable[[], None]) -> Iterator[None]:
    """Calls `release` when a debugger starts, which needs the whole terminal."""
    hook: Callable[..., object] = sys.breakpointhook

    def release_and_break(*args: object, **kwargs: object) -> object:
        release()
        if "PYTHONBREAKPOINT" in os.environ:
            return hook(*args, **kwargs)
        # Not the hook: it would stop in this function instead of the handler.
        import pdb

        pdb.Pdb().set_trace(sys._getframe(1))
        return None

    sys.breakpointhook = release_and_break
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
    """Load a model in this process and print its answer.

    The answer is JSON. You need no service.
    What the script prints goes to stderr if stdout is not a terminal.

    TARGET is the app: module:app, file.py:app, or file.py if it has one app.

    \b
    Examples:
      mlpkit predict sentiment:app --model MODEL_ID --features @features.json \\
          --params '{"top_n": 1}'
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
        chosen = choose_algorithm(app, algorithm)
        with placed_model(model, settings) as (model_id, model_path):
            _check_model(chosen, settings, model_id, model_path)
            answer = _predicted(app, settings, chosen.name, model_id, model_path, *asked)
    print(answer.decode())


def _check_model(algorithm: Algorithm, settings: Settings, model_id: str, model_path: str | None) -> None:
    """Checks that the store has the model, if `load` takes its files.

    Raises:
        ObjectNotFound: there is nothing at the model's place.
    """
    from mlpkit.storage import ModelDir, open_storage
    from mlpkit.training import takes

    plan = algorithm.plan("load")
    if plan is None or not takes(plan, ModelDir):
        return
    place = model_path or f"{settings.model_bucket}/{model_id}"
    with contextlib.closing(open_storage(settings)) as storage:
        try:
            found = storage.exists(place) or bool(storage.list(place + "/"))
        except ObjectNotFound:
            found = False
        except StorageError:
            # Not every key may list; loading says what is wrong.
            return
    if not found:
        store = settings.minio_host or settings.home / "storage"
        where = f"there is no such folder here, and nothing at {place} in the store {store}"
        raise ObjectNotFound(f"model {model_id!r} does not exist: {where}")


def _predicted(
    app: App, settings: Settings, algorithm: str, model_id: str, model_path: str | None, features: bytes, params: bytes
) -> bytes:
    """The answer of a model that runs in this process.

    It runs in threads, as in a worker.
    """
    from mlpkit.serving.messages import Item, Load, Predict
    from mlpkit.serving.runtime import runtime_here

    with runtime_here(app, settings, single=app.build()[algorithm].load_options.isolated) as ask:
        ask(Load(1, algorithm, model_id, model_path, b"null", None, "-"))
        return ask(Predict(2, model_id, [Item(params=params, uuid=None, log_uuid="-", features=features)]))
