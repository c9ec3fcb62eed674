"""Ray Serve: one deployment, `serve.batch` for the workload that gains by it."""

from __future__ import annotations

import os
import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from tests.benchmarks.workloads import COMPANY_SECONDS, LARGEST_BATCH, WORKLOADS

name = os.environ["WORKLOAD"]
make, call = WORKLOADS[name]


@serve.deployment(num_replicas=int(os.environ["WORKERS"]), max_ongoing_requests=128)
class Benchmark:
    def __init__(self) -> None:
        self.model = make()

    @serve.batch(max_batch_size=LARGEST_BATCH, batch_wait_timeout_s=COMPANY_SECONDS)
    async def together(self, features: list[Any]) -> list[Any]:
        return call(self.model, features)

    async def __call__(self, request: Request) -> dict[str, Any]:
        features = (await request.json())["features"]
        answer = await self.together(features) if name == "W3" else call(self.model, [features])[0]
        return {"predictions": answer}


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Benchmark.bind(), route_prefix="/predict", logging_config={"enable_access_log": False})  # type: ignore[attr-defined]
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
