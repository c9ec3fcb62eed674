"""What follows `train`: the model answers test rows, and what that shows is stored with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlpkit.errors import ArgumentError, DeclarationError
from mlpkit.formats import EvaluationReport
from mlpkit.script import import_app
from mlpkit.settings import Settings
from mlpkit.storage import Manifest
from mlpkit.training import JobOutcome, Progress, check_job, run_train
from tests.training.conftest import OpenQueue, WriteScript, end_of, job, reached, train

pytestmark = pytest.mark.anyio

SCRIPT = """
import json, os, time
from pathlib import Path
from mlpkit import App, ModelDir, TrainData

app = App("it", kind="text_classification")

@app.train(OPTIONS)
def train(data: TrainData, parameters: dict, out: ModelDir):
    rows = [[row.sentence, row.label] for row in data.rows()]
    tests = [[row.sentence, row.label] for row in data.test_rows()]
    (out / "model.json").write_text(json.dumps({"rows": rows, "tests": tests, **parameters}))

@app.load
def load(files: ModelDir):
    return json.loads((files / "model.json").read_text())

def label(model, sentence):
    do = model.get("do")
    if do == "fail" or (do == "fail once" and sentence.endswith("3")):
        raise ValueError("cannot answer " + sentence)
    if do == "crash":
        with open(model["folder"] + "/crashed", "a") as file:
            file.write("x")
        os._exit(3)
    if do == "hang":
        time.sleep(1000)
    if do == "slow":
        time.sleep(0.02)
    score = float("nan") if do == "nan" else 80.0
    return [{"label": sentence.partition(" ")[0], "score": score}]

@app.predict(max_batch_size=4)
def predict(model, features: list[dict]):
    answers = [label(model, item["sentence"]) for item in features]
    if model.get("do") == "too few":
        return answers[1:]
    if model.get("do") == "other order":
        return answers[::-1]
    if model.get("do") == "sorted":
        return sorted(answers, key=str)
    return answers
"""
"""A model that answers the first word of a sentence."""

ROWS = [f"{label} {number}\t{label}" for number in range(20) for label in ("good", "bad")]


class Run(msgspec.Struct):
    """How a training in this process ended."""

    outcome: JobOutcome
    report: EvaluationReport | None
    manifest: Manifest | None
    model: dict[str, Any]
    stages: list[str]


@pytest.fixture
def put(home: Path) -> Any:
    """Puts rows into the data bucket; their location."""

    def put_rows(name: str, rows: Sequence[str]) -> str:
        folder = home / "storage" / "ml-platform-data"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        return name

    return put_rows


@pytest.fixture
def tested(home: Path, write_script: WriteScript, put: Any, tmp_path: Path) -> Any:
    """Trains in this process: `tested(rows=..., tests=..., do="crash")`."""

    def run(
        rows: Sequence[str] = ROWS,
        tests: Sequence[str] | None = None,
        *,
        options: str = "",
        script: str = SCRIPT,
        extend: Any = None,
        settings: dict[str, Any] | None = None,
        decodes_report: bool = True,
        **parameters: Any,
    ) -> Run:
        data = {"location": put("train.tsv", rows)}
        if tests is not None:
            data["test_location"] = "/" + put("test.tsv", tests)
        out = tmp_path / "out"
        out.mkdir()
        stages: list[str] = []
        progress = Progress(lambda snapshot: stages.append(snapshot.stage))
        app = import_app(write_script(script.replace("OPTIONS", options)))
        all_settings = Settings(home=home, store_retry=0.0, **(settings or {}))
        asked = job("m", data=data, extend=extend, **parameters)
        check_job(app.build()["it"], asked, all_settings)
        outcome = run_train(app, asked, all_settings, out, progress)
        progress.close()
        folder = home / "storage" / "ml-platform-model" / "m"

        def stored(name: str, wanted: Any) -> Any:
            file = folder / name
            return msgspec.json.decode(file.read_bytes(), type=wanted) if file.exists() else None

        return Run(
            outcome,
            stored("evaluation.json", EvaluationReport) if decodes_report else None,
            stored("mlpkit.json", Manifest),
            stored("model.json", dict[str, Any]) or {},
            stages,
        )

    return run


def test_share_of_the_rows_is_left_out_and_tested(tested: Any) -> None:
    done = tested(options="test=0.2")

    assert done.outcome.state == "completed"
    assert sorted(done.model["rows"] + done.model["tests"]) == sorted(row.split("\t") for row in ROWS)
    assert [label for _, label in done.model["tests"]].count("good") == 4
    assert [label for _, label in done.model["tests"]].count("bad") == 4
    assert (done.report.source, done.report.seed, done.report.rows, done.report.accuracy) == ("test=0.2", 0, 8, 1.0)
    assert done.report.in_both == 0


def test_share_is_the_same_each_time_and_another_with_another_seed(
    tested: Any, write_script: WriteScript, tmp_path: Path
) -> None:
    first = tested(options="test=0.2").model["tests"]
    (tmp_path / "out").rename(tmp_path / "first")
    second = tested(options="test=0.2").model["tests"]
    (tmp_path / "out").rename(tmp_path / "second")
    third = tested(options="test=0.2, test_seed=1").model["tests"]

    assert first == second
    assert first != third


def test_rows_of_one_sentence_are_on_the_same_side(tested: Any) -> None:
    twice = [f"{label} {number}\t{label}" for number in range(10) for label in ("good", "bad")] * 2

    done = tested(twice, options="test=0.3")

    learnt = {sentence for sentence, _ in done.model["rows"]}
    assert done.model["tests"]
    assert not learnt.intersection(sentence for sentence, _ in done.model["tests"])


ENTITIES = """
from mlpkit import App, ModelDir, TrainData

app = App("it", kind="text_sequence_labeling")

@app.train(test=0.5)
def train(data: TrainData, out: ModelDir):
    (out / "model.json").write_text("{}")

@app.load
def load(files: ModelDir):
    return 1

@app.predict
def predict(model, features: dict):
    return []
"""


def test_labels_that_only_held_out_rows_have_are_counted_and_named(tested: Any) -> None:
    rows = [f"<START:A>a<END> <START:B{number}>b<END> {number}" for number in range(10)]

    done = tested([*rows, "<START:A>a<END> only"], script=ENTITIES)

    found = {name: figures.support for name, figures in done.report.labels.items() if name != "A"}
    assert len(found) in (5, 6)
    assert done.report.unknown_labels == found


def test_without_test_rows_nothing_changes(tested: Any) -> None:
    done = tested()

    assert done.outcome.state == "completed"
    assert len(done.model["rows"]) == len(ROWS)
    assert done.model["tests"] == []
    assert done.report is None
    assert (done.manifest.evaluation, done.manifest.below_gate) == ({}, "")
    assert "evaluate" not in done.stages


def test_file_of_test_rows_is_evaluated_and_compared_with_the_training_data(tested: Any) -> None:
    tests = ["good 1\tgood", "good 100\tgood", "good 101\tbad", "ugly 1\tugly", "ugly 2\tugly"]

    done = tested(tests=tests)

    assert done.report.source == "data.test_location: test.tsv"
    assert done.report.rows == 5
    assert done.report.accuracy == 0.8
    assert done.report.in_both == 1
    assert done.report.unknown_labels == {"ugly": 2}
    assert [(error.line, error.wanted, error.got) for error in done.report.errors] == [(3, "bad", "good")]
    assert done.manifest.evaluation["accuracy"] == 0.8
    assert "evaluation.json" in done.manifest.files
    assert done.model["tests"][0] == ["good 1", "good"]


def test_test_rows_of_one_label_are_evaluated(tested: Any) -> None:
    done = tested(tests=["good 100\tgood", "good 101\tgood"])

    assert done.outcome.state == "completed"
    assert list(done.report.labels) == ["good"]


def test_dependency_of_predict_gets_the_fields_of_a_row_as_in_the_service(tested: Any) -> None:
    head, _ = SCRIPT.split("@app.predict(")
    script = f"""{head}
from typing import Annotated
from mlpkit import Depends

def words(features: dict, params: dict | None, uuid: str | None) -> list:
    assert (params, uuid) == (None, None)
    return features["sentence"].split()

@app.predict
def predict(words: Annotated[list, Depends(words)]):
    return [{{"label": words[0], "score": 80.0}}]
"""
    done = tested(tests=["good 100\tgood", "bad 100\tgood"], script=script)

    assert done.outcome.state == "completed"
    assert (done.report.error, done.report.failed.rows, done.report.accuracy) == ("", 0, 0.5)


@pytest.mark.parametrize("content", [[], ["", "  "]])
def test_empty_file_of_test_rows_is_an_error_before_the_training(tested: Any, content: list[str]) -> None:
    done = tested(tests=content)

    assert done.outcome.state == "error"
    assert done.outcome.message.startswith("test.tsv: no row can be read")
    assert done.manifest is None


def test_broken_test_row_is_an_error_that_names_its_line(tested: Any) -> None:
    done = tested(tests=["good 100\tgood", "without a label"])

    assert done.outcome.state == "error"
    assert "test.tsv, line 2, column 16: no label" in done.outcome.message


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("fail", "predict failed for all 3 test rows; line 1: cannot answer good 100"),
        ("nan", "predict failed for all 3 test rows; line 1: predictions[0].score"),
        ("too few", "predict answered 2 items to a batch of 3"),
        ("other order", "predict does not answer in the order of its features"),
        ("sorted", "predict does not answer in the order of its features"),
    ],
)
def test_model_that_cannot_be_evaluated_is_stored_with_the_reason(tested: Any, do: str, reason: str) -> None:
    done = tested(tests=["good 100\tgood", "bad 101\tbad", "good 102\tgood"], do=do)

    assert done.outcome.state == "completed"
    assert reason in done.report.error
    assert reason in done.manifest.evaluation["error"]
    assert done.report.f1 is None


def test_row_that_fails_counts_as_wrong_and_the_first_reason_is_told(tested: Any) -> None:
    done = tested(tests=["good 102\tgood", "good 103\tgood", "bad 103\tbad", "bad 104\tbad"], do="fail once")

    assert done.report.error == ""
    assert done.report.accuracy == 0.5
    assert (done.report.failed.rows, done.report.failed.line) == (2, 2)
    assert done.report.failed.message == "cannot answer good 103"


def test_row_fails_alone_also_if_the_answers_of_its_batch_are_made_while_they_are_read(tested: Any) -> None:
    made = 'label(model, item["sentence"]) for item in features'
    lazy = SCRIPT.replace(f"answers = [{made}]", f"return ({made})")

    done = tested(tests=["good 102\tgood", "good 103\tgood", "bad 104\tbad"], script=lazy, do="fail once")

    assert done.report.error == ""
    assert (done.report.failed.rows, done.report.failed.message) == (1, "cannot answer good 103")


def test_evaluation_that_takes_too_long_is_given_up(tested: Any) -> None:
    done = tested(tests=["good 100\tgood", "bad 1\tbad"], do="hang", settings={"evaluate_timeout": 0.5})

    assert done.outcome.state == "completed"
    assert "longer than 0.5 s (MLPKIT_EVALUATE_TIMEOUT)" in done.report.error
    assert done.manifest is not None


def test_too_few_rows_for_a_share_are_told(tested: Any) -> None:
    done = tested(["good 1\tgood", "bad 1\tbad"], options="test=0.1")

    assert done.outcome.state == "completed"
    assert done.report.error == "there is no test row"
    assert (done.report.f1, done.report.accuracy, done.report.labels) == (None, None, {})


def test_gate_without_any_test_row_says_so(tested: Any) -> None:
    done = tested(["good 1\tgood", "bad 1\tbad"], options="test=0.1, min_f1=0.5")

    assert done.outcome.message.startswith("there is no F1, and min_f1=0.5 is needed: there is no test row")


def test_what_the_author_measures_counts_if_the_rows_have_no_labels(tested: Any) -> None:
    script = ENTITIES.replace("text_sequence_labeling", "text_cluster").replace("test=0.5", "")
    script += "\n@app.evaluate\ndef evaluate(pairs):\n    return {'pairs': sum(1 for pair in pairs)}\n"

    done = tested(["a sentence"], ["a line", "another line"], script=script)

    assert (done.report.error, done.report.rows, done.report.metrics) == ("", 2, {"pairs": 2.0})


def test_error_names_the_function_that_failed(tested: Any) -> None:
    script = SCRIPT.replace("    return json", "    raise KeyError('weights')\n    return json", 1)

    done = tested(tests=["good 100\tgood"], script=script)

    assert done.report.error == "load failed: 'weights'"


@pytest.mark.parametrize("own", [b"this is no JSON", b'{"f1": 0.5}', b"[1]", b'{"error": "\xba\xc3"}'])
def test_file_evaluation_json_of_the_author_is_kept(tested: Any, home: Path, own: bytes) -> None:
    script = SCRIPT.replace("    rows = [", f"    (out / 'evaluation.json').write_bytes({own!r})\n    rows = [", 1)

    done = tested(tests=["good 100\tgood"], script=script, decodes_report=False)

    assert done.outcome.state == "completed"
    assert done.manifest.evaluation["f1"] == 1.0
    assert (home / "storage/ml-platform-model/m/evaluation.json").read_bytes() == own


@pytest.mark.parametrize("gate", [{"options": "min_f1=0.9"}, {"extend": {"min_f1": 0.9}}])
def test_model_below_its_gate_is_kept_and_the_job_is_an_error_with_the_figure(
    tested: Any, gate: dict[str, Any]
) -> None:
    done = tested(tests=["good 100\tgood", "good 101\tbad"], **gate)

    assert done.outcome.state == "error"
    assert "macro F1 0.3333 on 2 test rows, below min_f1=0.9" in done.outcome.message
    assert done.manifest.below_gate in done.outcome.message
    assert done.report.gate.passed is False
    assert done.model["rows"]


def test_model_that_reaches_its_gate_is_completed(tested: Any) -> None:
    done = tested(tests=["good 100\tgood", "bad 101\tbad"], options="min_f1=0.9")

    assert done.outcome.state == "completed"
    assert done.manifest.below_gate == ""
    assert (done.report.gate.min_f1, done.report.gate.f1, done.report.gate.passed) == (0.9, 1.0, True)


def test_gate_of_the_request_goes_before_that_of_the_script(tested: Any) -> None:
    done = tested(tests=["good 100\tgood", "good 101\tbad"], options="min_f1=0.9", extend={"min_f1": 0.2})

    assert done.outcome.state == "completed"


def test_model_without_a_result_is_below_its_gate(tested: Any) -> None:
    done = tested(tests=["good 100\tgood"], options="min_f1=0.9", do="fail")

    assert done.outcome.state == "error"
    assert "there is no F1, and min_f1=0.9 is needed: predict failed for all 1 test rows" in done.outcome.message
    assert (done.report.rows, done.report.failed.rows) == (1, 1)


@pytest.mark.parametrize(
    ("extend", "message"),
    [
        ({"min_f1": "high"}, r"\[extend\] min_f1 must be a number above 0 and at most 1, not 'high'"),
        ({"min_f1": 1.5}, r"\[extend\] min_f1 must be a number"),
        ({"min_f1": 0.5}, r"min_f1=0.5 needs test rows: name them in data.test_location"),
    ],
)
def test_gate_that_cannot_be_checked_is_refused(tested: Any, extend: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        tested(extend=extend)


def test_test_location_outside_of_the_bucket_is_refused(write_script: WriteScript, home: Path) -> None:
    app = import_app(write_script(SCRIPT.replace("OPTIONS", "")))
    asked = job("m", data={"location": "a.tsv", "test_location": "../b.tsv"})

    with pytest.raises(ArgumentError, match=r"\[data.test_location\]"):
        check_job(app.build()["it"], asked, Settings(home=home))


HOOKS = """
import json
from mlpkit import App, ModelDir, TrainData

app = App("it")

@app.train(OPTIONS)
def train(data: TrainData, out: ModelDir):
    (out / "model").write_text("")

@app.load
def load(files: ModelDir):
    yield "the model"

@app.predict
async def predict(features: dict, model: str):
    assert model == "the model"
    return {"sum": features["a"] + features["b"]}

@app.features
def features(row):
    return {"a": int(row.columns[0]), "b": int(row.columns[1])}

@app.evaluate
def evaluate(pairs, model_id: str):
    answers = [(int(row.columns[2]), answer["sum"]) for row, answer in pairs]
    right = sum(wanted == got for wanted, got in answers)
    return {"right": right / len(answers), "f1": 0.5}
"""


def test_author_makes_features_of_a_row_and_measures_answers(tested: Any) -> None:
    done = tested(["1\t1\t2"], ["1\t2\t3", "2\t2\t5"], script=HOOKS)

    assert done.report.error == ""
    assert done.report.metrics == {"right": 0.5, "f1": 0.5}
    assert done.manifest.evaluation["right"] == 0.5
    assert done.report.rows == 2


def test_gate_looks_at_the_f1_of_the_author(tested: Any) -> None:
    done = tested(["1\t1\t2"], ["1\t2\t3"], script=HOOKS, options="min_f1=0.6")

    assert done.outcome.state == "error"
    assert "F1 0.5000 on 1 test rows, below min_f1=0.6" in done.outcome.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("OPTIONS", "test=1.5"), "test=1.5: it must be a share above 0 and below 1"),
        (("OPTIONS", "min_f1=80"), "min_f1=80: it must be a number above 0 and at most 1"),
        (("@app.evaluate\ndef evaluate(pairs, ", "@app.evaluate\ndef evaluate(rows, "), "has no field 'rows'"),
        (("def features(row)", "async def features(row)"), "features must be a plain function, not async"),
        (("@app.evaluate\n", ""), "does not say which answers are right: add @app.evaluate"),
        (("data: TrainData, ", ""), "leaves out rows of `data.rows()`: add a parameter such as `data: TrainData`"),
    ],
)
def test_mistakes_are_found_when_the_app_is_built(
    write_script: WriteScript, change: tuple[str, str], message: str
) -> None:
    script = HOOKS.replace(*change).replace("OPTIONS", "test=0.1")

    with pytest.raises(DeclarationError, match=message.replace("(", r"\(").replace(")", r"\)")):
        import_app(write_script(script)).build()


async def test_model_whose_predict_ends_the_process_is_stored_all_the_same(
    open_queue: OpenQueue, put: Any, home: Path, tmp_path: Path
) -> None:
    data = {"location": put("train.tsv", ROWS), "test_location": put("test.tsv", ["good 100\tgood", "bad 1\tbad"])}
    async with open_queue(SCRIPT.replace("OPTIONS", "")) as queue:
        ended = await train(queue, job("m", data=data, do="crash", folder=str(tmp_path)))

    assert ended.state == "completed"
    assert (tmp_path / "crashed").read_text() == "xx"
    report = json.loads((home / "storage/ml-platform-model/m/evaluation.json").read_text())
    assert report["error"] == "the process ended each time while it evaluated the model"


async def test_soft_cancel_of_an_evaluation_leaves_time_to_store_the_model(
    open_queue: OpenQueue, put: Any, home: Path
) -> None:
    data = {
        "location": put("train.tsv", ROWS),
        "test_location": put("test.tsv", [f"{row} tested" for row in ROWS] * 99),
    }
    async with open_queue(SCRIPT.replace("OPTIONS", ""), shutdown_grace=8.0) as queue:
        await queue.submit(job("m", data=data, do="slow"))
        found = await reached(queue, "m", lambda job: job.progress is not None and (job.progress.done or 0) > 10)
        assert found.progress is not None
        assert found.progress.stage == "evaluate"
        await queue.cancel("m", soft=True)
        ended = await end_of(queue, "m")

    assert ended.state == "completed"
    assert ended.message.startswith("a soft cancel asked it to end")
    report = json.loads((home / "storage/ml-platform-model/m/evaluation.json").read_text())
    assert report["error"] == "a soft cancel ended the evaluation"


@pytest.mark.slow
async def test_file_of_test_rows_may_be_larger_than_the_memory_of_the_job(
    open_queue: OpenQueue, put: Any, home: Path
) -> None:
    tests = [f"{('good', 'bad')[number % 2]} {number}{' word' * 20_000}\tgood" for number in range(2000)]
    data = {"location": put("train.tsv", ROWS), "test_location": put("test.tsv", tests)}
    assert (home / "storage/ml-platform-data/test.tsv").stat().st_size > 190 << 20
    script = SCRIPT.replace("OPTIONS", 'memory="120MiB"').replace("in data.test_rows()", "in ()")
    async with open_queue(script) as queue:
        ended = await train(queue, job("m", data=data))

    assert ended.state == "completed", ended.message
    report = json.loads((home / "storage/ml-platform-model/m/evaluation.json").read_text())
    assert (report["error"], report["rows"], report["accuracy"]) == ("", 2000, 0.5)


async def test_job_shows_its_evaluation_and_that_it_is_below_its_gate(
    open_queue: OpenQueue, put: Any, home: Path
) -> None:
    data = {"location": put("train.tsv", ROWS), "test_location": put("test.tsv", ["good 100\tgood", "good 1\tbad"])}
    async with open_queue(SCRIPT.replace("OPTIONS", "")) as queue:
        ended = await train(queue, job("m", data=data, extend={"min_f1": 0.5}))

    assert ended.state == "error"
    assert "below min_f1=0.5" in ended.message
    assert ended.progress is not None
    assert ended.progress.metrics["evaluation"]["accuracy"] == 0.5
    assert (home / "storage/ml-platform-model/m/mlpkit.json").exists()
