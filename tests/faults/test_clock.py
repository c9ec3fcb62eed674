"""A clock that jumps by days, in both directions, stalls nothing and makes no count smaller."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import LONG, wait_until
from tests.web.test_events import Stream
from tests.web.test_metrics import value
from tests.wire.replayer import Service

CLOCKED = """
import os
import time
from pathlib import Path
from mlpkit import App

folder = Path(os.environ["MEETING"])
app = App("clocked")
real, real_ns = time.time, time.time_ns

def jump() -> float:
    try:
        return float((folder / "jump").read_text())
    except (OSError, ValueError):
        return 0.0

# In the server, the workers and the jobs: each imports this script.
time.time = lambda: real() + jump()
time.time_ns = lambda: real_ns() + int(jump() * 1e9)

@app.train
def train(parameters: dict) -> None:
    while not (folder / parameters["until"]).exists():
        time.sleep(0.02)

@app.load
def load() -> None: ...

@app.predict
def predict(features: dict) -> float:
    return time.time()
"""
DAY = 86400.0


@pytest.fixture
def clocked(tmp_path: Path) -> Iterator[Service]:
    script = tmp_path / "clocked.py"
    script.write_text(CLOCKED)
    service = Service(
        "default",
        command=("-m", "mlpkit", "run", f"{script}:app"),
        MLP_CLIENT_WORKER="1",
        MLP_TRAIN_TASK_NUM="1",
        MEETING=str(tmp_path),
    )
    yield service
    service.stop()


def asked(service: Service, path: str, **fields: object) -> Any:
    answer = service.post(path, json.dumps(fields)).json
    assert answer["status"] == "success", answer
    return answer.get("data")


def train(service: Service, until: str) -> str:
    model_id: str = asked(
        service, "/train", algorithm="clocked", model_path="", data={}, parameter={"until": until}, extend={}
    )["model_id"]
    return model_id


def state(service: Service, model_id: str) -> str:
    word: str = service.get(f"/status?algorithm=clocked&model_id={model_id}").json["data"]["status"]
    return word


@pytest.mark.parametrize("jump", [-2 * DAY, 3 * DAY], ids=["back", "forward"])
def test_a_clock_that_jumps_stalls_nothing_and_makes_no_count_smaller(
    clocked: Service, tmp_path: Path, jump: float
) -> None:
    asked(clocked, "/load", algorithm="clocked", model_id="m")
    running, waiting, cancelled = (train(clocked, until) for until in ("first", "second", "never"))
    wait_until(lambda: state(clocked, running) == "training", "the first job runs")
    now = asked(clocked, "/predict", model_id="m", features={})["predictions"]

    with Stream(clocked, "/events") as stream:
        (tmp_path / "jump").write_text(str(jump))
        jumped = asked(clocked, "/predict", model_id="m", features={})["predictions"]
        assert jumped == pytest.approx(now + jump, abs=LONG)
        asked(clocked, "/cancel", model_id=cancelled)
        (tmp_path / "first").touch()
        stream.until("job", model_id=waiting, state="training")
        (tmp_path / "second").touch()
        events = stream.until("job", model_id=waiting, state="completed")

    numbers = [int(event.id) for event in events if event.id is not None]
    assert numbers == sorted(numbers)
    assert [state(clocked, model_id) for model_id in (running, waiting, cancelled)] == [
        "completed",
        "completed",
        "error",
    ]
    listed = clocked.get("/jobs").json["data"]
    assert {job["model_id"] for job in listed["jobs"]} == {running, waiting, cancelled}
    sums = ("mlpkit_job_seconds_sum", "mlpkit_job_wait_seconds_sum", "mlpkit_predict_seconds_total")
    assert [name for name in sums if value(clocked, name, algorithm="clocked") < 0] == []
    for path in ("/summary", "/charts", "/models", "/workers", "/health/ready"):
        assert clocked.get(path).json["status"] == "success", path
    assert "Traceback" not in clocked.log()
