"""Models on the nodes of a cluster, and the same models here."""

from __future__ import annotations

import os
import time

import msgspec

from mlpkit import App

app = App("spread")
near = app.algorithm("near")
slow = app.algorithm("slow")
slow_near = app.algorithm("slow_near")
gpu = app.algorithm("gpu")
nine_gpus = app.algorithm("nine_gpus")


class Number(msgspec.Struct):
    """The request's `features`."""

    number: int


def load(model_id: str) -> str:
    return model_id


def square(model: str, features: Number) -> int:
    return features.number**2


def squares_in_10_ms(model: str, features: list[Number]) -> list[int]:
    time.sleep(0.01)
    return [each.number**2 for each in features]


def process(model: str, features: Number) -> list[str]:
    return [str(os.getpid()), os.environ.get("CUDA_VISIBLE_DEVICES", "")]


app.load(placement="cluster", replicas=4)(load)
app.predict(square)
near.load(isolated=True, replicas=4)(load)
near.predict(square)
slow.load(placement="cluster", replicas=4)(load)
slow.predict(max_batch_size=16)(squares_in_10_ms)
slow_near.load(isolated=True, replicas=4)(load)
slow_near.predict(max_batch_size=16)(squares_in_10_ms)
gpu.load(placement="cluster", gpus=1)(load)
gpu.predict(process)
nine_gpus.load(placement="cluster", gpus=9)(load)
nine_gpus.predict(process)
