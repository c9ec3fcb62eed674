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

from mlpkit.cli.foreground import placed_model, script_prints_to_stderr
from mlpkit.cli.options import FILE, algorithm_name, as_json, target
from mlpkit.cli.show import show_report
from mlpkit.errors import ArgumentError, EvaluationFailed
from mlpkit.script import choose_algorithm
from mlpkit.settings import Settings, load_settings

if TYPE_CHECKING:
    from mlpkit.algorithm import Algorithm
    from mlpkit.app import App
    from mlpkit.training import ModelUnderTest

_MOST_DIFFERENT = 20
_FEW = 25
"""With fewer different rows, McNemar's test is computed exactly."""

test_rows = click.option("--data", type=FILE, required=True, metavar="FILE", help="The test rows.")


class DifferentRow(msgspec.Struct, frozen=True):
    """A row that only one of two models answers right."""

    line: int
    row: dict[str, Any]
    right: int


class ComparedModels(msgspec.Struct, frozen=True):
    """Two models on the same rows.

    `first_only` and `second_only` count the rows that only this model answers right. `p` is the probability of such a
    difference, or a larger one, between models that are equally good: McNemar, Psychometrika 1947.
    """

    reports: tuple[Any, Any]
    first_only: int
    second_only: int
    p: float | None
    different: list[DifferentRow]


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
        _show_comparison(compared)


def _compared(
    algorithm: Algorithm, data: Path, ids: tuple[str, str], models: tuple[ModelUnderTest, ModelUnderTest]
) -> ComparedModels:
    from mlpkit.training import Evaluation

    reports = []
    rights: list[list[bool | None]] = []
    for model_id, model in zip(ids, models, strict=True):
        evaluation = Evaluation(model)
        rights.append([])
        metrics = evaluation.run(_rows(algorithm, data), note=rights[-1].append)
        reports.append(evaluation.report(**_known(model_id, algorithm, data), metrics=metrics))
    only = [0, 0]
    different: list[DifferentRow] = []
    for (line, row), *right in zip(_rows(algorithm, data), *rights, strict=True):
        if None in right or right[0] == right[1]:
            continue
        winner = 0 if right[0] else 1
        only[winner] += 1
        if len(different) < _MOST_DIFFERENT:
            different.append(DifferentRow(line, msgspec.to_builtins(row), winner + 1))
    return ComparedModels((reports[0], reports[1]), only[0], only[1], mcnemar(only[0], only[1]), different)


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
                return open_model(storage, settings, model_id, path)
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


def _show_comparison(compared: ComparedModels) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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
    if compared.p is None:
        console.print(Text("no row is answered right by only one of them"))
        return
    console.print(
        Text(
            f"only 1 is right on {compared.first_only:,} rows, only 2 on {compared.second_only:,}; McNemar's test: "
            f"p = {compared.p:.3g}, so the difference "
            + ("is probably not chance" if compared.p < 0.05 else "may be chance")
        )
    )
    rows = Table(show_edge=False, pad_edge=False)
    rows.add_column("line", justify="right", no_wrap=True)
    rows.add_column("right", no_wrap=True)
    rows.add_column("row", overflow="ellipsis", no_wrap=True, max_width=58)
    for row in compared.different:
        rows.add_row(str(row.line), f"only {row.right}", Text("  ".join(str(value) for value in row.row.values())))
    console.print(rows)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else str(value)
