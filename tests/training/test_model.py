"""What a training reads and makes: data from the store, files beside it, a model that is stored whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlpkit.errors import ArgumentError, UnsafePath
from mlpkit.script import import_app
from mlpkit.settings import Settings
from mlpkit.storage import open_model, open_storage
from mlpkit.training import Job, Progress, check_job, run_train
from tests.training.conftest import OpenQueue, WriteScript, end_of, job, train

SCRIPT = """
import json
import os
from typing import Annotated
import joblib
import msgspec
from pathlib import Path
from mlpkit import App, Depends, ModelDir, Progress, Storage, TrainData, TrainJob

app = App("it", kind="text_classification")
maybe = app.algorithm("maybe")
failing = app.algorithm("failing")
careless = app.algorithm("careless")
whole = app.algorithm("whole")

class Hyper(msgspec.Struct):
    c: float = 1.0
    pretrain_model: str | None = None

def corpus(data: TrainData, extend: dict):
    yield list(data.rows())

@app.train
def train(
    rows: Annotated[list, Depends(corpus)], data: TrainData, parameters: Hyper, out: ModelDir, progress: Progress
):
    beside = {name: get().read_text() if get() else None for name, get in [
        ("dictionary", data.dictionary), ("extra", data.extra)]}
    pretrained = data.pretrained()
    if pretrained is not None:
        found = pretrained / "weights" if pretrained.is_dir() else pretrained
        beside["pretrained"] = found.read_text()
    beside["rows"] = [[row.sentence, row.label] for row in rows]
    (out / "deep").mkdir()
    (out / "deep" / "model.json").write_text(json.dumps(beside))
    progress.update(f1=0.75)

@maybe.train
def train_maybe(data: TrainData | None, out: ModelDir):
    (out / "found.txt").write_text("none" if data is None else data.location)

@failing.train
def fails_after_writing(out: ModelDir):
    (out / "half.bin").write_bytes(b"x")
    raise ValueError("boom")

@careless.train
def leaves(parameters: dict, out: ModelDir):
    if parameters["what"] == "pipe":
        os.mkfifo(out / "odd")
    elif parameters["what"] == "link":
        (out / "odd").symlink_to("nowhere")
    else:
        os.rmdir(out)

@whole.train
def with_all(whole_job: TrainJob, storage: Storage, out: ModelDir):
    (out / "job.json").write_text(json.dumps(msgspec.to_builtins(whole_job)))
"""

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home)


@pytest.fixture
def put(settings: Settings, tmp_path: Path) -> Any:
    """Puts a text into the store."""

    def put(path: str, text: str) -> None:
        local = tmp_path / "local"
        local.write_text(text, encoding="utf-8")
        (settings.home / "storage" / path.partition("/")[0]).mkdir(parents=True, exist_ok=True)
        open_storage(settings).save(local, path)

    return put


def result(settings: Settings, model_id: str, name: str, model_path: str | None = None) -> Any:
    return json.loads((open_model(open_storage(settings), settings, model_id, model_path) / name).read_text())


@pytest.mark.parametrize(
    ("what", "problem"), [("pipe", "odd is not a file"), ("link", "odd is not a file"), ("nothing", "is not a folder")]
)
async def test_what_cannot_be_stored_is_named_without_a_traceback(
    open_queue: OpenQueue, what: str, problem: str
) -> None:
    async with open_queue(SCRIPT) as queue:
        ended = await train(queue, job("m", "careless", what=what))
        log = queue.log_path("m").read_text()

    assert ended.state == "error"
    assert ended.message.startswith("the model cannot be stored: /")
    assert problem in ended.message
    assert "Traceback" not in log


async def test_model_is_stored_with_its_manifest(open_queue: OpenQueue, settings: Settings, put: Any) -> None:
    put("ml-platform-data/reviews.txt", "好吃\tgood\n难吃\tbad\n")
    async with open_queue(SCRIPT) as queue:
        ended = await train(queue, job("m", data={"location": "reviews.txt"}, c=0.5))

    assert ended.message == ""
    model = open_model(open_storage(settings), settings, "m", None)
    assert json.loads((model / "deep/model.json").read_text())["rows"] == [["好吃", "good"], ["难吃", "bad"]]
    manifest = model.manifest
    assert manifest is not None
    assert (manifest.algorithm, manifest.kind, manifest.model_id) == ("it", "text_classification", "m")
    assert manifest.parameters == {"c": 0.5}
    assert manifest.metrics == {"f1": 0.75}
    assert manifest.data_etag == open_storage(settings).stat("ml-platform-data/reviews.txt").etag
    assert {"python", "mlpkit", "joblib", "msgspec"} <= set(manifest.versions)
    assert "pytest" not in manifest.versions


async def test_files_beside_the_data_are_one_call_away(open_queue: OpenQueue, settings: Settings, put: Any) -> None:
    put("ml-platform-data/reviews.txt", "好吃\tgood\n难吃\tbad\n")
    put("ml-platform-data/words.txt", "words")
    put("ml-platform-data/more.txt", "more")
    put("shared/one.bin", "a file")
    put("shared/many/weights", "a folder")
    extend = {"dict_location": "words.txt", "extra_location": "more.txt"}
    data = {"location": "reviews.txt"}
    async with open_queue(SCRIPT) as queue:
        await train(queue, job("file", data=data, extend=extend, pretrain_model="shared/one.bin"))
        await train(queue, job("folder", data=data, pretrain_model="shared/many"))

    found = result(settings, "file", "deep/model.json")
    assert (found["dictionary"], found["extra"], found["pretrained"]) == ("words", "more", "a file")
    found = result(settings, "folder", "deep/model.json")
    assert (found["dictionary"], found["extra"], found["pretrained"]) == (None, None, "a folder")


async def test_model_goes_where_the_request_says(open_queue: OpenQueue, settings: Settings, home: Path) -> None:
    (home / "storage" / "elsewhere").mkdir(parents=True)
    async with open_queue(SCRIPT) as queue:
        await queue.submit(Job("m", "whole", "elsewhere/models/m", parameters='{"a": null}', uuid="caller"))
        assert (await end_of(queue, "m")).message == ""

    found = result(settings, "m", "job.json", "elsewhere/models/m")
    assert (found["model_id"], found["algorithm"], found["uuid"], found["attempt"]) == ("m", "whole", "caller", 1)
    assert found["parameters"] == {"a": None}


@pytest.mark.parametrize("algorithm", ["failing", "maybe"])
async def test_failure_leaves_no_model(open_queue: OpenQueue, settings: Settings, home: Path, algorithm: str) -> None:
    async with open_queue(SCRIPT) as queue:
        if algorithm == "maybe":
            (home / "storage").mkdir(parents=True)
            (home / "storage" / settings.model_bucket).write_text("a file where the bucket should be")
        ended = await train(queue, job("m", algorithm))

    assert ended.state == "error"
    assert ended.message == "ValueError: boom" if algorithm == "failing" else settings.model_bucket in ended.message
    with pytest.raises(Exception, match="m"):
        open_model(open_storage(settings), settings, "m", None)
    assert list((home / "work").iterdir()) == []


async def test_data_is_optional_where_the_annotation_allows_it(open_queue: OpenQueue, settings: Settings) -> None:
    async with open_queue(SCRIPT) as queue:
        assert (await train(queue, job("m", "maybe"))).state == "completed"
        assert (await train(queue, job("n"))).message.startswith("[data] has no location")

    assert (open_model(open_storage(settings), settings, "m", None) / "found.txt").read_text() == "none"


async def test_broken_row_stops_the_job_before_the_handler_runs(open_queue: OpenQueue, put: Any) -> None:
    put("ml-platform-data/reviews.txt", "好吃\tgood\n难吃\tbad\nno label\n")
    async with open_queue(SCRIPT) as queue:
        ended = await train(queue, job("m", data={"location": "reviews.txt"}))

    assert ended.state == "error"
    assert "reviews.txt, line 3" in ended.message


async def test_first_warnings_about_the_data_are_in_the_log(open_queue: OpenQueue, put: Any) -> None:
    put("ml-platform-data/reviews.txt", "好吃\tgood\n" + "\n" * 30 + "难吃\tbad\n")
    async with open_queue(SCRIPT) as queue:
        assert (await train(queue, job("m", data={"location": "reviews.txt"}))).state == "completed"
        text = queue.log_path("m").read_text()

    warnings = [line for line in text.splitlines() if " WARNING " in line]
    assert "reviews.txt, line 2: the line is empty" in text
    assert len(warnings) == 21
    assert "more warnings" in warnings[-1]


async def test_missing_data_is_an_error_that_names_it(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        ended = await train(queue, job("m", data={"location": "nowhere.txt"}))

    assert ended.state == "error"
    assert "ml-platform-data" in ended.message
    assert "nowhere.txt" in ended.message


def test_job_that_could_only_fail_is_refused_at_submission(write_script: WriteScript, settings: Settings) -> None:
    algorithms = import_app(write_script(SCRIPT)).build()
    data = {"location": "x"}

    check_job(algorithms["it"], job("m", data=data, c=2), settings)
    check_job(algorithms["maybe"], job("m", "maybe"), settings)
    with pytest.raises(ArgumentError, match=r"\[parameter\] .*`float`"):
        check_job(algorithms["it"], job("m", data=data, c="much"), settings)
    with pytest.raises(ArgumentError, match=r"\[extend\]"):
        check_job(algorithms["it"], job("m", data=data, extend=[1]), settings)
    with pytest.raises(ArgumentError, match=r"\[data\] has no location"):
        check_job(algorithms["it"], job("m"), settings)
    with pytest.raises(ArgumentError, match="must be a string"):
        check_job(algorithms["it"], job("m", data={"location": 3}), settings)
    with pytest.raises(ArgumentError, match="must be a string"):
        check_job(algorithms["maybe"], job("m", "maybe", data={"location": 3}), settings)
    with pytest.raises(UnsafePath):
        check_job(algorithms["maybe"], Job("m", "maybe", "bucket/../other"), settings)
    with pytest.raises(UnsafePath):
        check_job(algorithms["maybe"], Job("../m", "maybe"), settings)


@pytest.mark.parametrize(
    ("field", "request_of"),
    [
        ("data.location", lambda path: job("m", "maybe", data={"location": path})),
        ("extend.dict_location", lambda path: job("m", "maybe", extend={"dict_location": path})),
        ("extend.extra_location", lambda path: job("m", "maybe", extend={"extra_location": path})),
        ("parameter.pretrain_model", lambda path: job("m", "maybe", pretrain_model=path)),
        ("model_path", lambda path: Job("m", "maybe", path)),
    ],
)
def test_what_cannot_be_a_path_is_refused_at_submission(
    write_script: WriteScript, settings: Settings, field: str, request_of: Any
) -> None:
    algorithms = import_app(write_script(SCRIPT)).build()

    check_job(algorithms["maybe"], request_of("/bucket/a/b"), settings)
    for path in ("bucket/../a", "//bucket/a", "bucket/a\\b", "bucket//a", "bucket/\0"):
        with pytest.raises(UnsafePath, match=rf"^\[{field}\] "):
            check_job(algorithms["maybe"], request_of(path), settings)


async def test_one_leading_slash_is_accepted_as_the_original_page_writes_it(
    open_queue: OpenQueue, settings: Settings, put: Any, home: Path
) -> None:
    put("ml-platform-data/a/reviews.txt", "好吃\tgood\n难吃\tbad\n")
    put("ml-platform-data/words.txt", "words")
    put("ml-platform-data/more.txt", "more")
    put("shared/one.bin", "a file")
    (home / "storage" / "elsewhere").mkdir(parents=True)
    extend = {"dict_location": "/words.txt", "extra_location": "/more.txt"}
    asked = job("m", data={"location": "/a/reviews.txt"}, extend=extend, pretrain_model="/shared/one.bin")
    async with open_queue(SCRIPT) as queue:
        ended = await train(queue, msgspec.structs.replace(asked, model_path="/elsewhere/m/"))

    assert ended.message == ""
    found = result(settings, "m", "deep/model.json", "elsewhere/m")
    assert (found["dictionary"], found["extra"], found["pretrained"]) == ("words", "more", "a file")


def test_training_in_this_process_has_the_same_outcome(
    write_script: WriteScript, settings: Settings, tmp_path: Path
) -> None:
    app = import_app(write_script(SCRIPT))
    folder = tmp_path / "out"
    folder.mkdir()

    outcome = run_train(app, job("m", "maybe"), settings, folder, Progress(lambda snapshot: None))

    assert outcome.state == "completed"
    assert (open_model(open_storage(settings), settings, "m", None) / "found.txt").exists()
    failed = run_train(app, job("m", "failing"), settings, folder, Progress(lambda snapshot: None))
    assert (failed.state, failed.message) == ("error", "ValueError: boom")
    assert "fails_after_writing" in failed.trace
