"""What a script counts with prometheus_client is in the service's metrics, summed over all its processes."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import SOON, wait_until
from tests.wire.replayer import Service

SCRIPT = """
from prometheus_client import Counter, Gauge, Histogram
from mlpkit import App
app = App("counting")
words = Counter("words", "Words that were seen.", ["where"])
sizes = Histogram("text_size", "Characters of a text.", buckets=(4, 16))
depth = Gauge("depth", "A gauge.", multiprocess_mode="livesum")
@app.train
def train() -> None:
    words.labels("train").inc(5)
@app.load(replicas=2, warm_up=False)
def load(model_id: str) -> str:
    depth.set(1)
    return model_id
@app.predict
def predict(features: dict) -> int:
    words.labels("predict").inc(2)
    sizes.observe(len(features["text"]))
    return 1
"""


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    script = tmp_path_factory.mktemp("script") / "counting.py"
    script.write_text(SCRIPT, encoding="utf-8")
    service = Service("default", command=("-m", "mlpkit", "run", str(script)), MLP_CLIENT_WORKER="2")
    yield service
    service.stop()


def value(service: Service, name: str) -> float | None:
    found = re.search(rf"^{re.escape(name)} (\S+)$", service.get("/metrics").text, re.MULTILINE)
    return None if found is None else float(found[1])


def predict(service: Service) -> Any:
    return service.post("/predict", json.dumps({"model_id": "m", "features": {"text": "a text"}})).json


def test_metrics_of_scripts_are_summed_over_workers_and_jobs(counting: Service) -> None:
    assert counting.post("/load", '{"algorithm": "counting", "model_id": "m"}').json == {"status": "success"}
    assert [predict(counting)["status"] for _ in range(10)] == ["success"] * 10
    counting.post("/train", '{"algorithm": "counting", "model_path": "", "data": {}, "parameter": {}, "extend": {}}')

    wait_until(lambda: value(counting, 'words_total{where="train"}') == 5.0, "the job has counted", SOON)
    assert value(counting, 'words_total{where="predict"}') == 20.0
    assert value(counting, 'text_size_bucket{le="16.0"}') == 10.0
    assert value(counting, "depth") == 2.0
    assert value(counting, "mlpkit_ready") is not None


def test_what_a_process_has_counted_stays_when_it_dies_and_its_files_go(counting: Service) -> None:
    workers = counting.get("/workers").json["data"]["workers"]
    for worker in workers:
        os.kill(worker["pid"], signal.SIGKILL)
    folder = Path(counting.folder.name) / "home" / "metrics"
    dead = {str(worker["pid"]) for worker in workers}

    wait_until(lambda: not {file.stem.rpartition("_")[2] for file in folder.iterdir()} & dead, "the files go", SOON)
    assert value(counting, 'words_total{where="predict"}') == 20.0
    wait_until(lambda: predict(counting)["status"] == "success", "the workers are replaced", SOON)
    assert value(counting, 'words_total{where="predict"}') == 22.0
    assert value(counting, 'words_total{where="train"}') == 5.0
