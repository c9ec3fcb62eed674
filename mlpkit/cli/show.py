"""The report of an evaluation for people, in at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console

    from mlpkit.formats import EvaluationReport

_MOST_LABELS = 30


def show_report(report: EvaluationReport, *, to_stderr: bool = False) -> None:
    """Prints the report for people, in at most 80 columns."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=to_stderr)
    console = console if console.is_terminal else Console(stderr=to_stderr, width=80)
    title = f"{report.model_id}: {report.rows:,} test rows from {report.source}"
    console.print(Text(title, "bold"), soft_wrap=True)
    if report.error:
        console.print(Text(f"not evaluated: {report.error}", "red"))
        return
    _show_labels(report, console)
    for line in _lines(report):
        console.print(Text(line))
    if report.errors:
        _show_errors(report, console)


def _show_labels(report: EvaluationReport, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    if not report.labels:
        return
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("", overflow="fold", max_width=36)
    for name in ("precision", "recall", "F1", "rows"):
        table.add_column(name, justify="right", no_wrap=True)
    ordered = sorted(report.labels.items(), key=lambda item: item[1].f1)
    rows: list[tuple[str, Any]] = ordered[:_MOST_LABELS]
    for label, figures in rows:
        table.add_row(Text(label), *_percents(figures), f"{figures.support or 0:,}")
    table.add_section()
    for name in ("micro", "macro", "weighted"):
        table.add_row(Text(f"{name} average"), *_percents(getattr(report, name)), "")
    console.print(table)
    if len(ordered) > _MOST_LABELS:
        console.print(Text(f"{len(ordered) - _MOST_LABELS:,} more labels, which are better; --json has all", "dim"))


def _percents(figures: Any) -> list[str]:
    return [f"{value:.4f}" for value in (figures.precision, figures.recall, figures.f1)]


def _lines(report: EvaluationReport) -> Iterator[str]:
    """Sentences about the other figures."""
    for name in ("accuracy", "exact_match", "chrf", "purity", "adjusted_rand"):
        value = getattr(report, name)
        if value is not None:
            yield f"{name.replace('_', ' ')}: {value:.4f}"
    for name, value in report.metrics.items():
        yield f"{name}: {value:.4g}"
    if report.spans is not None:
        counts = msgspec.to_builtins(report.spans)
        yield "entities: " + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
    if report.confusions:
        yield "most confused: " + "; ".join(
            f"{pair.wanted or 'nothing'} as {pair.got or 'nothing'} ({pair.count})" for pair in report.confusions[:5]
        )
    if report.thresholds:
        chosen = [item for item in report.thresholds if item.threshold in (50, 70, 90)]
        yield "answers by score: " + "; ".join(
            f"{item.answered:,} of at least {item.threshold}, {item.right:,} right" for item in chosen
        )
    if report.milliseconds:
        yield "milliseconds a row: " + ", ".join(f"{name} {value:g}" for name, value in report.milliseconds.items())
    if report.failed.rows:
        yield f"{report.failed.rows:,} rows failed, the first in line {report.failed.line}: {report.failed.message}"
    if report.in_both:
        yield f"{report.in_both:,} test sentences are in the training data too: the figures look better than they are"
    if report.unknown_labels:
        names = ", ".join(f"{label} ({count})" for label, count in list(report.unknown_labels.items())[:5])
        yield f"{len(report.unknown_labels):,} labels are in no training row: {names}"
    if report.gate is not None:
        verdict = "reached" if report.gate.passed else "not reached"
        yield f"min_f1={report.gate.min_f1:g} is {verdict}"


def _show_errors(report: EvaluationReport, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(Text(f"\nThe most confident errors. {report.advice}", "dim"))
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("line", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    for name in ("wanted", "got", "sentence"):
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=30 if name == "sentence" else 18)
    for error in report.errors[:5]:
        score = "" if error.score is None else f"{error.score:.1f}"
        texts = [Text(text or "-") for text in (error.wanted, error.got, error.sentence)]
        table.add_row(str(error.line), score, *texts)
    console.print(table)
