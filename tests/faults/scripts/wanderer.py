"""Changes the working directory wherever `WANDER_IN` says, as scripts do to find their files."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from mlpkit import App, ModelDir, TrainData

WANDER_IN, WANDER_TO = os.environ["WANDER_IN"], os.environ["WANDER_TO"]


def wander(hook: str) -> None:
    """Leaves for the other folder."""
    if hook == WANDER_IN:
        os.chdir(WANDER_TO)


wander("import")
app = App("wanderer")


@app.train
def train(data: TrainData, out: ModelDir) -> None:
    wander("train")
    (out / "text.txt").write_text(data.path.read_text())


@app.load
def load(files: ModelDir) -> str:
    wander("load")
    name: str = importlib.import_module("beside_the_script").NAME

    assert all(os.path.isabs(entry) for entry in sys.path)
    return name + (files / "text.txt").read_text()


@app.predict
def predict(model: str, features: Any) -> list[str]:
    wander("predict")
    return [model, os.getcwd()]
