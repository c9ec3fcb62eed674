"""An algorithm that does with its model nothing but keep it: in the store, in the cache, in memory."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import msgspec

from mlpkit import App, ModelDir, Storage

app = App("storing")
dry = app.algorithm("dry")
again = app.algorithm("again")


class Work(msgspec.Struct):
    """The request's `parameter`: how large the model's files are, what to wait for, and how much to print then."""

    size: int = 0
    lines: int = 0
    go: str = ""


def wait_for(file: str) -> None:
    while file and not Path(file).exists():
        time.sleep(0.02)


class What(msgspec.Struct):
    """The request's `features`: an object of the store, or nothing for the model itself."""

    path: str = ""


@app.train
def train(parameters: Work, out: ModelDir) -> None:
    for number in range(2):
        (out / f"{number}.bin").write_bytes(b"x" * parameters.size)


@dry.train
@again.train(max_attempts=2)
def train_dry(parameters: Work) -> None:
    """Needs no disk but for what it prints."""
    wait_for(parameters.go)
    for number in range(parameters.lines):
        print("line", number, "x" * 1000)
    if parameters.lines:
        wait_for(f"{parameters.go} on")
        print("the last line")


@app.load
def load(files: ModelDir) -> ModelDir:
    return files


@app.predict
def predict(model: Any, features: What, storage: Storage) -> dict[str, str]:
    """The digests of the model's files, or of an object of the store."""
    files = [storage.fetch(features.path)] if features.path else sorted(model.path.iterdir())
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in files}
