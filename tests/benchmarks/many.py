"""Models whose speed their name says: `fast-3` answers at once, `slow` after 200 ms, `sleeper` after 1 ms."""

from __future__ import annotations

import os
import time
from typing import Any

from mlpkit import App

MODELS = os.environ["MODELS"].split(",")
REPLICAS = int(os.environ["REPLICAS"])
SLEEPS = {"slow": 0.2, "sleeper": 0.001}
app = App("bench")


@app.load(preload=MODELS, replicas=REPLICAS)
def load(model_id: str) -> float:
    return SLEEPS.get(model_id, 0.0)


@app.predict
def predict(model: float, features: dict[str, Any]) -> Any:
    if model:
        time.sleep(model)
    return [{"label": "a", "score": 100}]
