from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlpkit.check import CheckReport, CheckRun, StepResult, run_check, started
from mlpkit.client import LocalFiles
from tests.servers import LONG
from tests.servers.foreign import foreign_service

SCRIPT = """
import json, os, signal, sys, threading, time
from typing import Any
import msgspec
from mlpkit import App, ModelDir, TrainData
from mlpkit.formats import Label

app = App("mood", kind="text_classification", examples=[{"sentence": "good day"}, {"sentence": "bad day"}])

class Hyper(msgspec.Struct):
    top: float = 80.0

class Sentence(msgspec.Struct):
    sentence: str
"""
TRAIN = """
@app.train
def train(parameters: Hyper, out: ModelDir) -> None:
    (out / "model.json").write_text(json.dumps({"top": parameters.top}))
"""
LOAD = """
@app.load
def load(files: ModelDir) -> dict[str, Any]:
    return json.loads((files / "model.json").read_text())
"""
PREDICT = """
@app.predict
def predict(model: dict[str, Any], features: Sentence) -> list[Label]:
    good = "good" in features.sentence
    return [Label("good" if good else "bad", model["top"]), Label("bad" if good else "good", 100 - model["top"])]
"""


_numbers = itertools.count()
"""A module can be imported once under its name."""


class Checked:
    """A report, with its outcomes by step."""

    def __init__(self, report: CheckReport) -> None:
        self.report = report
        self.steps: dict[str, StepResult] = {outcome.step: outcome for outcome in report.outcomes}

    @property
    def failed(self) -> dict[str, str]:
        return {name: outcome.sentence for name, outcome in self.steps.items() if outcome.verdict == "failed"}


Check = Callable[..., Checked]


@pytest.fixture(scope="session")
def foreign() -> Iterator[str]:
    """The address of a running service that is not mlpkit."""
    with foreign_service() as url:
        yield url


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Checks a script made of a sound one, with other hooks in place of some of it."""

    def run(
        *,
        train: str = TRAIN,
        load: str = LOAD,
        predict: str = PREDICT,
        more: str = "",
        data: str | None = None,
        timeout: float = LONG,
    ) -> Checked:
        script = tmp_path / f"mood_{next(_numbers)}.py"
        script.write_text(
            SCRIPT + "".join(textwrap.dedent(each) for each in (train, load, predict, more)), encoding="utf-8"
        )
        file = None
        if data is not None:
            file = tmp_path / "data.tsv"
            file.write_text(data, encoding="utf-8")
        with started(str(script), None, []) as service:
            return Checked(run_check(CheckRun(service, LocalFiles(file), {}, timeout)))

    return run
