"""mosec: a Worker whose JSON is read and written by msgspec."""

from __future__ import annotations

import os
from typing import Any

import msgspec
from mosec import Server, Worker

from tests.benchmarks.workloads import COMPANY_SECONDS, LARGEST_BATCH, WORKLOADS

name = os.environ["WORKLOAD"]
make, call = WORKLOADS[name]


class Question(msgspec.Struct):
    features: Any


class Model(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.model = make()
        self.decoder = msgspec.json.Decoder(Question)

    def deserialize(self, data: bytes) -> Any:
        return self.decoder.decode(data).features

    def serialize(self, data: Any) -> bytes:
        return msgspec.json.encode({"predictions": data})

    def forward(self, data: Any) -> Any:
        return call(self.model, data) if name == "W3" else call(self.model, [data])[0]


if __name__ == "__main__":
    server = Server()
    batches = {"max_batch_size": LARGEST_BATCH, "max_wait_time": int(COMPANY_SECONDS * 1000)} if name == "W3" else {}
    server.append_worker(Model, num=int(os.environ["WORKERS"]), **batches)
    server.run()
