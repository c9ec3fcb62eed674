"""The algorithms of the soak: every way to serve a model, and trainings that end in every way."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mlpkit import App, ModelDir, Progress

FOLDER = Path(os.environ["SOAK_FOLDER"])
BALLAST = 2 << 20
"""Bytes that a model holds, so that one that is not let go shows in the memory of its worker."""

app = App("shared")
batched = app.algorithm("batched")
isolated = app.algorithm("isolated")
coroutine = app.algorithm("coroutine")


class Question(msgspec.Struct):
    """The request's `features`: what the answer must repeat, and how long it may take."""

    nonce: str
    seconds: float = 0.0


class Order(msgspec.Struct):
    """The request's `parameter`: how the training goes, and the word that its model answers with."""

    word: str = ""
    do: str = "finish"
    seconds: float = 0.0


@contextmanager
def alone(model_id: str) -> Iterator[None]:
    """Notes it where a job runs twice at a time."""
    with (FOLDER / f"{model_id}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (FOLDER / f"{model_id}.twice").touch()
        yield


@app.train(max_attempts=3)
@batched.train(max_attempts=3)
@isolated.train(max_attempts=3)
@coroutine.train(max_attempts=3)
def train(model_id: str, parameters: Order, out: ModelDir, progress: Progress) -> None:
    with alone(model_id):
        (out / "word").write_text(parameters.word)
        for _ in progress.track(range(10), "work"):
            time.sleep(parameters.seconds / 10)
        match parameters.do:
            case "raise":
                raise RuntimeError("as it was ordered")
            case "exit":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)


@app.load
@batched.load
@isolated.load(isolated=True)
@coroutine.load
def load(files: ModelDir) -> dict[str, Any]:
    return {"word": (files / "word").read_text(), "ballast": os.urandom(BALLAST)}


@app.predict(threads=2)
@isolated.predict
def predict(model: dict[str, Any], features: Question, model_id: str) -> dict[str, str]:
    time.sleep(features.seconds)
    return {"nonce": features.nonce, "word": model["word"], "model_id": model_id}


@batched.predict(max_batch_size=8)
def predict_batch(model: dict[str, Any], features: list[Question], model_id: str) -> list[dict[str, str]]:
    time.sleep(max(each.seconds for each in features))
    return [{"nonce": each.nonce, "word": model["word"], "model_id": model_id} for each in features]


@coroutine.predict
async def predict_async(model: dict[str, Any], features: Question, model_id: str) -> dict[str, str]:
    await asyncio.sleep(features.seconds)
    return {"nonce": features.nonce, "word": model["word"], "model_id": model_id}
