"""`mlpkit run`: serves an app.

With `--reload` this process starts the serving process again when a file changes. It stops it with SIGTERM, so that
the children end too; Ctrl-C reaches both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import click

from mlpkit.cli.options import target
from mlpkit.errors import ArgumentError
from mlpkit.settings import load_settings

_STOP_SECONDS = 40.0
_ENDINGS = (".py", ".toml", ".json", ".yaml", ".yml")


@click.command()
@target
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Address to listen on; 0.0.0.0 means all.")
@click.option("--port", default=8000, type=click.IntRange(0, 65535), metavar="PORT", help="Port to listen on.")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Worker processes that hold models; 0 keeps them in the server, for debugging.",
)
@click.option("--engine", metavar="NAME", show_default="MLPKIT_ENGINE, or local", help="Where training jobs run.")
@click.option("--reload", is_flag=True, help="Start again whenever a file in the script's folder changes.")
@click.option(
    "--log-level",
    metavar="LEVEL",
    show_default="MLPKIT_LOG_LEVEL, or info",
    help="trace, debug, info, warning or error.",
)
def run(
    target: str, host: str, port: int, workers: int | None, engine: str | None, reload: bool, log_level: str | None
) -> None:
    """Serve an app until Ctrl-C or SIGTERM.

    TARGET is the app: module:app, file.py:app, or file.py if it has one app.

    \b
    Examples:
      mlpkit run sentiment.py
      mlpkit run nlp.service:app --host 0.0.0.0 --port 9000 --workers 4
      mlpkit run sentiment:app --workers 0 --reload
    """
    if reload:
        _run_again_on_change(target)
        return
    from mlpkit.log import configure, format_here
    from mlpkit.processes import log_prints, prepare
    from mlpkit.script import import_app

    if workers != 0:
        prepare()
    chosen = {"MLPKIT_LOG_LEVEL": log_level, "MLPKIT_ENGINE": engine}
    settings = load_settings({**os.environ, **{name: value for name, value in chosen.items() if value}})
    configure(level=settings.log_level, format=format_here(settings.log_format))
    give_back_streams = log_prints("server")
    try:
        app = import_app(target)
        app.build()
    finally:
        give_back_streams()

    from mlpkit.service import serve

    serve(app, host=host, port=port, workers=workers, settings=settings)


def _run_again_on_change(target: str) -> None:
    """Serves until Ctrl-C or SIGTERM, and starts again after every change.

    The server gets the arguments of this process.
    """
    try:
        from watchfiles import watch
    except ImportError:
        raise ArgumentError("--reload needs the package watchfiles: pip install 'mlpkit[reload]'") from None

    folder = _folder(target)
    signal.signal(signal.SIGTERM, _interrupt)
    process = _start()
    try:
        for changes in watch(
            folder, watch_filter=lambda _, path: is_source(path.removeprefix(str(folder))), raise_interrupt=True
        ):
            changed = ", ".join(sorted({Path(path).name for _, path in changes}))
            print(f"{changed} changed: starting again", file=sys.stderr, flush=True)
            _stop(process)
            process = _start()
    except KeyboardInterrupt:
        pass
    finally:
        _stop(process)


def is_source(path: str) -> bool:
    """Whether a service is made from this file: code, or settings.

    The path is relative to the watched folder.
    """
    *folders, name = Path(path).parts
    if any(folder.startswith(".") or folder == "__pycache__" for folder in folders):
        return False
    return name == ".env" or (name.endswith(_ENDINGS) and not name.startswith("."))


def _folder(target: str) -> Path:
    file = Path(target.rpartition(":")[0] or target)
    return file.resolve().parent if file.suffix == ".py" and file.exists() else Path.cwd()


def _start() -> subprocess.Popen[bytes]:
    arguments = [argument for argument in sys.argv[1:] if argument != "--reload"]
    return subprocess.Popen([sys.executable, "-m", "mlpkit", *arguments])  # noqa: S603 - our own command line


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
