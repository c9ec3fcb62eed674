"""Ray Serve: one deployment, `serve.batch` for the workload that gains by it."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
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
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=4, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False, _temp_dir=folder
        )
        serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
        application = Benchmark.bind()  # type: ignore[attr-defined]
        serve.run(application, route_prefix="/predict", logging_config={"enable_access_log": False})
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
        try:
            signal.pause()
        finally:
            serve.shutdown()
            ray.shutdown()
