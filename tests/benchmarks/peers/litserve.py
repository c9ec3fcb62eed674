"""LitServe: a LitAPI, batches by its own loop. It reads the annotations of a LitAPI, so they must not be text."""

import os
from typing import Any

import litserve
from fastapi import Request, Response

from tests.benchmarks.workloads import COMPANY_SECONDS, LARGEST_BATCH, WORKLOADS

name = os.environ["WORKLOAD"]
make, call = WORKLOADS[name]


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = make()

    def decode_request(self, request: Request) -> Any:
        return request["features"]

    def predict(self, features: Any) -> Any:
        return call(self.model, features if name == "W3" else [features])

    def unbatch(self, answers: list[Any]) -> list[Any]:
        return answers

    def encode_response(self, answer: Any) -> Response:
        return {"predictions": answer}


if __name__ == "__main__":
    api = Api(max_batch_size=LARGEST_BATCH, batch_timeout=COMPANY_SECONDS) if name == "W3" else Api()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(os.environ["WORKERS"]))
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=int(os.environ["WORKERS"]),
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
