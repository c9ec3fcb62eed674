"""`mlpkit jobs` and `mlpkit models`: what a running service does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
import msgspec

from mlpkit.cli.options import as_json, prefix, token, url

if TYPE_CHECKING:
    from mlpkit.client import JobView


@click.command()
@url
@prefix
@token
@as_json
def jobs(url: str, prefix: str, token: str | None, as_json: bool) -> None:
    """List the training jobs of a running service, newest first.

    \b
    Example:
      mlpkit jobs --url http://127.0.0.1:8000
    """
    from mlpkit.client import Client

    with Client(url, prefix, token) as client:
        found = client.jobs()
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    rows = [
        [each.model_id, each.algorithm, each.state, _progress(each), _duration(each), each.message or ""]
        for each in found
    ]
    _print_table("jobs", ["model", "algorithm", "state", "progress", "seconds", "message"], rows)


@click.command()
@url
@prefix
@token
@as_json
def models(url: str, prefix: str, token: str | None, as_json: bool) -> None:
    """List the models of a running service, and their workers.

    \b
    Example:
      mlpkit models --url http://127.0.0.1:8000
    """
    from mlpkit.client import Client

    with Client(url, prefix, token) as client:
        found = client.models()
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    rows = [
        [
            each.model_id,
            each.algorithm,
            each.state,
            ", ".join(map(str, each.workers)),
            str(each.predictions),
            each.problem,
        ]
        for each in found
    ]
    _print_table("models", ["model", "algorithm", "state", "workers", "answers", "problem"], rows)


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table of the columns in which anything stands; the last one's texts are sentences, and go below it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    *names, _ = columns
    filled = [index for index in range(len(names)) if not rows or any(row[index] for row in rows)]
    table = Table(title=None if rows else f"no {title}", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for index in filled:
        # Ids are there to be copied.
        table.add_column(names[index], overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(Text(row[index]) for index in filled))
    console = Console()
    console.print(table)
    for row in rows:
        if row[-1]:
            console.print(Text(f"\n{row[0]}: {row[-1]}"), soft_wrap=True)


def _progress(job: JobView) -> str:
    from mlpkit.client.bar import described

    if job.queue_position is not None:
        return f"waits, number {job.queue_position}"
    return described("", job.progress or {})


def _duration(job: JobView) -> str:
    if job.started is None:
        return ""
    return f"{(job.ended or time.time()) - job.started:.1f}"
