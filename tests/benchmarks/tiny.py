"""A script that takes no time and no memory of its own: what is measured with it is mlpkit."""

from __future__ import annotations

import time
from pathlib import Path

from mlpkit import App

app = App("tiny")


@app.train
def train(parameters: dict[str, str]) -> None:
    Path(parameters["began"]).write_text(str(time.time()))


@app.load
def load(model_id: str) -> str:
    return model_id


@app.predict
def predict(model: str, features: dict[str, str]) -> str:
    return model
