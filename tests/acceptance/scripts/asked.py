"""A model that answers its word; each is loaded when a prediction asks for it, and counts 10 MiB.

While the file that `DEADLY` names is there, a load ends its worker.
"""

import os
import signal
from pathlib import Path
from typing import Any

import msgspec

from mlpkit import App, ModelDir

app = App("asked")


class Parameters(msgspec.Struct):
    word: str


@app.train
def train(parameters: Parameters, out: ModelDir) -> None:
    (out / "word").write_text(parameters.word, encoding="utf-8")


@app.load(lazy=True, memory="10MiB")
def load(files: ModelDir) -> str:
    if Path(os.environ["DEADLY"]).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    print("loads", files.model_id)
    return (files / "word").read_text(encoding="utf-8")


@app.predict
def predict(model: str, features: dict[str, Any]) -> str:
    return model
