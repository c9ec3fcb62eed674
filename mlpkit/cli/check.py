"""`mlpkit check`: shows an algorithm's whole life as a table."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from mlpkit import start_folder
from mlpkit.cli.options import FILE, algorithm_name, as_json, check_kind, json_value, prefix, token, training_files

if TYPE_CHECKING:
    from mlpkit.check import CheckedService, CheckReport, CheckRun


@click.command()
@click.argument("target", metavar="TARGET")
@algorithm_name
@training_files
@click.option("--parameters", default="{}", metavar="JSON", help="The train request's parameter: JSON, or @FILE.")
@click.option("--features", metavar="JSON", help="Features to predict: a JSON object, a list of them, or @FILE.")
@click.option("--kind", default="text_custom", metavar="KIND", help="Kind of the algorithm, if TARGET is an address.")
@click.option(
    "--timeout",
    default=3600.0,
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="Seconds that the training may take.",
)
@click.option("--junit", type=FILE, metavar="FILE", help="Also write a JUnit XML file.")
@prefix
@token
@as_json
def check(
    target: str,
    algorithm: str | None,
    data: Path | None,
    dictionary: Path | None,
    extra: Path | None,
    pretrained: Path | None,
    parameters: str,
    features: str | None,
    kind: str,
    timeout: float,
    junit: Path | None,
    prefix: str,
    token: str | None,
    as_json: bool,
) -> None:
    """Try all that callers do with an algorithm.

    TARGET is an app (module:app, file.py), or the address of a service.

    The command serves a script itself, with an empty home and the folder store. If you name a running service (it need
    not be made with mlpkit), the MINIO_* settings of this shell must be those of its store. Exit code 0: all is well,
    1: a step failed.

    \b
    Examples:
      mlpkit check sentiment.py --data reviews.tsv
      mlpkit check http://127.0.0.1:8000 --kind text_classification --data reviews.tsv \\
          --junit check.xml
    """
    from mlpkit.check import CheckRun, to_json, write_junit
    from mlpkit.client import LocalFiles

    check_kind(kind)
    files = LocalFiles.of(data, dictionary, extra, pretrained, folder=start_folder)
    values = msgspec.json.decode(json_value(parameters, "--parameters"))
    examples = _examples(features)
    with _service(target, algorithm, kind, examples, prefix, token) as service:
        run = CheckRun(service, files, values, timeout)
        report = _run_and_show(run, quiet=as_json)
    if as_json:
        print(to_json(report))
    if junit is not None:
        write_junit(report, Path(start_folder, junit))
    sys.exit(0 if report.passed else 1)


def _examples(features: str | None) -> list[Any]:
    if features is None:
        return []
    value = msgspec.json.decode(json_value(features, "--features"))
    return value if isinstance(value, list) else [value]


def _service(
    target: str, algorithm: str | None, kind: str, examples: list[Any], prefix: str, token: str | None
) -> AbstractContextManager[CheckedService]:
    from mlpkit.check import running, started
    from mlpkit.client import Client

    if target.startswith(("http://", "https://")):
        return running(Client(target, prefix, token), algorithm, kind, examples)
    return started(target, algorithm, examples)


def _run_and_show(run: CheckRun, quiet: bool) -> CheckReport:
    from mlpkit.check import LiveTable, run_check, summary

    if quiet:
        return run_check(run)
    from rich.console import Console
    from rich.text import Text

    console = Console()
    with LiveTable(f"{run.service.algorithm} of {run.service.target}", console) as table:
        report = run_check(run, on_begin=table.begin, on_end=table.end)
    console.print(Text(summary(report), "bold green" if report.passed else "bold red"))
    return report
