"""`mlpkit data check`: what is wrong with a file of training data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from mlpkit.cli.options import FILE, as_json, check_kind
from mlpkit.formats import KINDS

if TYPE_CHECKING:
    from rich.console import Console

    from mlpkit.formats import DataReport

_MOST_SHOWN = 50
_MOST_LABELS = 30


@click.group(no_args_is_help=True)
def data() -> None:
    """Look at training data."""


@data.command("check")
@click.argument("file", metavar="FILE", type=FILE)
@click.option("--kind", "-k", required=True, metavar="KIND", help=f"Kind of the algorithm: {', '.join(KINDS)}.")
@as_json
def check_data(file: Path, kind: str, as_json: bool) -> None:
    """Find what is wrong with training data.

    It looks for broken rows, contradictions, labels that look alike, and at the class balance of FILE, which has a
    row a line.

    Exit code 0: it can be trained on (there may be warnings), 1: it cannot.

    \b
    Example:
      mlpkit data check reviews.tsv --kind text_classification
    """
    from mlpkit.formats import check_rows

    check_kind(kind)
    report = check_rows(file, kind)
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        _show(report)
    sys.exit(1 if report.fatal else 0)


def _show(report: DataReport) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if report.findings:
        _show_findings(report, console)
    if report.labels:
        _show_labels(report, console)
    counts = f"{report.rows:,} rows, {report.errors:,} errors, {report.warnings:,} warnings"
    verdict = "cannot be trained on" if report.fatal else "can be trained on"
    console.print(Text(f"{report.name}: {counts}; it {verdict}", "bold red" if report.fatal else "bold green"))


def _show_findings(report: DataReport, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, pad_edge=False)
    for name in ("line", "column"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("", overflow="fold")
    # Errors first: they are what stops a training.
    ordered = sorted(report.findings, key=lambda each: each.severity)
    for each in ordered[:_MOST_SHOWN]:
        place = ["" if number is None else str(number) for number in (each.line, each.column)]
        style = "red" if each.severity == "error" else "yellow"
        table.add_row(*place, Text(each.severity, style), each.code, Text(each.message))
    console.print(table)
    left = report.errors + report.warnings - min(len(ordered), _MOST_SHOWN)
    if left:
        console.print(Text(f"{left:,} more; --json shows the first 1,000 of each sort\n", "dim"))


def _show_labels(report: DataReport, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    most = max(count.positive for count in report.labels.values()) or 1
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("label", overflow="fold")
    table.add_column("examples", justify="right")
    table.add_column("counter-examples", justify="right")
    table.add_column("")
    ordered = sorted(report.labels.items(), key=lambda item: -item[1].positive)
    for label, count in ordered[:_MOST_LABELS]:
        bar = "█" * max(1, round(30 * count.positive / most))
        table.add_row(Text(label), f"{count.positive:,}", f"{count.negative:,}", bar)
    console.print(table)
    if len(ordered) > _MOST_LABELS:
        console.print(Text(f"{len(ordered) - _MOST_LABELS:,} more labels", "dim"))
    console.print()
