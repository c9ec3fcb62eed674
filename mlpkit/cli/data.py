"""`mlpkit data`: checks and converts files of training data."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from mlpkit.cli.options import FILE, algorithm_name, as_json, check_kind, script_prints_to_stderr
from mlpkit.errors import ArgumentError
from mlpkit.formats import KINDS

if TYPE_CHECKING:
    from rich.console import Console

    from mlpkit.formats import DataReport

_MOST_SHOWN = 50
_MOST_OF_A_CODE = 10
_MOST_LABELS = 30


@click.group(no_args_is_help=True)
def data() -> None:
    """Check and convert training data."""


@data.command("check")
@click.argument("file", metavar="FILE", type=FILE)
@click.option("--kind", "-k", metavar="KIND", help=f"Kind of the algorithm: {', '.join(KINDS)}.")
@click.option("--test", type=FILE, metavar="FILE", help="Test rows: checked too, and compared with FILE.")
@click.option("--app", metavar="TARGET", help="Your app: its algorithm has a kind, or it registers one of your own.")
@algorithm_name
@as_json
def check_data(
    file: Path, kind: str | None, test: Path | None, app: str | None, algorithm: str | None, as_json: bool
) -> None:
    """Find what is wrong with training data.

    FILE has a row a line. The command looks for broken rows, files in another format or encoding, contradictions and
    labels that look alike, and shows the class balance.

    Exit code 0: you can train on it (there may be warnings), 1: you cannot.

    \b
    Examples:
      mlpkit data check reviews.tsv --kind text_classification
      mlpkit data check reviews.tsv --app sentiment.py
      mlpkit data check reviews.tsv --kind text_classification --test test.tsv
    """
    from mlpkit.formats import check_rows, check_test_rows

    known_kind = _kind(kind, app, algorithm)
    report = check_rows(file, known_kind)
    tested = check_test_rows(test, known_kind, file) if test is not None else None
    if as_json:
        more = {} if tested is None else {"test": tested}
        print(msgspec.json.encode({**msgspec.to_builtins(report), **more}).decode())
    else:
        _show(report)
        if tested is not None:
            _show(tested)
    sys.exit(1 if report.fatal or (tested is not None and tested.fatal) else 0)


def _kind(kind: str | None, app: str | None, algorithm: str | None) -> str:
    """The kind that was named, or that of the app's algorithm."""
    if app is not None:
        from mlpkit.script import choose_algorithm, import_app

        with script_prints_to_stderr():
            imported = import_app(app)
        kind = kind or choose_algorithm(imported, algorithm).kind
    if kind is None:
        raise ArgumentError("the kind is needed: give --kind KIND, or --app TARGET")
    check_kind(kind)
    return kind


@data.command("convert")
@click.argument("source", metavar="SOURCE", type=FILE)
@click.argument("target", metavar="TARGET", type=FILE)
@click.option("--from", "read_as", metavar="FORMAT", help="Format of SOURCE; recognised if not given.")
@click.option("--to", "write_as", default="markup", metavar="FORMAT", help="Format of TARGET.")
@click.option("--repair", is_flag=True, help="Repair tags that cannot follow each other, overlaps and line breaks.")
def convert_data(source: Path, target: Path, read_as: str | None, write_as: str, repair: bool) -> None:
    """Convert labelled sentences from or to another format.

    Reads SOURCE and writes TARGET, which appears whole or not at all.

    The formats: markup (the platform's <START:PER>...<END>); bio, bioes, bilou and bmes (a token and its tag a line);
    conll (the same with more columns); doccano (JSON lines). Chinese characters are tokens of their own, and words
    elsewhere.

    \b
    Example:
      mlpkit data convert train.conll train.txt
      mlpkit data convert train.txt train.bio --from markup --to bio
    """
    from mlpkit.formats import convert_file

    done = convert_file(source, target, read_as or "", write_as, repair=repair)
    repaired = f", {_count(done.repaired, 'sentence')} repaired" if done.repaired else ""
    entities = f"{done.entities:,} {'entity' if done.entities == 1 else 'entities'}"
    print(f"{target}: {_count(done.sentences, 'sentence')}, {entities}{repaired}")


def _show(report: DataReport) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if report.findings:
        _show_findings(report, console)
    if report.labels:
        _show_labels(report, console)
    counts = f"{_count(report.rows, 'row')}, {_count(report.errors, 'error')}, {_count(report.warnings, 'warning')}"
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
    found = report.samples(_MOST_OF_A_CODE)[:_MOST_SHOWN]
    for finding in found:
        place = ["" if number is None else str(number) for number in (finding.line, finding.column)]
        style = "red" if finding.severity == "error" else "yellow"
        table.add_row(*place, Text(finding.severity, style), finding.code, Text(finding.message))
    console.print(table)
    shown = Counter(finding.code for finding in found)
    more = ", ".join(f"{count - shown[code]:,} {code}" for code, count in report.codes.items() if count > shown[code])
    if more:
        console.print(Text(f"more: {more}; --json shows the first 1,000 of each\n", "dim"))


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


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'s' * (number != 1)}"
