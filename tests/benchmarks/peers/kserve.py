"""KServe: a Model behind the V1 protocol, called on the loop; it has no batches of its own."""

from __future__ import annotations

import logging
import os
from typing import Any

import uvicorn
from kserve import Model, ModelServer
from kserve.protocol.rest import server

from tests.benchmarks.workloads import WORKLOADS

make, call = WORKLOADS[os.environ["WORKLOAD"]]
# Every process of KServe sets its levels anew; a filter stays.
logging.getLogger("kserve.trace").addFilter(lambda record: False)


class Benchmark(Model):
    def __init__(self) -> None:
        super().__init__("m")
        self.model = make()
        self.ready = True

    async def predict(self, payload: dict[str, Any], headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": call(self.model, payload["instances"])}


class OnLoopback(uvicorn.Config):
    """KServe listens on every address and logs every request, and has a switch for neither."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **(options | {"host": "127.0.0.1", "access_log": False}))


if __name__ == "__main__":
    server.uvicorn.Config = OnLoopback
    workers = int(os.environ["WORKERS"])
    served = ModelServer(int(os.environ["PORT"]), workers=workers, enable_grpc=False, enable_latency_logging=False)
    served.start([Benchmark()])
