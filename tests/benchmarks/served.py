"""The workload as an author would write it with mlpkit."""

from __future__ import annotations

import os
from typing import Any

from mlpkit import App
from tests.benchmarks.workloads import WORKLOADS

name = os.environ["WORKLOAD"]
make, call = WORKLOADS[name]
app = App("bench")


@app.load(preload=["m"], replicas=2 if name == "W4" else 1)
def load() -> Any:
    return make()


if name == "W3":

    @app.predict(max_batch_size=32)
    def predict_batch(model: Any, features: list[dict[str, Any]]) -> list[Any]:
        return call(model, features)

else:

    @app.predict
    def predict(model: Any, features: dict[str, Any]) -> Any:
        return call(model, [features])[0]
