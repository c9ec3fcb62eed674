"""What a service that is told to stop does with requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.servers import LONG
from tests.wire.replayer import Answer, Service


@pytest.fixture
def stopping() -> Iterator[Service]:
    service = Service("default", MLP_CLIENT_WORKER="1")
    yield service
    service.stop()


def test_a_stopping_service_ends_what_runs_and_refuses_what_is_new(stopping: Service) -> None:
    stopping.post("/load", '{"algorithm": "slow", "model_id": "s"}')
    answers: list[Answer] = []
    predict = '{"model_id": "s", "features": {"seconds": 2.5}}'
    running = threading.Thread(target=lambda: answers.append(stopping.post("/predict", predict)))
    running.start()
    until_in_flight(stopping)
    stopping.terminate()
    reasons = until_not_ready(stopping)
    refused = [stopping.post(path, "{}") for path in ("/predict", "/train", "/load")]

    assert "draining" in reasons
    for answer in refused:
        assert (answer.status, answer.json["status"]) == (200, "fail")
        assert "stopping" in answer.json["message"]
    assert "internal error" not in stopping.get("/status?algorithm=echo&model_id=x").text
    running.join(LONG)
    assert answers[0].json["data"]["predictions"] == [{"label": True, "score": 100}]
    assert stopping.wait() == 0


def until_in_flight(service: Service) -> None:
    end = time.monotonic() + LONG
    while service.get("/models").json["data"]["models"][0]["in_flight"] == 0:
        assert time.monotonic() < end
        time.sleep(0.02)


def until_not_ready(service: Service) -> list[str]:
    end = time.monotonic() + LONG
    while (answer := service.get("/health/ready")).status == 200:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert answer.status == 503
    reasons: list[str] = answer.json["reasons"]
    return reasons
