"""`mlpkit run`: serves an app."""

from __future__ import annotations

import os

import click

from mlpkit.cli.options import target
from mlpkit.settings import load_settings


@click.command()
@target
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Address to listen on; 0.0.0.0 is every one.")
@click.option("--port", default=8000, type=click.IntRange(0, 65535), metavar="PORT", help="Port to listen on.")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Worker processes that hold models; 0 keeps them in the server, for debugging.",
)
@click.option("--reload", is_flag=True, help="Start again whenever a file beside the script changes.")
@click.option(
    "--log-level",
    metavar="LEVEL",
    show_default="MLPKIT_LOG_LEVEL, or info",
    help="trace, debug, info, warning or error.",
)
def run(target: str, host: str, port: int, workers: int | None, reload: bool, log_level: str | None) -> None:
    """Serve an app until Ctrl-C or SIGTERM.

    TARGET is the app: module:app, file.py:app, or file.py where it has one app.

    \b
    Examples:
      mlpkit run sentiment.py
      mlpkit run nlp.service:app --host 0.0.0.0 --port 9000 --workers 4
      mlpkit run sentiment:app --workers 0 --reload
    """
    if reload:
        from mlpkit.cli.reload import run_again_on_change

        run_again_on_change(target)
        return
    from mlpkit.processes import prepare
    from mlpkit.script import import_app

    if workers != 0:
        prepare(fork=True)
    settings = load_settings({**os.environ, "MLPKIT_LOG_LEVEL": log_level} if log_level else None)
    app = import_app(target)
    app.build()

    from mlpkit.service import serve

    serve(app, host=host, port=port, workers=workers, settings=settings)
