"""`mlpkit predict`: load a model and predict in this process, so that a debugger and a profiler see it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpkit.cli.options import algorithm_name, json_value, target
from mlpkit.cli.stdout import script_prints_to_stderr
from mlpkit.errors import ArgumentError
from mlpkit.script import choose_algorithm
from mlpkit.settings import Settings, load_settings

if TYPE_CHECKING:
    from mlpkit.app import App
    from mlpkit.serving.messages import Answer, Load, Predict


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
    import asyncio

    from mlpkit.log import configure
    from mlpkit.script import import_app

    settings = load_settings()
    asked = json_value(features, "--features"), json_value(params, "--params")
    configure(level=settings.log_level, process="predict")
    with script_prints_to_stderr():
        app = import_app(target)
        name = choose_algorithm(app, algorithm).name
        with _placed(model, settings) as (model_id, model_path):
            answer = asyncio.run(_predicted(app, settings, name, model_id, model_path, *asked))
    print(answer.decode())


@contextlib.contextmanager
def _placed(model: str, settings: Settings) -> Iterator[tuple[str, str | None]]:
    """The id and the path by which the store knows a model; a folder from elsewhere is in the store for that long."""
    from mlpkit.storage import open_storage

    folder, store = Path(model).absolute(), (settings.home / "storage").absolute()
    if not folder.exists():
        yield (model, None) if "/" not in model else (model.rstrip("/").rpartition("/")[2], model)
    elif not folder.is_dir():
        raise ArgumentError(f"--model: {model} is a file; the folder of a model is needed")
    elif not settings.minio_host and folder.is_relative_to(store):
        yield folder.name, folder.relative_to(store).as_posix()
    else:
        path = f"{settings.model_bucket}/foreground/{secrets.token_hex(16)}"
        with contextlib.closing(open_storage(settings)) as storage:
            storage.save_dir(folder, path)
            try:
                yield folder.name, path
            finally:
                storage.delete(path + "/", recursive=True)


async def _predicted(
    app: App, settings: Settings, algorithm: str, model_id: str, model_path: str | None, features: bytes, params: bytes
) -> bytes:
    import asyncio

    from mlpkit.serving.host import Host
    from mlpkit.serving.messages import Item, Load, Predict

    waiting: asyncio.Queue[Answer] = asyncio.Queue()
    host = Host(app, settings, waiting.put_nowait)

    async def result(request: Load | Predict) -> bytes:
        host.take(request)
        found = (await waiting.get()).results[0]
        if isinstance(found, bytes):
            return found
        # The host has logged its traceback.
        raise found.to_error()

    await host.start()
    try:
        await result(Load(1, algorithm, model_id, model_path, b"null", None, "-"))
        return await result(Predict(2, model_id, [Item(params=params, uuid=None, log_uuid="-", features=features)]))
    finally:
        await host.stop()
