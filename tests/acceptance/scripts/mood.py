"""A classifier of two words: it needs its training data and its model's files, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from mlpkit import App, ModelDir, TrainData
from mlpkit.formats import Label

app = App("mood", kind="text_classification")


class Sentence(msgspec.Struct):
    """The request's `features`."""

    sentence: str


@app.train
def train(data: TrainData, out: ModelDir) -> None:
    words = {row.sentence: row.label for row in data.rows()}
    (out / "words.json").write_text(json.dumps(words), encoding="utf-8")


@app.load
def load(files: ModelDir) -> dict[str, Any]:
    words: dict[str, Any] = json.loads((files / "words.json").read_text(encoding="utf-8"))
    return words


@app.predict
def predict(model: dict[str, Any], features: Sentence) -> list[Label]:
    return [Label(model.get(features.sentence, "unknown"), 100.0)]
