"""Two algorithms whose trainings store a word, for the tests of aliases and stored models."""

from __future__ import annotations

from mlpkit import App, ModelDir

app = App("word")
other = app.algorithm("other")


@app.model_id
@other.model_id
def model_id(extend: dict[str, str]) -> str:
    return extend["id"]


@app.train
@other.train
def train(parameters: dict[str, str], out: ModelDir) -> None:
    (out / "word.txt").write_text(parameters["word"])


@app.load
@other.load
def load(files: ModelDir) -> str:
    return (files / "word.txt").read_text()


@app.predict
@other.predict
def predict(model: str, features: dict[str, str]) -> str:
    return model
