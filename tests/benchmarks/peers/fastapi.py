"""FastAPI: pydantic models in and out, the model called on the loop."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from tests.benchmarks.workloads import WORKLOADS

make, call = WORKLOADS[os.environ["WORKLOAD"]]
model = make()
app = FastAPI()


class Question(BaseModel):
    model_id: str
    features: dict[str, Any]


class Answer(BaseModel):
    status: str
    predictions: Any


@app.post("/predict")
async def predict(question: Question) -> Answer:
    return Answer(status="success", predictions=call(model, [question.features])[0])
