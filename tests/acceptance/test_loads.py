"""Many at a time: loads of one model run once, predictions share calls, and a uuid ties everything together."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import Start
from tests.acceptance.service import RunningService
from tests.servers import LONG, wait_until

pytestmark = pytest.mark.slow

CALLERS = 20


def connections(service: RunningService) -> int:
    """How many clients the server is connected with."""
    found = psutil.Process(service.pid).net_connections("tcp")
    return sum(each.laddr.port == service.port and each.status == psutil.CONN_ESTABLISHED for each in found)


def test_concurrent_loads_of_one_model_load_it_once(start: Start, folder: Path) -> None:
    service = start("patient", {"MLP_CLIENT_WORKER": "2"})
    client = service.client
    (folder / "go-train").touch()
    job = client.train("patient", parameters={"folder": str(folder)})
    job.wait(LONG)
    together = threading.Barrier(CALLERS)

    def load(number: int) -> None:
        together.wait(LONG)
        client.load("patient", job.model_id, uuid=f"load-{number}")

    with ThreadPoolExecutor(CALLERS) as callers:
        loads = [callers.submit(load, number) for number in range(CALLERS)]
        wait_until(lambda: (folder / "loads").exists() and connections(service) >= CALLERS, "all of them wait")
        assert [each.state for each in client.models()] == ["loading"]
        assert client.monitor().load == {}
        assert not any(each.done() for each in loads)
        (folder / "go-load").touch()
        for each in loads:
            each.result(LONG)

    assert (folder / "loads").read_text().split() == [job.model_id]
    monitor = client.monitor()
    assert monitor.load in ({job.model_id: [0]}, {job.model_id: [1]})
    assert monitor.algorithms == ["patient", "hasty", "batched"]
    assert client.predict(job.model_id, {"word": "yes"}) == "YES"
    client.unload("patient", job.model_id)
    assert client.monitor().load == {}


def test_predictions_that_wait_share_a_call(start: Start, folder: Path) -> None:
    client, batches = start("patient").client, folder / "batches"
    client.load("batched", "any", model_path="")

    def predict(number: int) -> int:
        size: int = client.predict("any", {"folder": str(folder)})
        return size

    with ThreadPoolExecutor(CALLERS) as callers:
        sizes = [callers.submit(predict, number) for number in range(CALLERS)]
        wait_until(lambda: batches.exists() and batches.read_text().endswith("\n"), "a first call is made")
        first = int(batches.read_text())
        wait_until(lambda: client.models()[0].waiting == CALLERS - first, "the others wait")
        (folder / "go-predict").touch()
        answers = sorted(each.result(LONG) for each in sizes)

    assert [int(size) for size in batches.read_text().split()] == [first, CALLERS - first]
    assert answers == sorted([first] * first + [CALLERS - first] * (CALLERS - first))


def test_one_uuid_is_in_the_lines_of_server_worker_and_training(start: Start, folder: Path) -> None:
    uuid = "5f0c-acceptance-uuid"
    service = start("patient")
    client = service.client
    for name in ("go-train", "go-load"):
        (folder / name).touch()

    job = client.train("patient", parameters={"folder": str(folder)}, uuid=uuid)
    job.wait(LONG)
    client.load("patient", job.model_id, uuid=uuid)
    client.predict(job.model_id, {"word": "yes"}, uuid=uuid)

    expected = {
        ("server", "POST /train"),
        ("server", "POST /load"),
        ("server", "POST /predict"),
        ("server", f"job [{job.model_id}] of patient ended: completed"),
        ("train", "a line of train"),
        ("worker-0", "a line of load"),
        ("worker-0", "a line of predict"),
    }

    def found() -> set[tuple[str, str]]:
        lines = re.findall(rf" \[{uuid}\] (\S+) .*?\| (.*)", service.log)
        return {(process, text) for process, text in expected if any(process == p and text in t for p, t in lines)}

    wait_until(lambda: found() == expected, "all lines are written")
    assert uuid in job.log()
