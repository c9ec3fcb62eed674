"""`mlpkit check`: the whole life of an algorithm, as a table."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from mlpkit.cli.options import AlgorithmName, AsJson, Prefix, Token, check_kind, json_value

if TYPE_CHECKING:
    from mlpkit.check import CheckReport, Course, Subject


def check(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="An app (`module:app`, `file.py`), or the address of a service.")
    ],
    algorithm: AlgorithmName = None,
    data: Annotated[Path | None, typer.Option(help="Training data; it is uploaded to the data bucket.")] = None,
    parameters: Annotated[str, typer.Option(help="The train request's `parameter`: JSON, or @FILE.")] = "{}",
    features: Annotated[
        str | None,
        typer.Option(help="Features to predict: a JSON object, a list of them, or @FILE.", show_default=False),
    ] = None,
    kind: Annotated[str, typer.Option(help="Kind of the algorithm, where TARGET is an address.")] = "text_custom",
    timeout: Annotated[float, typer.Option(help="Seconds that the training may take.", min=1)] = 3600.0,
    junit: Annotated[Path | None, typer.Option(help="Also write a JUnit XML file.", show_default=False)] = None,
    prefix: Prefix = "/",
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Lead an algorithm through its whole life, as the platform will.

    A script is served by the command itself, on an empty home with the folder store. For a running service, whatever
    made it, the MINIO_* settings of this shell say where its data lies. Exit code 0: all is well, 1: a step failed.

    Examples:

        mlpkit check sentiment.py --data reviews.tsv

        mlpkit check http://127.0.0.1:8000 --kind text_classification --data reviews.tsv --junit check.xml
    """
    from mlpkit.check import Course, to_json, write_junit

    check_kind(kind)
    values = msgspec.json.decode(json_value(parameters, "--parameters"))
    examples = _listed(features)
    with _subject(target, algorithm, kind, examples, prefix, token) as subject:
        course = Course(subject, data, values, timeout)
        report = _shown(course, quiet=as_json)
    if as_json:
        print(to_json(report))
    if junit is not None:
        write_junit(report, junit)
    raise typer.Exit(0 if report.passed else 1)


def _listed(features: str | None) -> list[Any]:
    if features is None:
        return []
    value = msgspec.json.decode(json_value(features, "--features"))
    return value if isinstance(value, list) else [value]


def _subject(
    target: str, algorithm: str | None, kind: str, examples: list[Any], prefix: str, token: str | None
) -> AbstractContextManager[Subject]:
    from mlpkit.check import running, started
    from mlpkit.client import Client

    if target.startswith(("http://", "https://")):
        return running(Client(target, prefix, token), algorithm, kind, examples)
    return started(target, algorithm, examples)


def _shown(course: Course, quiet: bool) -> CheckReport:
    from mlpkit.check import run_check

    if quiet:
        return run_check(course)
    from rich.console import Console
    from rich.text import Text

    from mlpkit.check.table import LiveTable, summary

    console = Console()
    with LiveTable(f"{course.subject.algorithm} of {course.subject.target}", console) as table:
        report = run_check(course, on_begin=table.begin, on_end=table.end)
    console.print(Text(summary(report), "bold green" if report.passed else "bold red"))
    return report
