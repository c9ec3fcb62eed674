"""Models see the GPUs that they ask for, and no others. The devices are names only: nothing here needs a real one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from mlpkit.errors import ArgumentError, LoadFailed
from mlpkit.serving import Models
from tests.acceptance.service import RunningService
from tests.servers import LONG
from tests.serving.conftest import OpenModels, prediction_of

pytestmark = pytest.mark.anyio

SCRIPT = """
import os

SEEN = os.environ.get("CUDA_VISIBLE_DEVICES")  # as a library sees it when the script imports it
app = App("whole")
half = app.algorithm("half")
pair = app.algorithm("pair")
none = app.algorithm("none")

def load(): return SEEN
def predict(model, features): return model

app.load(gpus=1)(load)
half.load(gpus=0.5, replicas=2)(load)
pair.load(gpus=2)(load)
none.load(load)
for algorithm in (app, half, pair, none):
    algorithm.predict(predict)
"""


async def seen(models: Models, model_id: str) -> Any:
    return msgspec.json.decode(await prediction_of(models, model_id, b"{}"))


def devices(models: Models) -> dict[str, list[list[str]]]:
    """The devices of the workers that hold each model."""
    found: dict[str, list[list[str]]] = {}
    for worker in models.workers():
        for model_id in worker.models:
            found.setdefault(model_id, []).append(worker.devices)
    return found


async def test_each_model_sees_its_own_devices_from_the_import_on(open_models: OpenModels) -> None:
    async with open_models(SCRIPT, gpus=("3", "5")) as models:
        await models.load("whole", "a")
        await models.load("half", "b")
        await models.load("none", "c")
        assert [await seen(models, each) for each in "abc"] == ["3", "5", None]
        assert devices(models) == {"a": [["3"]], "b": [["5"], ["5"]], "c": [[]]}


async def test_a_model_without_free_devices_is_refused_and_takes_none(open_models: OpenModels) -> None:
    async with open_models(SCRIPT, gpus=("0", "1")) as models:
        await models.load("whole", "a")
        with pytest.raises(LoadFailed, match="needs 2 GPUs of MLPKIT_GPUS, and other models or jobs have them"):
            await models.load("pair", "b")
        await models.load("whole", "c")
        with pytest.raises(LoadFailed, match=r"needs 0\.5 GPU"):
            await models.load("half", "d")
        await models.unload("a")
        await models.load("half", "d")
        assert devices(models) == {"c": [["1"]], "d": [["0"], ["0"]]}
        assert len(models.workers()) == 4


async def test_more_devices_than_the_service_has_are_refused(open_models: OpenModels) -> None:
    async with open_models(SCRIPT, gpus=("0",)) as models:
        with pytest.raises((ArgumentError, LoadFailed), match="asks for 2 GPUs, this service has 1"):
            await models.load("pair", "a")


async def test_a_worker_that_is_replaced_keeps_its_devices(open_models: OpenModels) -> None:
    async with open_models(SCRIPT, gpus=("0", "1")) as models:
        await models.load("whole", "a")
        await models.load("whole", "b")
        (worker,) = [worker for worker in models.workers() if worker.models == ["b"]]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with anyio.fail_after(LONG):
            while not any(each.models == ["b"] and each.pid != worker.pid for each in models.workers()):  # noqa: ASYNC110
                await anyio.sleep(0.02)
        assert await seen(models, "b") == "1"
        assert devices(models) == {"a": [["0"]], "b": [["1"]]}


async def test_the_devices_that_the_user_has_chosen_are_what_all_see(
    open_models: OpenModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    async with open_models(SCRIPT, gpus=("0",)) as models:
        await models.load("whole", "a")
        assert await seen(models, "a") == "7"


JOBS_AND_MODELS = """
import os
import pathlib

from mlpkit import App, ModelDir

app = App("it")

@app.train(gpus=1)
def train(out: ModelDir):
    (out / "device").write_text(os.environ["CUDA_VISIBLE_DEVICES"])

@app.load(gpus=1)
def load(files: ModelDir):
    return (files / "device").read_text(), os.environ["CUDA_VISIBLE_DEVICES"]

@app.predict
def predict(model, features):
    return list(model)
"""


async def test_a_job_waits_while_a_model_has_the_only_device(tmp_path: Path) -> None:
    (tmp_path / "it.py").write_text(JOBS_AND_MODELS)
    service = RunningService(f"{tmp_path}/it.py:app", tmp_path / "home", {"MLPKIT_GPUS": "4"})
    try:
        service.wait_ready()
        first = service.client.train("it")
        assert first.wait(LONG).status == "completed"
        service.client.load("it", first.model_id)
        assert service.client.predict(first.model_id, {}) == ["4", "4"]
        second = service.client.train("it")
        waiting = second.status()
        assert (waiting.status, waiting.message) == ("init", "waits for 1 GPU: 0 of 1 are free now")
        service.client.unload("it", first.model_id)
        assert second.wait(LONG).status == "completed"
    finally:
        service.stop()
