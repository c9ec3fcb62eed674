"""The examples of an algorithm are predicted before its model counts as loaded."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.servers import until
from tests.serving.conftest import OpenModels
from tests.serving.test_models import ask, read

pytestmark = pytest.mark.anyio

SCRIPT = """
import os, threading
from mlpkit.formats import Label
app = App("warm", kind="text_custom", examples=[{"text": "one"}, {"text": "two"}, {"text": EXAMPLE}])

@app.load(LOAD)
def load(model_id):
    return threading.get_ident()

@app.predict(PREDICT)
ASYNC def predict(model, features):
    if features["text"] == "bad":
        raise ValueError("a bad example")
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(features["text"] + "\\n")
    return model == threading.get_ident()
"""
BATCHED = """
import os
app = App("warm", examples=[{"text": "one"}, {"text": "two"}])

@app.load
def load():
    return None

@app.predict(max_batch_size=8)
def predict(features):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"{[each['text'] for each in features]}\\n")
    return [0 for each in features]
"""


def script(load: str = "", predict: str = "", asynchronous: str = "", example: str = '"three"') -> str:
    filled = SCRIPT.replace("LOAD", load).replace("PREDICT", predict).replace("ASYNC ", asynchronous)
    return filled.replace("EXAMPLE", example)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


@pytest.mark.parametrize(
    ("options", "asynchronous", "workers"),
    [("", "", 1), ("", "", 0), ("threads=3", "", 1), ("", "async ", 1), ("max_batch_size=1", "", 1)],
)
async def test_examples_are_predicted_once(
    open_models: OpenModels, calls: Path, options: str, asynchronous: str, workers: int
) -> None:
    async with open_models(script(predict=options, asynchronous=asynchronous), workers=workers) as models:
        await models.load("warm", "m")
        assert read(calls).split() == ["one", "two", "three"]
        # They are no predictions of a caller, and what follows is answered as ever.
        assert models.listed()[0].predictions == 0
        assert await ask(models, "m", {"text": "four"}) is (not options.startswith("threads") and not asynchronous)
        assert read(calls).split() == ["one", "two", "three", "four"]


async def test_a_batch_handler_gets_the_examples_one_by_one(open_models: OpenModels, calls: Path) -> None:
    async with open_models(BATCHED) as models:
        await models.load("warm", "m")
        assert read(calls).splitlines() == ["['one']", "['two']"]


async def test_isolated_models_are_warmed_up_too(open_models: OpenModels, calls: Path) -> None:
    async with open_models(script(load="isolated=True")) as models:
        await models.load("warm", "m")
        assert read(calls).split() == ["one", "two", "three"]
        assert await ask(models, "m", {"text": "four"}) is True


async def test_warm_up_can_be_switched_off(open_models: OpenModels, calls: Path) -> None:
    async with open_models(script(load="warm_up=False")) as models:
        await models.load("warm", "m")
        assert not list(calls.parent.glob("calls"))


@pytest.mark.parametrize(("example", "problem"), [('"bad"', "a bad example"), ("object()", "object")])
async def test_an_example_that_fails_is_a_warning_and_the_model_is_loaded(
    open_models: OpenModels, calls: Path, lines: io.StringIO, example: str, problem: str
) -> None:
    async with open_models(script(example=example)) as models:
        await models.load("warm", "m")
        assert await ask(models, "m", {"text": "four"}) is True
        warning = "model 'm' is loaded, but example 3 of 'warm' cannot be predicted: "
        await until(lambda: warning in lines.getvalue())
        assert problem in lines.getvalue().partition(warning)[2].partition("\n")[0]
