"""The commands for the jobs, models and aliases of a running service."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING

import click
import msgspec

from mlpkit.cli.options import as_json, of_service

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlpkit.client import Client, JobEvent, JobView, ModelView

_PAGE = 500
"""Models of one request, at most as many as the service gives."""
_INTERRUPTED = 130
"""The exit code of a command that Ctrl-C has ended; shells use the same."""

_model_id = click.argument("model_id", metavar="ID")


@click.command()
@of_service
@as_json
def jobs(client: Client, as_json: bool) -> None:
    """List the training jobs of a running service, newest first.

    \b
    Example:
      mlpkit jobs --url http://127.0.0.1:8000
    """
    found = client.jobs()
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    columns = ["model", "algorithm", "state", "submitted", "took", "progress"]
    rows = [
        [job.model_id, job.algorithm, job.state, _moment(job.created), _duration(job), _progress(job)] for job in found
    ]
    _print_table("jobs", columns, rows, [job.message or "" for job in found])


@click.command()
@_model_id
@of_service
@as_json
def status(model_id: str, client: Client, as_json: bool) -> None:
    """Show one training job of a running service.

    ID is the id of the model that the job makes.

    \b
    Example:
      mlpkit status 0f8e2c_20261122143000
    """
    job = client.job_view(model_id)
    if as_json:
        print(msgspec.json.encode(job).decode())
        return
    _print_job(job)


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Print new lines too, until the job ends.")
@_model_id
@of_service
def logs(follow: bool, model_id: str, client: Client) -> None:
    """Print the log of a training job.

    ID is the id of the model that the job makes. With -f, new states of the job are printed on stderr, and the exit
    code is 1 if the job fails. A connection that breaks is made again. Ctrl-C ends the command, not the job.

    \b
    Example:
      mlpkit logs -f 0f8e2c_20261122143000
    """
    if not follow:
        _print_log(client.log(model_id))
        return
    try:
        _follow(client, model_id)
    except KeyboardInterrupt:
        print("interrupted: the job continues", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _follow(client: Client, model_id: str) -> None:
    """Prints the log of a job until it ends.

    Raises:
        TrainFailed: the job has failed.
    """
    from mlpkit.client import JobEvent, LogEvent, ResetEvent
    from mlpkit.errors import TrainFailed

    job: JobEvent | None = None
    # A job may wait and run for days. The client gives up a service that is silent or away.
    for event in client.events(model_id, timeout=math.inf):
        if isinstance(event, LogEvent):
            _print_log(event.text)
        elif isinstance(event, JobEvent):
            if job is None or (event.state, event.attempt) != (job.state, job.attempt):
                print(_state(event), file=sys.stderr, flush=True)
            job = event
        elif isinstance(event, ResetEvent):
            print(f"the log begins again: {event.reason}", file=sys.stderr, flush=True)
    if job is not None and job.state == "error":
        raise TrainFailed(job.message or f"job {model_id} ended with error; the service gives no reason")


def _state(job: JobEvent) -> str:
    attempt = f", attempt {job.attempt}" if job.state == "training" and job.attempt > 1 else ""
    return f"{job.algorithm} {job.model_id}: {job.state}{attempt}"


def _print_log(text: str) -> None:
    """Prints a part of a log.

    A terminal gets its colours, but no other codes.
    """
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    from rich.console import Console
    from rich.text import Text

    # Newer versions of rich keep the line feed at the end, older ones drop it.
    end = "\n" if text.endswith("\n") else ""
    Console().print(Text.from_ansi(text.removesuffix("\n")), soft_wrap=True, end=end)


@click.command()
@_model_id
@of_service
def stack(model_id: str, client: Client) -> None:
    """Print where each thread of a running job is now.

    ID is the id of the model that the job makes. The job is not disturbed. It answers also if it is stuck.

    \b
    Example:
      mlpkit stack 0f8e2c_20261122143000
    """
    print(client.stack(model_id).rstrip("\n"))


@click.command()
@click.option("--soft", is_flag=True, help="Only ask it to end: it may save a checkpoint, or make a model.")
@_model_id
@of_service
@as_json
def cancel(soft: bool, model_id: str, client: Client, as_json: bool) -> None:
    """End a training job, waiting or running.

    ID is the id of the model that the job makes.

    \b
    Example:
      mlpkit cancel 0f8e2c_20261122143000
      mlpkit cancel --soft 0f8e2c_20261122143000
    """
    before = client.job_view(model_id)
    client.cancel(before.algorithm, model_id, soft=soft)
    after = client.job_view(model_id)
    if as_json:
        print(msgspec.json.encode(after).decode())
    elif before.ended is not None:
        print(f"{model_id} had ended before: {before.state}")
    elif after.ended is None:
        print(f"{model_id} was asked to end: {after.state}")
    else:
        print(f"{model_id} has ended: {after.message or after.state}")


@click.command()
@click.option("--algorithm", "-a", metavar="NAME", help="Its algorithm, if the service does not know the model.")
@_model_id
@of_service
def load(algorithm: str | None, model_id: str, client: Client) -> None:
    """Load a model, so that it answers predictions.

    ID is the id of the model. The service finds its algorithm among its jobs and the models in its store.

    \b
    Example:
      mlpkit load 0f8e2c_20261122143000
    """
    client.load(algorithm or _algorithm_of(client, model_id), model_id)
    print(f"{model_id} is loaded")


def _algorithm_of(client: Client, model_id: str) -> str:
    """The algorithm that has made a model.

    Raises:
        ArgumentError: the service does not know the model.
    """
    from mlpkit.errors import ArgumentError, JobNotFound

    try:
        return client.job_view(model_id).algorithm
    except JobNotFound:
        pass
    after = None
    while True:
        page = client.stored_models(limit=_PAGE, after=after)
        for model in page.models:
            if model.model_id == model_id:
                return model.algorithm
        if page.next is None:
            break
        after = page.next
    raise ArgumentError(f"no job and no stored model has the id {model_id!r}; if it is right, give --algorithm too")


@click.command()
@_model_id
@of_service
def unload(model_id: str, client: Client) -> None:
    """Unload a model, when its predictions have been answered.

    ID is the id of the model.

    \b
    Example:
      mlpkit unload 0f8e2c_20261122143000
    """
    from mlpkit.errors import ModelNotLoaded

    algorithm = next((model.algorithm for model in client.models() if model.model_id == model_id), None)
    if algorithm is None:
        raise ModelNotLoaded(model_id)
    client.unload(algorithm, model_id)
    print(f"{model_id} is unloaded")


@click.command()
@click.option("--stored", is_flag=True, help="List the models in the store, newest first.")
@click.option("--algorithm", "-a", metavar="NAME", help="With --stored: only the models of this algorithm.")
@click.option("--limit", type=click.IntRange(1), default=50, metavar="N", help="With --stored: how many at most.")
@of_service
@as_json
def models(stored: bool, algorithm: str | None, limit: int, client: Client, as_json: bool) -> None:
    """List the models of a running service, and their workers.

    \b
    Example:
      mlpkit models --url http://127.0.0.1:8000
      mlpkit models --stored --algorithm sentiment --limit 20
    """
    if stored:
        _print_stored(client, algorithm, limit, as_json)
        return
    found = client.models()
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    columns = ["model", "algorithm", "state", "since", "workers", "answers"]
    rows = [
        [
            model.model_id,
            model.algorithm,
            model.state,
            _moment(model.since),
            _workers(model),
            str(model.predictions),
        ]
        for model in found
    ]
    _print_table("models", columns, rows, [model.problem for model in found])


def _workers(model: ModelView) -> str:
    """The workers of a model, and their nodes on a cluster."""
    if not model.nodes:
        return ", ".join(map(str, model.workers))
    pairs = zip(model.workers, model.nodes, strict=False)
    return ", ".join(f"{worker} on {node}" if node else str(worker) for worker, node in pairs)


def _print_stored(client: Client, algorithm: str | None, limit: int, as_json: bool) -> None:
    """Prints the newest models in the store."""
    page = client.stored_models(algorithm, limit=min(limit, _PAGE))
    found = list(page.models)
    while page.next is not None and len(found) < limit:
        page = client.stored_models(algorithm, limit=min(limit - len(found), _PAGE), after=page.next)
        found += page.models
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    columns = ["model", "algorithm", "created", "size", "state", "aliases", "evaluation"]
    rows = [
        [
            model.model_id,
            model.algorithm,
            _moment(model.created),
            _size(model.size),
            "" if model.state == "unloaded" else model.state,
            ", ".join(model.aliases),
            _evaluated(model.evaluation),
        ]
        for model in found
    ]
    gates = [f"is below its gate: {model.below_gate}" if model.below_gate else "" for model in found]
    _print_table("stored models", columns, rows, gates)
    if page.total > len(found):
        print(f"\n{len(found)} of {page.total} models: --limit shows more")
    if page.unread:
        print(f"\n{page.unread} more folders are still being read: ask again")


def _evaluated(evaluation: Mapping[str, object]) -> str:
    """The two most important figures of an evaluation, which come first."""
    figures = [f"{name} {value:.4g}" for name, value in evaluation.items() if isinstance(value, float)]
    return ", ".join(figures[:2])


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size} B"
        size /= 1024
    return f"{size:.3g} GiB"


@click.command()
@click.argument("name", required=False)
@click.argument("model_id", required=False)
@click.option("--remove", is_flag=True, help="Remove the alias.")
@of_service
@as_json
def alias(name: str | None, model_id: str | None, remove: bool, client: Client, as_json: bool) -> None:
    """List the aliases of a running service, or move one.

    NAME is ALGORITHM@ALIAS, such as sentiment@current; predictions take it as their model id. MODEL_ID is the model
    that it leads to from now on. Without both, all aliases are listed.

    \b
    Example:
      mlpkit alias
      mlpkit alias sentiment@current 0f8e2c_20261122143000
      mlpkit alias sentiment@current --remove
    """
    if name is not None and remove == (model_id is not None):
        raise click.UsageError("give NAME and MODEL_ID to move an alias, or NAME and --remove to remove it")
    if name is None and remove:
        raise click.UsageError("--remove needs the NAME of an alias")
    if name is not None:
        algorithm, at, short = name.rpartition("@")
        if not at:
            raise click.UsageError(f"{name!r} is not the name of an alias: it is ALGORITHM@ALIAS")
        if model_id is None:
            client.unalias(algorithm, short)
            return
        found = [client.alias(algorithm, short, model_id)]
    else:
        found = client.aliases()
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    columns = ["alias", "model", "state", "since", "before"]
    rows = [[alias.name, alias.model_id, alias.state, _moment(alias.since), alias.previous or ""] for alias in found]
    _print_table("aliases", columns, rows, [""] * len(rows))


def _print_table(title: str, columns: list[str], rows: list[list[str]], sentences: list[str]) -> None:
    """Prints one line for each row, then its sentence, if any.

    A row takes two lines if the terminal is too narrow. No word is broken. In a pipe the lines are as long as they need
    to be, so that `grep` and `awk` find whole ids.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console()
    if not rows:
        console.print(f"no {title}")
        return
    filled = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    # A Chinese character takes two cells of a terminal.
    widths = {index: max(cell_len(row[index]) for row in (columns, *rows)) for index in filled}
    lines = [
        "  ".join(row[index] + " " * (widths[index] - cell_len(row[index])) for index in filled).rstrip()
        for row in (columns, *rows)
    ]
    if not console.is_terminal or max(map(cell_len, lines)) <= console.width:
        for line in lines:
            console.print(Text(line), soft_wrap=True)
    else:
        for row in rows:
            console.print(Text(row[0], "bold"), soft_wrap=True)
            details = "  ".join(row[index] for index in filled[1:] if row[index])
            console.print(Padding(Text(details), (0, 0, 0, 2), expand=False))
    for row, sentence in zip(rows, sentences, strict=True):
        if sentence:
            console.print(Text(f"\n{row[0]}: {sentence}"), soft_wrap=True)


def _print_job(job: JobView) -> None:
    """Prints one line for each fact, then the sentence, if any."""
    from rich.console import Console
    from rich.text import Text

    facts = {
        "model": job.model_id,
        "algorithm": job.algorithm,
        "state": job.state + (f", attempt {job.attempt}" if job.attempt > 1 else ""),
        "progress": _progress(job),
        "expected": f"to start at {_moment(job.estimated_start)}" if job.estimated_start is not None else "",
        "submitted": _moment(job.created),
        "started": _moment(job.started),
        "ended": _moment(job.ended),
        "took": _duration(job),
        "reported": f"{time.time() - job.reported:.1f} s ago" if job.reported and job.ended is None else "",
        "process": str(job.pid or ""),
        "memory": _size(job.memory) if job.memory else "",
    }
    console = Console()
    for name, fact in facts.items():
        if fact:
            console.print(Text(f"{name:<9}  {fact}"), soft_wrap=True)
    if job.message:
        console.print(Text(f"\n{job.message}"), soft_wrap=True)


def _moment(seconds: float | None) -> str:
    """The local time, with the date if it is another day."""
    if seconds is None:
        return ""
    moment = time.localtime(seconds)
    today = time.localtime()
    return time.strftime("%H:%M:%S" if moment[:3] == today[:3] else "%Y-%m-%d %H:%M", moment)


def _progress(job: JobView) -> str:
    from mlpkit.client.bar import described

    if job.queue_position is not None:
        return f"waiting, number {job.queue_position}"
    return described("", job.progress or {})


def _duration(job: JobView) -> str:
    if job.started is None:
        return ""
    return f"{(job.ended or time.time()) - job.started:.1f} s"
