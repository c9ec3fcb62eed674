"""`mlpkit evaluate` and `mlpkit compare`: how good stored models are."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from mlpkit.cli.options import FILE, algorithm_name, as_json, placed_model, script_prints_to_stderr, target
from mlpkit.errors import ArgumentError, EvaluationFailed
from mlpkit.script import choose_algorithm
from mlpkit.settings import Settings, load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from mlpkit.algorithm import Algorithm
    from mlpkit.app import App
    from mlpkit.formats import EvaluationReport
    from mlpkit.training import ModelUnderTest

_MOST_DIFFERENT = 20
_MOST_LABELS = 30
_FEW = 25
"""With fewer different rows, McNemar's test is computed exactly."""

test_rows = click.option("--data", type=FILE, required=True, metavar="FILE", help="The test rows.")


class _DifferentRow(msgspec.Struct, frozen=True):
    """A row that only one of two models answers right."""

    line: int
    row: dict[str, Any]
    right: int


class _ComparedModels(msgspec.Struct, frozen=True):
    """Two models on the same rows.

    `first_only` and `second_only` count the rows that only this model answers right. `p` is the probability of such a
    difference, or a larger one, between models that are equally good: McNemar, Psychometrika 1947.
    """

    reports: tuple[Any, Any]
    first_only: int
    second_only: int
    p: float | None
    different: list[_DifferentRow]


@click.command()
@target
@click.option("--model", required=True, metavar="MODEL", help="A model's folder, its id, or bucket/prefix.")
@test_rows
@algorithm_name
@as_json
def evaluate(target: str, model: str, data: Path, algorithm: str | None, as_json: bool) -> None:
    """Show how good a stored model is on test rows.

    The rows have the format of the training data. You need no service, and nothing is stored.

    TARGET is the app: module:app, file.py:app, or file.py if it has one app.

    \b
    Example:
      mlpkit evaluate sentiment.py --model MODEL_ID --data test.tsv
    """
    from mlpkit.training import Evaluation

    settings, app, chosen = _prepare(target, algorithm, data)
    with script_prints_to_stderr(), _opened(app, chosen, settings, model) as (name, opened):
        evaluation = Evaluation(opened)
        metrics = evaluation.run(_rows(chosen, data))
        report = evaluation.report(**_known(name, chosen, data), metrics=metrics)
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        show_report(report)
    if report.error:
        raise EvaluationFailed(report.error)


@click.command()
@target
@click.argument("first", metavar="MODEL")
@click.argument("second", metavar="MODEL")
@test_rows
@algorithm_name
@as_json
def compare(target: str, first: str, second: str, data: Path, algorithm: str | None, as_json: bool) -> None:
    """Compare two stored models on the same test rows.

    Shows both results, the rows on which they differ, and whether the difference may be chance (McNemar's test).
    TARGET is the app: module:app, file.py:app, or file.py if it has one app. Each MODEL is the id of a stored model.

    \b
    Example:
      mlpkit compare sentiment.py OLD_MODEL_ID NEW_MODEL_ID --data test.tsv
    """
    settings, app, chosen = _prepare(target, algorithm, data)
    with (
        script_prints_to_stderr(),
        _opened(app, chosen, settings, first) as (first_id, first_model),
        _opened(app, chosen, settings, second) as (second_id, second_model),
    ):
        compared = _compared(chosen, data, (first_id, second_id), (first_model, second_model))
    if as_json:
        print(msgspec.json.encode(compared).decode())
    else:
        _show_comparison(compared, chosen)
    for report in compared.reports:
        if report.error:
            raise EvaluationFailed(f"model [{report.model_id}]: {report.error}")


def _compared(
    algorithm: Algorithm, data: Path, ids: tuple[str, str], models: tuple[ModelUnderTest, ModelUnderTest]
) -> _ComparedModels:
    from mlpkit.training import Evaluation

    reports = []
    rights: list[list[bool | None]] = []
    for model_id, model in zip(ids, models, strict=True):
        evaluation = Evaluation(model)
        rights.append([])
        metrics = evaluation.run(_rows(algorithm, data), note=rights[-1].append)
        reports.append(evaluation.report(**_known(model_id, algorithm, data), metrics=metrics))
    only = [0, 0]
    different: list[_DifferentRow] = []
    for (line, row), *right in zip(_rows(algorithm, data), *rights, strict=True):
        if None in right or right[0] == right[1]:
            continue
        winner = 0 if right[0] else 1
        only[winner] += 1
        if len(different) < _MOST_DIFFERENT:
            different.append(_DifferentRow(line, msgspec.to_builtins(row), winner + 1))
    return _ComparedModels((reports[0], reports[1]), only[0], only[1], mcnemar(only[0], only[1]), different)


def mcnemar(first_only: int, second_only: int) -> float | None:
    """The p-value of McNemar's test; None if the models never differ.

    Exact (binomial) for few different rows, otherwise chi-squared with continuity correction.
    """
    different = first_only + second_only
    if not different:
        return None
    if different < _FEW:
        tail = sum(math.comb(different, count) for count in range(min(first_only, second_only) + 1))
        return min(1.0, float(2 * tail) / float(2**different))
    statistic = max(0, abs(first_only - second_only) - 1) ** 2 / different
    return math.erfc(math.sqrt(statistic / 2))


def _prepare(target: str, algorithm: str | None, data: Path) -> tuple[Settings, App, Algorithm]:
    from mlpkit.log import configure
    from mlpkit.script import import_app

    settings = load_settings()
    configure(level=settings.log_level, process="evaluate")
    if not data.is_file():
        raise ArgumentError(f"--data: there is no file {data}")
    with script_prints_to_stderr():
        app = import_app(target)
        chosen = choose_algorithm(app, algorithm)
    if not chosen.is_measured:
        raise ArgumentError(f"kind {chosen.kind!r} does not say which answers are right: add @app.evaluate")
    return settings, app, chosen


@contextlib.contextmanager
def _opened(app: App, algorithm: Algorithm, settings: Settings, model: str) -> Iterator[tuple[str, ModelUnderTest]]:
    """The id of a stored model, and the model, loaded."""
    from mlpkit.storage import ModelDir, Storage, open_model, open_storage
    from mlpkit.training import ModelUnderTest

    with placed_model(model, settings) as (model_id, path), contextlib.closing(open_storage(settings)) as storage:

        def service(wanted: type) -> Any:
            if wanted is ModelDir:
                files = open_model(storage, settings, model_id, path)
                made_by = files.manifest.algorithm if files.manifest is not None else algorithm.name
                # The app may have got a new name since then.
                if made_by != algorithm.name and made_by in app.build():
                    raise ArgumentError(f"model [{model_id}] is of algorithm [{made_by}], not [{algorithm.name}]")
                return files
            return storage if wanted is Storage else wanted()

        fields = {"model_id": model_id, "model_path": path, "extend": msgspec.Raw(b"null"), "uuid": None}
        with ModelUnderTest(app, algorithm, service, fields) as opened:
            yield model_id, opened


def _rows(algorithm: Algorithm, data: Path) -> Iterator[tuple[int, Any]]:
    from mlpkit.formats import read_numbered_rows

    return read_numbered_rows(data, algorithm.kind)


def _known(model_id: str, algorithm: Algorithm, data: Path) -> dict[str, Any]:
    return {
        "model_id": model_id,
        "algorithm": algorithm.name,
        "kind": algorithm.kind,
        "created": time.time(),
        "source": str(data),
    }


def _show_comparison(compared: _ComparedModels, algorithm: Algorithm) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mlpkit.formats import kind_of

    console = Console()
    console = console if console.is_terminal else Console(width=80)
    first, second = compared.reports
    for number, report in ((1, first), (2, second)):
        console.print(Text(f"{number}: {report.model_id}"), soft_wrap=True)
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("")
    for name in ("1", "2"):
        table.add_column(name, justify="right")
    summaries = [report.summary() for report in (first, second)]
    for name in dict.fromkeys([*summaries[0], *summaries[1]]):
        if name != "source":
            table.add_row(name.replace("_", " "), *(_shown(summary.get(name)) for summary in summaries))
    table.add_row("ms a row, p50", *(_shown(report.milliseconds.get("p50")) for report in (first, second)))
    console.print(table)
    kind = kind_of(algorithm.kind)
    if compared.p is None:
        # Some kinds do not say of a row whether its answer is right.
        if first.f1 is not None or first.exact_match is not None:
            console.print(Text("no row is answered right by only one of them"))
        return
    console.print(
        Text(
            f"only 1 is right on {_counted(compared.first_only, 'row')}, only 2 on {compared.second_only:,}; "
            f"McNemar's test: p = {compared.p:.3g}, so the difference "
            + ("is probably not chance" if compared.p < 0.05 else "may be chance")
        )
    )
    rows = Table(show_edge=False, pad_edge=False)
    rows.add_column("line", justify="right", no_wrap=True)
    rows.add_column("right", no_wrap=True)
    rows.add_column("row", overflow="ellipsis", no_wrap=True, max_width=58)
    for row in compared.different:
        text = kind.write(msgspec.convert(row.row, kind.row)).replace("\t", "  ")
        rows.add_row(str(row.line), f"only {row.right}", Text(text))
    console.print(rows)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else str(value)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def show_report(report: EvaluationReport, *, to_stderr: bool = False) -> None:
    """Prints the report for people, in at most 80 columns."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=to_stderr)
    console = console if console.is_terminal else Console(stderr=to_stderr, width=80)
    rows = f"{_counted(report.rows, 'test row') if report.rows else 'test rows'} from {report.source}"
    title = Text(f"{report.model_id}: {rows}", "bold")
    if title.cell_len > console.width:
        title = Text(f"{report.model_id}:\n{rows}", "bold")
    console.print(title, soft_wrap=True)
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
    # Of entities and relations a row may have several.
    for name in ("precision", "recall", "F1", "wanted" if report.accuracy is None else "rows"):
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
    if report.negatives:
        which = "with posneg 0" if report.accuracy is not None else "without a label"
        yield f"not counted: {_counted(report.negatives, 'row')} {which}"
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
