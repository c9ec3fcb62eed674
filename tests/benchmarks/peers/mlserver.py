"""MLServer: an MLModel behind the V2 protocol, with its adaptive batching."""

from __future__ import annotations

import json
import os
from typing import Any

from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from tests.benchmarks.workloads import WORKLOADS

make, call = WORKLOADS[os.environ["WORKLOAD"]]


class Benchmark(MLModel):
    async def load(self) -> bool:
        self.model = make()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = payload.inputs[0]
        batch: list[Any]
        if given.datatype == "BYTES":
            batch = [{"text": each} for each in StringCodec.decode_input(given)]
        else:
            batch = [{"row": row} for row in NumpyCodec.decode_input(given)]
        answers = [json.dumps(each) for each in call(self.model, batch)]
        return InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output("predictions", answers)])
