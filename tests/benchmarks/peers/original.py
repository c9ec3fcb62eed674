"""ml-platform-client, whose wire protocol mlpkit speaks: an algorithm and a predictor in its Flask application."""

from __future__ import annotations

import os
from typing import Any

from ml_platform_client.algorithm_base import AlgorithmBase, PredictorBase
from ml_platform_client.dispatcher import register
from ml_platform_client.server import app, set_preload_models

from tests.benchmarks.workloads import WORKLOADS

make, call = WORKLOADS[os.environ["WORKLOAD"]]


class Predictor(PredictorBase):
    def predict(self, features: Any, params: Any) -> Any:
        return call(self.model, [features])[0]


class Algorithm(AlgorithmBase):
    def train(self, *arguments: Any) -> None:
        raise NotImplementedError

    def load(self, model_id: str, model_path: str) -> Predictor:
        return Predictor(make())


register("bench", Algorithm)
set_preload_models("bench", ["m"])
__all__ = ["app"]
