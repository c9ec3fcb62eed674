"""`mlpkit run`: serves an app."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mlpkit.cli.options import Target
from mlpkit.settings import load_settings


def run(
    target: Target,
    host: Annotated[str, typer.Option(help="Address to listen on; `0.0.0.0` is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    workers: Annotated[
        int | None,
        typer.Option(help="Worker processes that hold models; 0 keeps them in the server, for debugging.", min=0),
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start again whenever a file beside the script changes.")
    ] = False,
    log_level: Annotated[
        str | None, typer.Option(help="trace, debug, info, warning or error.", show_default="MLPKIT_LOG_LEVEL, or info")
    ] = None,
) -> None:
    """Serve an app until Ctrl-C or SIGTERM.

    Examples:

        mlpkit run sentiment.py

        mlpkit run nlp.service:app --host 0.0.0.0 --port 9000 --workers 4

        mlpkit run sentiment:app --workers 0 --reload
    """
    if reload:
        from mlpkit.cli.reload import run_again_on_change

        run_again_on_change(target)
        return
    from mlpkit.process import prepare
    from mlpkit.script import import_app

    if workers != 0:
        prepare()
    settings = load_settings({**os.environ, "MLPKIT_LOG_LEVEL": log_level} if log_level else None)
    app = import_app(target)
    app.build()

    from mlpkit.service import serve

    serve(app, host=host, port=port, workers=workers, settings=settings)
