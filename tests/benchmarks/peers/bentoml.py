"""BentoML: a service with one API; the batchable one takes a list of rows, as its documentation asks for."""

from __future__ import annotations

import os
from typing import Any

import bentoml

from tests.benchmarks.workloads import LARGEST_BATCH, WORKLOADS

name = os.environ["WORKLOAD"]
make, call = WORKLOADS[name]
settings: dict[str, Any] = {
    "workers": int(os.environ["WORKERS"]),
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
}

if name == "W3":

    @bentoml.service(**settings)
    class Benchmark:
        def __init__(self) -> None:
            self.model = make()

        @bentoml.api(batchable=True, max_batch_size=LARGEST_BATCH, max_latency_ms=1000)
        def predict(self, features: list[dict[str, Any]]) -> list[float]:
            return call(self.model, features)

else:

    @bentoml.service(**settings)
    class Benchmark:  # type: ignore[no-redef]
        def __init__(self) -> None:
            self.model = make()

        @bentoml.api
        def predict(self, features: dict[str, Any]) -> Any:
            return call(self.model, [features])[0]
