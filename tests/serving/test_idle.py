"""When an unload need not wait any more: at once where nobody asks, and when the last caller is answered or gone."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from mlpkit import App
from mlpkit.errors import ModelNotLoaded
from mlpkit.serving.dispatch import Dispatcher
from tests.servers import LONG, SOON
from tests.serving.conftest import OpenModels, prediction_of

pytestmark = pytest.mark.anyio

SLOW = """
import os, time
app = App("slow")

@app.load
def load(model_id):
    return model_id

@app.predict
def predict(model, features):
    time.sleep(features["seconds"])
    return os.getpid()
"""


def load() -> None:
    """A model that is never asked anything."""


async def test_model_that_nobody_asks_is_idle_at_once() -> None:
    app = App("quiet")
    app.load(load)
    dispatcher = Dispatcher(app.build()["quiet"], "m", limit=60, longest_wait=60)
    assert await asyncio.wait_for(dispatcher.idle(LONG), SOON)


async def test_unload_ends_when_all_callers_have_gone(open_models: OpenModels) -> None:
    async with open_models(SLOW) as models:
        await models.load("slow", "m")
        await prediction_of(models, "m", b'{"seconds": 0.05}')
        asked = [prediction_of(models, "m", b'{"seconds": 1}') for _ in range(5)]
        unloading = asyncio.ensure_future(models.unload("m"))
        await asyncio.sleep(0)
        for each in asked:
            each.cancel()
        await asyncio.wait_for(unloading, SOON)
        assert models.placement() == {}


async def test_unload_of_a_model_whose_worker_has_just_died_fails_what_waits_for_it(open_models: OpenModels) -> None:
    async with open_models(SLOW) as models:
        await models.load("slow", "m")
        pid = int(await prediction_of(models, "m", b'{"seconds": 0}'))
        os.kill(pid, signal.SIGKILL)
        while not models.problems():  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.001)
        waits = prediction_of(models, "m", b'{"seconds": 0}')
        await asyncio.wait_for(models.unload("m"), 10)
        with pytest.raises(ModelNotLoaded):
            await waits
