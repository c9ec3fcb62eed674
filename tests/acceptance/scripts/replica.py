"""An algorithm whose answers say which replica gave them, and one whose models need no files."""

from __future__ import annotations

import os
import time
from typing import Any

from mlpkit import App, ModelDir

app = App("word")
light = app.algorithm("light")


@app.train
def train(parameters: dict[str, Any], out: ModelDir) -> None:
    time.sleep(parameters.get("seconds", 0))
    if parameters.get("fails"):
        raise ValueError("as it was told")
    (out / "word").write_text(parameters.get("word", ""), encoding="utf-8")


@app.load
def load(files: ModelDir) -> str:
    return (files / "word").read_text(encoding="utf-8")


@light.load
def load_light(model_id: str) -> str:
    return model_id


@app.predict
@light.predict
def predict(model: str) -> dict[str, str]:
    return {"word": model, "replica": os.environ["REPLICA"]}
