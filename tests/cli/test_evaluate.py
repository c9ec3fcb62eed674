"""`mlpkit evaluate` and `mlpkit compare` on models that were trained in the foreground."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlpkit.cli.evaluate import mcnemar
from tests.servers import LONG

SCRIPT = """
import json
from mlpkit import App, ModelDir, TrainData

app = App("words", kind="text_classification")

@app.train
def train(data: TrainData, parameters: dict, out: ModelDir):
    (out / "model.json").write_text(json.dumps(parameters))

@app.load
def load(files: ModelDir):
    return json.loads((files / "model.json").read_text())

@app.predict(max_batch_size=4)
def predict(model, features: list[dict]):
    words = [item["sentence"].split()[model["word"]] for item in features]
    return [[{"label": word, "score": 70.0}] for word in words]
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlpkit", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LONG,
        env={**os.environ, "COLUMNS": "80"},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `first`, whose answers are right, and `second`."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "words.py").write_text(SCRIPT)
    (folder / "train.tsv").write_text("good bad\tgood\nbad good\tbad\n" * 5)
    (folder / "test.tsv").write_text("".join(f"good bad {line}\tgood\nbad bad {line}\tbad\n" for line in range(30)))
    for word, name in enumerate(("first", "second")):
        parameters = json.dumps({"word": word})
        rows = ("--data", "train.tsv", "--test", "test.tsv")
        done = run(folder, "train", "words.py", *rows, "--model-id", name, "--parameters", parameters)
        assert done.returncode == 0, done.stderr
        assert f"{name}: 60 test rows from data.test_location: test.tsv\n" in done.stderr
        assert "macro average" in done.stderr
        assert done.stdout.strip().endswith(name)
    return folder


def test_evaluate_shows_a_table_in_80_columns(trained: Path) -> None:
    done = run(trained, "evaluate", "words.py", "--model", "second", "--data", "test.tsv")

    assert done.returncode == 0, done.stderr
    assert "accuracy: 0.5000" in done.stdout
    assert "good as bad (30)" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_evaluate_prints_the_whole_report_as_json(trained: Path) -> None:
    done = run(trained, "evaluate", "words.py", "--model", "first", "--data", "test.tsv", "--json")

    report = json.loads(done.stdout)
    assert (report["rows"], report["accuracy"], report["f1"]) == (60, 1.0, 1.0)


def test_compare_tells_what_only_one_model_answers_right(trained: Path) -> None:
    done = run(trained, "compare", "words.py", "first", "second", "--data", "test.tsv")

    assert done.returncode == 0, done.stderr
    assert "only 1 is right on 30 rows, only 2 on 0" in done.stdout
    assert "probably not chance" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_compare_shows_what_the_author_measures(trained: Path) -> None:
    measuring = "@app.evaluate\ndef evaluate(pairs):\n    return {'answered': sum(1 for row, answer in pairs)}\n"
    (trained / "measured.py").write_text(SCRIPT + measuring)
    done = run(trained, "compare", "measured.py", "first", "second", "--data", "test.tsv", "--json")

    compared = json.loads(done.stdout)
    assert [report["metrics"] for report in compared["reports"]] == [{"answered": 60.0}] * 2
    assert (compared["first_only"], compared["second_only"]) == (30, 0)
    assert {row["line"] % 2 for row in compared["different"]} == {1}


def test_file_of_test_rows_that_does_not_exist_is_refused(trained: Path) -> None:
    done = run(trained, "evaluate", "words.py", "--model", "first", "--data", "nothing.tsv")

    assert done.returncode == 2
    assert "there is no file nothing.tsv" in done.stderr


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0, 0, None), (3, 3, 1.0), (1, 9, 0.021484375), (10, 10, 1.0), (40, 10, 4.11e-05), (101, 59, 0.0012)],
)
def test_mcnemar_is_exact_for_few_rows_and_chi_squared_for_many(
    first: int, second: int, expected: float | None
) -> None:
    found = mcnemar(first, second)

    assert found == (None if expected is None else pytest.approx(expected, rel=0.02))
