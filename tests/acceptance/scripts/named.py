"""Models that are a word each, to see which of them has answered."""

from __future__ import annotations

from mlpkit import App, ModelDir

app = App("named")


@app.train
def train(parameters: dict[str, str], out: ModelDir) -> None:
    (out / "word.txt").write_text(parameters["word"])


@app.load
def load(files: ModelDir) -> str:
    return (files / "word.txt").read_text()


@app.predict
def predict(model: str) -> str:
    return model
