"""Handlers that fail where nobody expects it: while their answer is read or written, or as if they were cancelled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from mlpkit import App

app = App("odd")
lazy = app.algorithm("lazy")
cancelled = app.algorithm("cancelled")
slow = app.algorithm("slow")
stuck = app.algorithm("stuck")


class Unwritable:
    """An answer of the author's own class that fails when it is to become JSON."""

    def serialize(self) -> object:
        raise LookupError("it cannot be written")


@app.load
@lazy.load
@slow.load
@stuck.load
def load() -> str:
    return "model"


@cancelled.load
async def load_cancelled(model_id: str) -> str:
    if model_id == "never":
        raise asyncio.CancelledError
    return "model"


@app.predict
def predict(model: str, features: dict[str, str]) -> object:
    return Unwritable() if features["say"] == "fail" else features["say"]


@lazy.predict(max_batch_size=4)
def predict_lazily(model: str, features: list[dict[str, str]]) -> Iterator[str]:
    def one(each: dict[str, str]) -> str:
        if each["say"] == "fail":
            raise LookupError("it cannot be read")
        return each["say"]

    return map(one, features)


@cancelled.predict
async def predict_cancelled(model: str, features: dict[str, str]) -> str:
    if features["say"] == "fail":
        raise asyncio.CancelledError
    return features["say"]


@stuck.status
def status() -> str:
    time.sleep(600)
    return "never"


@slow.predict
def predict_slowly(model: str, features: dict[str, str]) -> str:
    time.sleep(3)
    return features["say"]
