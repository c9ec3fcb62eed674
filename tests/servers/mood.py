"""A small algorithm for tests of everything around algorithms: it learns in no time and answers the same for ever.

The request's `parameter` says how the training goes: `fail`, `seconds` to take, `steps` to report, further `metrics`
and `files`.
"""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec

from mlpkit import App, Log, ModelDir, Progress
from mlpkit.formats import Label

app = App("mood", kind="text_classification", examples=[{"sentence": "good day"}])


class Course(msgspec.Struct):
    """How a training goes."""

    fail: str = ""
    seconds: float = 0.0
    steps: int = 0
    metrics: dict[str, Any] = {}
    files: dict[str, str] = {}


class Sentence(msgspec.Struct):
    """The request's `features`."""

    sentence: str


@app.train
def train(parameters: Course, out: ModelDir, progress: Progress, log: Log) -> None:
    log.info("a line of the job")
    for _ in progress.track(range(parameters.steps), "count"):
        time.sleep(parameters.seconds / parameters.steps)
    if not parameters.steps:
        time.sleep(parameters.seconds)
    if parameters.fail:
        raise ValueError(parameters.fail)
    progress.update(accuracy=0.5, **parameters.metrics)
    for name, content in parameters.files.items():
        (out / name).write_text(content, encoding="utf-8")
    (out / "model.json").write_text(json.dumps({"good": 80.0}), encoding="utf-8")


@app.load
def load(files: ModelDir) -> dict[str, float]:
    model: dict[str, float] = json.loads((files / "model.json").read_text(encoding="utf-8"))
    return model


@app.predict(threads=2, timeout=1.0)
def predict(model: dict[str, float], features: Sentence) -> list[Label]:
    if features.sentence == "slow":
        time.sleep(3)
    if features.sentence == "boom":
        raise ZeroDivisionError("division by zero")
    return [Label("good", model["good"]), Label("bad", 100 - model["good"])]


other = app.algorithm("other")


@other.load
def load_other() -> None:
    return None


@other.predict
def predict_other(model: None, features: Any) -> Any:
    return features
