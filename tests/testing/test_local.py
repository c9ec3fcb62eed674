"""`app.local()`: an app in the process of a notebook."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from mlpkit.errors import ArgumentError, PredictFailed, TrainFailed, UserCodeError
from mlpkit.local import Local
from mlpkit.settings import Settings
from tests.servers import LONG, mood

CELL = """
import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
from mlpkit import App, ModelDir, TrainData

app = App("counted")
closed: list[str] = []


class Word(msgspec.Struct):
    word: str


async def halved(number: int) -> float:
    return number / 2


@app.train
def train(data: TrainData, out: ModelDir) -> None:
    rows = len(list(data.rows()))
    (out / "half").write_text(str(asyncio.run(halved(rows))))


@app.load
def load(files: ModelDir) -> Iterator[float]:
    yield float((files / "half").read_text())
    closed.append(files.model_id)


@app.predict
def predict(model: float, features: Word) -> list[Any]:
    return [features.word, asyncio.run(halved(int(model * 4)))]
"""
"""An app that no other process could import; its functions run an event loop of their own, as scripts may."""

ENDLESS = """
import threading
import time
from mlpkit import App

app = App("endless")
started = threading.Event()
ended: list[type[BaseException]] = []


@app.train
def train() -> None:
    try:
        started.set()
        while True:
            started.wait(0.01)
    except BaseException as error:
        time.sleep(0.3)  # what the author cleans up
        ended.append(type(error))
        raise
"""


def run_cell(text: str) -> dict[str, Any]:
    """What the names are after a cell of a notebook."""
    names: dict[str, Any] = {"__name__": "notebook"}
    exec(compile(text, "cell", "exec"), names)
    return names


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.tsv"
    file.write_text("a\nb\nc\nd\n")
    return file


def test_trains_and_predicts_while_an_event_loop_runs(tmp_path: Path, data: Path) -> None:
    async def cell() -> Any:
        with Local(run_cell(CELL)["app"], Settings(home=tmp_path / "home")) as local:
            local.train(data)
            return local.predict({"word": "tea"})

    assert asyncio.run(cell()) == ["tea", 4.0]


def test_app_s_own_local_reads_settings_and_stores_models_where_the_service_finds_them(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLPKIT_HOME", str(tmp_path / "home"))
    with run_cell(CELL)["app"].local() as local:
        model_id = local.train(str(data))
    assert (tmp_path / "home" / "storage" / "ml-platform-model" / model_id / "mlpkit.json").exists()
    with run_cell(CELL)["app"].local() as another:
        assert another.predict({"word": "tea"}, model=model_id) == ["tea", 4.0]


def test_predict_takes_the_model_that_was_trained_last(tmp_path: Path, data: Path) -> None:
    with Local(run_cell(CELL)["app"], Settings(home=tmp_path / "home")) as local:
        local.train(data)
        local.predict({"word": "tea"})
        data.write_text("a\nb\n")
        local.train(data)
        assert local.predict({"word": "tea"}) == ["tea", 2.0]


def test_close_unloads_models_and_predict_loads_them_again(tmp_path: Path, data: Path) -> None:
    cell = run_cell(CELL)
    with Local(cell["app"], Settings(home=tmp_path / "home")) as local:
        model_id = local.train(data)
        local.predict({"word": "tea"})
        local.close()
        assert cell["closed"] == [model_id]
        assert local.predict({"word": "tea"}) == ["tea", 4.0]


def test_failures_are_exceptions_with_the_author_s_traceback_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Local(mood.app, Settings(home=tmp_path / "home")) as local:
        with pytest.raises(TrainFailed, match="ValueError: no luck"):
            local.train(parameters={"fail": "no luck"}, algorithm="mood")
        assert "raise ValueError(parameters.fail)" in capsys.readouterr().err
        local.train(algorithm="mood")
        assert local.predict({"sentence": "a"})[0]["label"] == "good"
        with pytest.raises((PredictFailed, UserCodeError), match="division by zero"):
            local.predict({"sentence": "boom"})


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with Local(run_cell(CELL)["app"], Settings(home=tmp_path / "home")) as local:
        with pytest.raises(ArgumentError, match="no model was trained here yet"):
            local.predict({"word": "tea"})
        with pytest.raises(ArgumentError, match="there is no file"):
            local.train(tmp_path / "missing.tsv")
        with pytest.raises(ArgumentError, match="location"):
            local.train()


def test_interrupt_waits_for_the_end_of_the_training(tmp_path: Path) -> None:
    cell = run_cell(ENDLESS)

    def interrupt() -> None:
        cell["started"].wait(LONG)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with Local(cell["app"], Settings(home=tmp_path / "home")) as local, pytest.raises(KeyboardInterrupt):
        local.train()
    assert cell["ended"] == [KeyboardInterrupt]
