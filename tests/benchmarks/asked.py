"""Models that are loaded when somebody asks: each is a file of 2 MiB, and counts as much."""

from __future__ import annotations

from mlpkit import App, ModelDir

SIZE = 2 << 20
app = App("asked")


@app.load(lazy=True, memory=SIZE)
def load(files: ModelDir) -> bytes:
    return (files / "weights").read_bytes()


@app.predict
def predict(model: bytes) -> int:
    return len(model)
