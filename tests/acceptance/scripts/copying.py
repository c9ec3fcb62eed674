"""A model is what its training data said."""

from __future__ import annotations

from mlpkit import App, ModelDir, TrainData

app = App("copying")


@app.train
def train(data: TrainData, out: ModelDir) -> None:
    (out / "content").write_bytes(data.path.read_bytes())


@app.load
def load(files: ModelDir) -> str:
    return (files / "content").read_text(encoding="utf-8")


@app.predict
def predict(model: str) -> str:
    return model
