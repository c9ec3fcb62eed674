"""The seam behind the queue: an engine that is not mlpkit's own gets the jobs, and the queue keeps its rules."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from mlpkit.errors import ArgumentError, JobConflict, SettingsError
from mlpkit.log import configure
from mlpkit.script import import_app
from mlpkit.settings import Settings
from mlpkit.training import TrainingQueue
from mlpkit.training.engine import ENGINES, Engine, make_engine
from tests.training.conftest import WriteScript, end_of, job, reached, train
from tests.training.thread_engine import ThreadEngine

SCRIPT = """
import threading, time
from pathlib import Path
from mlpkit import App, ModelDir, Progress

app = App("it")
gpu = app.algorithm("gpu")

@app.train
def train(model_id: str, parameters: dict, progress: Progress, out: ModelDir):
    progress.update(0.5, "half", thread=threading.current_thread().name)
    if parameters.get("fail"):
        raise ValueError("boom")
    while "go" in parameters and not Path(parameters["go"]).exists():
        time.sleep(0.01)
    (out / "weights").write_text(model_id)

@gpu.train(gpus=1)
def train_on_gpu():
    pass
"""

pytestmark = pytest.mark.anyio


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "threads", "tests.training.thread_engine:ThreadEngine")


async def test_engine_from_outside_runs_the_jobs(
    threads: None, write_script: WriteScript, home: Path, tmp_path: Path, lines: io.StringIO
) -> None:
    target = write_script(SCRIPT)
    settings = Settings(home=home, engine="threads", train_queue_size=5)
    engine = make_engine(settings.engine, target, settings)
    assert isinstance(engine, ThreadEngine)
    queue = TrainingQueue(import_app(target).build(), target, settings, configure(stream=lines), engine=engine)
    await queue.open()
    try:
        await queue.submit(job("a", go=str(tmp_path / "go")))
        await queue.submit(job("b"))
        await queue.submit(job("c"))
        await reached(queue, "a", lambda each: each.state == "training")
        assert await queue.usage("a") is None
        with pytest.raises(JobConflict, match="has no stack of its own"):
            await queue.stack("a")
        assert [queue.position(name) for name in "abc"] == [None, 1, 2]
        assert (await queue.cancel("b")).message == "cancelled"
        (tmp_path / "go").touch()
        ended = await end_of(queue, "a")
        assert ended.progress is not None
        assert (ended.state, ended.progress.fraction) == ("completed", 1.0)
        assert "AnyIO worker thread" in str(ended.progress.metrics["thread"])
        assert (await end_of(queue, "c")).state == "completed"
        assert (await train(queue, job("d", fail=True))).message == "ValueError: boom"
        with pytest.raises(ArgumentError, match="threads have no GPUs"):
            await queue.submit(job("e", "gpu"))
        assert "runs in a thread" in queue.log_path("a").read_text()
    finally:
        await queue.close()

    assert (home / "storage/ml-platform-model/a/weights").read_text() == "a"
    assert engine.calls == ["open", "close"]
    assert list((home / "work").iterdir()) == []


async def test_setting_chooses_the_engine(threads: None, write_script: WriteScript, home: Path) -> None:
    target = write_script(SCRIPT)
    settings = Settings(home=home, engine="threads")
    queue = TrainingQueue(import_app(target).build(), target, settings, configure(stream=io.StringIO()))
    await queue.open()
    try:
        assert (await train(queue, job("a"))).state == "completed"
        found = queue.job("a")
        assert found is not None
        assert found.progress is not None
        assert "AnyIO worker thread" in str(found.progress.metrics["thread"])
    finally:
        await queue.close()


def test_unknown_engine_is_refused_with_what_there_is(home: Path) -> None:
    with pytest.raises(SettingsError, match=r"unknown engine 'lokal': did you mean 'local'\?|one of local"):
        make_engine("lokal", "script.py:app", Settings(home=home))


def test_local_engine_is_an_engine(home: Path) -> None:
    engine: Engine = make_engine(Settings().engine, "script.py:app", Settings(home=home))
    assert type(engine).__name__ == "LocalEngine"
