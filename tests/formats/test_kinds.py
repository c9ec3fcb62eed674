"""Kinds: the platform's are complete, and one from outside the package works like them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from mlpkit import App
from mlpkit.cli.data import data
from mlpkit.errors import AnswerError, DataError, EvaluationFailed
from mlpkit.formats import (
    KINDS,
    BrokenRow,
    CustomRow,
    Facts,
    Kind,
    Row,
    check_answer,
    check_rows,
    kind_names,
    kind_of,
    read_rows,
    register_kind,
    write_rows,
)
from mlpkit.formats import kind as kinds
from mlpkit.testing import FakeTrainData
from mlpkit.training import Evaluation, ModelUnderTest
from tests.servers import LONG


class PairRow(Row, frozen=True):
    left: str
    right: str
    same: bool


class Verdict(msgspec.Struct):
    same: bool


def _read(line: str) -> PairRow:
    columns = line.split("\t")
    if len(columns) != 3 or columns[2] not in ("yes", "no"):
        raise BrokenRow(1, "columns", "the columns are left, right, and yes or no")
    return PairRow(columns[0], columns[1], columns[2] == "yes")


PAIRS = Kind(
    name="text_pairs",
    row=PairRow,
    columns="left, right, yes or no",
    read=_read,
    write=lambda row: f"{row.left}\t{row.right}\t{'yes' if row.same else 'no'}",
    facts=lambda row: Facts(f"{row.left}\t{row.right}", "", labels=("yes" if row.same else "no",)),
    answer=list[Verdict],
    example={"left": "a", "right": "b"},
    features=lambda row: {"left": row.left, "right": row.right},
    labelled=True,
)


@pytest.fixture
def pairs() -> Iterator[Kind]:
    register_kind(PAIRS)
    yield PAIRS
    kinds._loaded.pop("text_pairs")


@pytest.mark.usefixtures("pairs")
def test_a_kind_from_outside_has_its_rows_checks_and_answers(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    rows = [PairRow(f"a{number}", "b", number % 2 == 0) for number in range(12)]
    assert App("pairs", kind="text_pairs").mistakes() == []
    write_rows(path, "text_pairs", rows)
    assert list(read_rows(path, "text_pairs")) == rows
    assert list(FakeTrainData(path, kind="text_pairs").rows()) == rows
    assert set(check_rows(path, "text_pairs").labels) == {"yes", "no"}
    check_answer("text_pairs", [{"same": True}])
    with pytest.raises(AnswerError, match=r"^predictions\[0\]\.same: "):
        check_answer("text_pairs", [{"same": 1}])
    path.write_text("a\tb\tmaybe\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs\.tsv, line 1, column 1: the columns are left, right"):
        list(read_rows(path, "text_pairs"))


@pytest.mark.usefixtures("pairs")
def test_the_command_line_checks_data_of_a_kind_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("a\tb\tyes\nc\td\tmaybe\n", encoding="utf-8")
    done = CliRunner().invoke(data, ["check", str(path), "--kind", "text_pairs"])
    assert done.exit_code == 1
    assert "the columns are left, right, and yes" in " ".join(done.output.split())


@pytest.mark.usefixtures("pairs")
def test_two_kinds_of_one_name_are_refused() -> None:
    register_kind(PAIRS)
    assert kind_names() == (*KINDS, "text_pairs")
    for name in ("text_pairs", "text_cluster"):
        with pytest.raises(ValueError, match=f"there is already a kind {name!r}"):
            register_kind(dataclasses.replace(PAIRS, name=name, columns="others"))


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_found_by_its_name(name: str) -> None:
    assert kind_of(name).name == name
    assert kind_of(name) is kind_of(name)


def test_an_unknown_kind_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"no kind 'text_clasification', did you mean 'text_classification'\?"):
        kind_of("text_clasification")


@pytest.mark.parametrize(
    ("row", "field", "kind"),
    [
        (CustomRow(("a", "b")), "posneg", "text_classification"),
        (CustomRow(("a", "b")), "spans", "text_sequence_labeling"),
        (CustomRow(("a", "b")), "sentence", "text_classification or text_sequence_labeling"),
        (PairRow("a", "b", True), "target", "text_generation"),
    ],
)
def test_a_field_of_another_kinds_rows_is_an_error_that_names_kind(row: Any, field: str, kind: str) -> None:
    with pytest.raises(AttributeError, match=rf"a {type(row).__name__} has no '{field}'.*kind {kind}.*set kind= of"):
        getattr(row, field)


def test_a_field_that_no_row_has_is_a_plain_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"a CustomRow has no 'posnegs'; its fields are columns$"):
        _ = CustomRow(("a",)).posnegs
    assert not hasattr(CustomRow(("a",)), "__array__")


def test_a_kinds_file_is_imported_when_the_kind_is_used() -> None:
    code = (
        "import sys; from mlpkit import App; from mlpkit.formats import Label; App('a', kind='text_classification');"
        "print([name for name in sys.modules if name.startswith('mlpkit.formats.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG, check=True)
    assert "mlpkit.formats.classification" in done.stdout
    assert "mlpkit.formats.relation" not in done.stdout


def load() -> None:
    """A model that needs nothing."""


def predict(features: dict[str, str]) -> list[Verdict]:
    return [Verdict(features["left"] == features["right"])]


@pytest.mark.usefixtures("pairs")
def test_a_measure_that_does_not_fit_the_rows_of_a_kind_is_named() -> None:
    kinds._loaded["text_pairs"] = dataclasses.replace(PAIRS, measure=kind_of("text_classification").measure)
    app = App("pairs", kind="text_pairs")
    app.load(load)
    app.predict(predict)
    with ModelUnderTest(app, app.build()["pairs"], lambda wanted: wanted(), {"model_id": "m"}) as model:
        message = r"the rows of kind 'text_pairs' do not fit LabelMeasure: a PairRow has no 'posneg'"
        with pytest.raises(EvaluationFailed, match=message):
            Evaluation(model).run([(1, PairRow("a", "b", True))])
