"""SIGTERM: first not ready, then what was accepted is done, then the end; a second one ends it at once."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mlpkit import Client
from mlpkit.client import JobHandle
from mlpkit.errors import ServiceStopping
from tests.acceptance.service import RunningService, gone
from tests.conftest import Report
from tests.faults.conftest import Start, notes, order, wait_in_flight
from tests.servers import LONG, SOON, wait_until

pytestmark = pytest.mark.slow

CALLERS = 8
GRACE = 6
"""Seconds: long enough that all that may end in it does so on a busy machine too."""


@dataclass
class Load:
    """Callers who ask without a pause, each request on a connection of its own, until the service refuses one."""

    port: int
    outcomes: Counter[str] = field(default_factory=Counter)

    def ask(self) -> None:
        """Asks until the service says that it stops, or listens no more."""
        while (outcome := self._one()) == "answered":
            self.outcomes[outcome] += 1
        self.outcomes[outcome] += 1

    def _one(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG)
        body = json.dumps({"model_id": "m", "features": order(seconds=0.05)})
        try:
            connection.connect()
        except ConnectionRefusedError:
            return "not accepted"
        try:
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        except OSError as error:
            return f"dropped: {error!r}"
        finally:
            connection.close()
        if answer["status"] == "success":
            return "answered"
        return "refused" if "stopping" in answer["message"] else answer["message"]


def running_job(client: Client, folder: Path) -> JobHandle:
    job = client.train("faulty")
    wait_until(lambda: bool(notes(folder / f"train {job.model_id}")), "the job runs")
    return job


def until_draining(service: RunningService) -> None:
    wait_until(lambda: "draining" in service.client.ready().reasons, "readiness says that it drains")


def test_service_under_load_stops_without_dropping_anything(
    start: Start, folder: Path, callers: ThreadPoolExecutor, report: Report
) -> None:
    service = start({"MLPKIT_SHUTDOWN_GRACE": str(GRACE), "MLP_CLIENT_WORKER": "2"})
    client = service.client
    client.load("faulty", "m")
    quick, long = running_job(client, folder), running_job(client, folder)
    for name in ("load slow", "delete nobody"):
        (folder / name).write_text(" 1.5")
    load = Load(service.port)
    crowd = [threading.Thread(target=load.ask) for _ in range(CALLERS)]
    for each in crowd:
        each.start()
    wait_until(lambda: load.outcomes["answered"] >= 3 * CALLERS, "there is load")
    accepted = callers.submit(client.load, "faulty", "slow")
    deleted = callers.submit(client.delete, "faulty", "nobody")
    wait_until(lambda: "slow" in [each.model_id for each in client.models()], "the load has begun")
    wait_until(lambda: bool(notes(folder / "deletes")), "the delete has begun")

    began = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    until_draining(service)
    (folder / f"go {quick.model_id}").touch()
    for each in crowd:
        each.join(LONG)
    accepted.result(LONG)
    deleted.result(LONG)
    assert notes(folder / "deletes") == ["nobody begins", "nobody ends"]
    wait_until(lambda: quick.status().status == "completed", "the quick job ends in the grace")
    assert long.status().status == "training"
    assert service.process.wait(LONG) == 0
    took = time.monotonic() - began

    report(f"SIGTERM: {dict(load.outcomes)}, ended after {took:.1f} s (grace {GRACE} s)")
    assert set(load.outcomes) == {"answered", "refused"}
    assert GRACE <= took < GRACE + SOON
    client = start().client
    assert client.job_view(quick.model_id).state == "completed"
    wait_until(lambda: len(notes(folder / f"train {long.model_id}")) == 2, "the long job runs again")
    assert client.job_view(long.model_id).attempt == 1
    assert client.monitor().load == {"m": [0], "slow": [0]}


def test_second_signal_ends_the_service_at_once(
    start: Start, folder: Path, callers: ThreadPoolExecutor, report: Report
) -> None:
    service = start({"MLPKIT_SHUTDOWN_GRACE": str(LONG)})
    client = service.client
    client.load("faulty", "m")
    job = running_job(client, folder)
    stuck = callers.submit(client.predict, "m", order("hold"))
    wait_in_flight(client, "m")
    family = service.family()
    service.process.send_signal(signal.SIGTERM)
    until_draining(service)
    began = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(LONG) == 0
    took = time.monotonic() - began
    report(f"second SIGTERM: ended after {took:.2f} s (grace {LONG:g} s)")
    assert took < SOON
    assert all(gone(each) for each in family)
    assert stuck.exception(LONG) is not None
    again = start().client.job_view(job.model_id)
    assert again.state in ("init", "training")


def test_request_that_is_neither_prediction_nor_training_gets_the_grace_too(
    start: Start, folder: Path, callers: ThreadPoolExecutor
) -> None:
    service = start({"MLPKIT_SHUTDOWN_GRACE": str(LONG)})
    (folder / "delete m").write_text("2.0")
    deleted = callers.submit(service.client.delete, "faulty", "m")
    wait_until(lambda: bool(notes(folder / "deletes")), "it is deleted")
    service.process.send_signal(signal.SIGTERM)
    deleted.result(LONG)
    assert notes(folder / "deletes") == ["m begins", "m ends"]
    assert service.process.wait(SOON) == 0


def test_prediction_past_the_grace_is_told_so_and_questions_are_answered_meanwhile(
    start: Start, callers: ThreadPoolExecutor
) -> None:
    service = start({"MLPKIT_SHUTDOWN_GRACE": "2"})
    service.client.load("queued", "m")
    service.client.predict("m", order(seconds=0.1))
    asked = [callers.submit(service.client.predict, "m", order(seconds=30)) for _ in range(4)]
    wait_until(
        lambda: [(each.waiting, each.in_flight) for each in service.client.models()] == [(2, 2)], "two run and two wait"
    )
    service.process.send_signal(signal.SIGTERM)
    until_draining(service)
    time.sleep(0.3)
    assert service.client.jobs() == []
    assert service.client.status("faulty", "nobody").status == "unknown"
    assert service.process.wait(LONG) == 0
    told = [str(each.exception(LONG)) for each in asked]
    assert sum("was stopped while it held the request" in each for each in told) == 2
    assert sum("the service is stopping" in each for each in told) == 2
    assert sum(isinstance(each.exception(), ServiceStopping) for each in asked) == 2
