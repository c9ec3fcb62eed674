"""Answers with the number of predictions that its call was given."""

from __future__ import annotations

from typing import Any

from mlpkit import App

app = App("counting")


@app.load
def load() -> None:
    return None


@app.predict(max_batch_size=32)
def predict(model: None, features: list[Any]) -> list[int]:
    return [len(features)] * len(features)
