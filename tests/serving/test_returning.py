"""Models whose worker has died, or that cannot come back: who waits for them, and what an unload makes of it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from pathlib import Path

import msgspec
import pytest

from mlpkit.errors import ModelNotLoaded, TimeLimitExceeded, WorkerNotReady
from mlpkit.log import configure
from mlpkit.serving.messages import Load
from mlpkit.serving.worker import ProcessWorker, request_ids
from mlpkit.serving.worker import ask as ask_worker
from mlpkit.settings import Settings
from tests.servers import until
from tests.serving.conftest import OpenModels
from tests.serving.test_models import ask

pytestmark = pytest.mark.anyio

STUCK = """
import time
app = App("stuck")

@app.load
def load():
    return 1

@app.predict(timeout=0.5, max_batch_size=4)
def predict(model, features: list):
    if "stuck" in features:
        time.sleep(60)
    return features
"""

FRAIL = """
import os, time
from pathlib import Path
app = App("frail")

@app.load{options}
def load():
    Path(os.environ["HERE"], "loading").touch()
    while Path(os.environ["HERE"], "wait").exists():
        time.sleep(0.01)
    if Path(os.environ["HERE"], "fail").exists():
        raise RuntimeError("not now")
    if Path(os.environ["HERE"], "die").exists():
        os._exit(3)
    return 1

@app.unload
def unload():
    while Path(os.environ["HERE"], "stay").exists():
        time.sleep(0.01)

@app.predict
def predict(model, features):
    return os.getpid()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files tell the script what to do."""
    monkeypatch.setenv("HERE", str(tmp_path))
    return tmp_path


async def test_what_waits_behind_a_stuck_batch_is_answered_by_the_next_worker(open_models: OpenModels) -> None:
    async with open_models(STUCK) as models:
        await models.load("stuck", "m")
        stuck = asyncio.ensure_future(ask(models, features="stuck"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(ask(models, features="fine"))
        with pytest.raises(TimeLimitExceeded, match=r"0\.5 s"):
            await stuck
        assert await waiting == "fine"


async def test_unload_of_a_model_that_is_being_restored_holds_though_its_load_fails(
    open_models: OpenModels, here: Path
) -> None:
    script = FRAIL.format(options="")
    async with open_models(script) as models:
        await models.load("frail", "m")
    for each in ("wait", "fail"):
        (here / each).touch()
    (here / "loading").unlink()
    async with open_models(script) as models:
        await until((here / "loading").exists)
        unload = asyncio.ensure_future(models.unload("m"))
        await asyncio.sleep(0)
        (here / "wait").unlink()
        await unload
        (here / "fail").unlink()
        # The next try would come after a second.
        with pytest.raises(TimeoutError):
            await until(lambda: models.listed() != [], seconds=1.5)
    assert msgspec.json.decode((here / "home" / "models.json").read_bytes()) == []


async def test_a_prediction_is_told_that_its_model_is_being_loaded_again(open_models: OpenModels, here: Path) -> None:
    script = FRAIL.format(options="")
    async with open_models(script) as models:
        await models.load("frail", "m")
    (here / "wait").touch()
    async with open_models(script) as models:
        with pytest.raises(
            ModelNotLoaded, match=r"^model \[m\] not loaded: it is being loaded again, see GET /models$"
        ):
            await ask(models)
        with pytest.raises(ModelNotLoaded, match=r"^model \[never\] not loaded$"):
            await ask(models, "never")
        (here / "wait").unlink()
        await until(lambda: [each.state for each in models.listed()] == ["loaded"], seconds=20)
        assert isinstance(await ask(models), int)
        await models.unload("m")
        with pytest.raises(ModelNotLoaded, match=r"^model \[m\] not loaded$"):
            await ask(models)


async def test_unload_of_a_model_that_is_being_given_up_drops_it_once(open_models: OpenModels, here: Path) -> None:
    async with open_models(FRAIL.format(options="(replicas=2)"), workers=2) as models:
        await models.load("frail", "m")
        pid = await ask(models)
        assert isinstance(pid, int)
        for each in ("die", "stay"):
            (here / each).touch()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: [each.state for each in models.listed()] == ["unloading"], seconds=20)
        with pytest.raises(ModelNotLoaded):
            await ask(models)
        unload = asyncio.ensure_future(models.unload("m"))
        await asyncio.sleep(0)
        (here / "stay").unlink()
        await unload
        assert models.counts("frail").predictions == 1
        assert models.warnings() == []


async def test_many_slow_models_are_loaded_together_and_come_back_within_their_limits(
    open_models: OpenModels, here: Path
) -> None:
    script = """
import os, time
app = App("slow")

@app.load(timeout=2)
def load():
    if os.path.exists(os.environ["HERE"] + "/slow"):
        time.sleep(0.5)
    return 1

@app.predict
def predict(model, features):
    return os.getpid()
"""
    async with open_models(script) as models:
        (here / "slow").touch()
        await asyncio.gather(*(models.load("slow", f"m{number}") for number in range(48)))
        pid = await ask(models, "m0")
        assert isinstance(pid, int)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: models.problems() != [])
        await until(lambda: models.problems() == [], seconds=30)
        assert models.restarts == 1


async def test_load_that_has_not_reached_a_worker_is_not_held_against_its_model(tmp_path: Path) -> None:
    script = tmp_path / "unreached.py"
    script.write_text(f"from mlpkit import App\n{STUCK}", encoding="utf-8")
    log = configure(stream=io.StringIO())
    worker = ProcessWorker(0, f"{script}:app", Settings(home=tmp_path / "home"), log, name="worker-0")
    await worker.start()
    worker.kill("was ended for the test")
    load = Load(next(request_ids), "stuck", "m", None, b"null", None, "-")
    # `WorkerLost` alone would say that the load may have ended it.
    with pytest.raises(WorkerNotReady):
        await ask_worker(worker, load, 5.0)
    await worker.stop(1.0)
