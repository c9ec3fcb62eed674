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


def test_title_of_a_long_model_id_is_not_broken_inside_a_name(trained: Path) -> None:
    model_id = "f" * 47
    rows = ("--data", "train.tsv", "--test", "test.tsv", "--parameters", '{"word": 0}')
    done = run(trained, "train", "words.py", *rows, "--model-id", model_id)

    assert f"{model_id}:\n60 test rows from data.test_location: test.tsv\n" in done.stderr


def test_rows_that_only_say_what_is_wrong_are_not_counted(trained: Path) -> None:
    (trained / "some.tsv").write_text("good bad\tgood\t1\ngood bad\tbad\t0\n")
    (trained / "none.tsv").write_text("good bad\tbad\t0\ngood bad 2\tbad\t0\n")

    some = run(trained, "evaluate", "words.py", "--model", "first", "--data", "some.tsv")
    none = run(trained, "evaluate", "words.py", "--model", "first", "--data", "none.tsv")
    compared = run(trained, "compare", "words.py", "first", "second", "--data", "none.tsv")

    assert "first: 1 test row from some.tsv\n" in some.stdout
    assert "not counted: 1 row with posneg 0\n" in some.stdout
    reason = "all 2 test rows have posneg 0: none says what is right\n"
    assert (none.returncode, none.stderr) == (1, f"error: {reason}")
    assert (compared.returncode, compared.stderr) == (1, f"error: model [first]: {reason}")
    assert "0.0000" not in none.stdout + compared.stdout
    assert none.stdout.startswith("first: test rows from none.tsv\nnot evaluated: ")


def test_comparison_shows_rows_as_the_file_has_them(trained: Path) -> None:
    (trained / "one.tsv").write_text("good bad\tgood\n")
    done = run(trained, "compare", "words.py", "first", "second", "--data", "one.tsv")

    assert "only 1 is right on 1 row, only 2 on 0" in done.stdout
    assert "   1 │ only 1 │ good bad  good  1\n" in done.stdout


def test_model_of_another_algorithm_of_the_app_is_refused(trained: Path) -> None:
    (trained / "both.py").write_text(
        SCRIPT + "\nother = app.algorithm('other', kind='text_classification')\n"
        "other.load(load)\nother.predict(max_batch_size=4)(predict)\n"
    )
    (trained / "renamed.py").write_text(SCRIPT.replace('App("words"', 'App("renamed"'))

    other = run(trained, "evaluate", "both.py", "-a", "other", "--model", "first", "--data", "test.tsv")
    renamed = run(trained, "evaluate", "renamed.py", "--model", "first", "--data", "test.tsv")

    assert (other.returncode, other.stderr) == (2, "error: model [first] is of algorithm [words], not [other]\n")
    assert renamed.returncode == 0, renamed.stderr


@pytest.mark.parametrize("own", ["this is no JSON", '{"f1": 0.5}', "[1]"])
@pytest.mark.parametrize("tests", [(), ("--test", "test.tsv")])
def test_train_ends_well_if_the_author_writes_evaluation_json(trained: Path, own: str, tests: tuple[str, ...]) -> None:
    writes = f"    (out / 'evaluation.json').write_text({own!r})\n    (out /"
    (trained / "own.py").write_text(SCRIPT.replace("    (out /", writes, 1))
    done = run(trained, "train", "own.py", "--data", "train.tsv", *tests, "--parameters", '{"word": 0}')

    assert done.returncode == 0, done.stderr
    assert Path(trained, done.stdout.strip(), "evaluation.json").read_text() == own
    assert "test rows from" not in done.stderr
    assert ("train has written its own evaluation.json" in done.stderr) == bool(tests)


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
