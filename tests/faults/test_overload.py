"""More than the service can do: bounded rooms, clear refusals at once, and places that come free."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from socket import create_connection, socket

import psutil
import pytest

from mlpkit import Client
from mlpkit.errors import Overloaded, TrainFailed
from tests.acceptance.service import RunningService
from tests.conftest import Report
from tests.faults.conftest import Start, notes, order
from tests.faults.crowd import allow_connections, ask_together
from tests.servers import LONG, SOON, stretched, wait_until

CONNECTIONS, SECONDS = 2000, 10.0
TIMES = 10
"""How often the capacity is asked of the service."""
TAKES = 0.02
"""Seconds of one prediction; one is made at a time."""
ROOM = 30


def head_of(target: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


@contextmanager
def asking(port: int, target: str, model_id: str, **ordered: object) -> Iterator[socket]:
    """A caller who has asked for a prediction, and hangs up at the end."""
    body = json.dumps({"model_id": model_id, "features": {"do": "", "seconds": 0.0, "say": "", **ordered}}).encode()
    with create_connection(("127.0.0.1", port), timeout=LONG) as connection:
        connection.sendall(head_of(target, body))
        yield connection


def waiting(client: Client) -> int:
    return sum(each.waiting for each in client.models())


@pytest.mark.parametrize("target", ["/predict", "/predict?with=a-query"], ids=["the short way", "the general way"])
def test_caller_who_goes_away_gives_the_place_free(
    start: Start, folder: Path, callers: ThreadPoolExecutor, report: Report, target: str
) -> None:
    service = start({"MLPKIT_MAX_WAITING": "3"})
    client = service.client
    client.load("queued", "m")
    client.predict("m", order(seconds=0.1))
    running = [callers.submit(client.predict, "m", order(seconds=3.0, say=f"running-{n}")) for n in range(2)]
    wait_until(lambda: sum(each.in_flight for each in client.models()) == 2, "the worker has what it takes")
    with asking(service.port, target, "m", say="gone"), asking(service.port, target, "m", say="gone"):
        staying = callers.submit(client.predict, "m", order(say="staying"))
        wait_until(lambda: waiting(client) == 3, "the room is full")
        with pytest.raises(Overloaded, match="3 predictions wait for model"):
            client.predict("m", order())
        # For so long a caller is not looked after.
        time.sleep(0.6)
        assert waiting(client) == 3
    began = time.monotonic()
    wait_until(lambda: waiting(client) == 1, "their places are free")
    report(f"places of callers who went away were free after {time.monotonic() - began:.2f} s")
    assert client.predict("m", order(say="next"))["say"] == "next"
    assert staying.result(LONG)["say"] == "staying"
    assert [each.result(LONG)["say"] for each in running] == ["running-0", "running-1"]
    assert "gone" not in notes(folder / "predictions")
    assert "POST /predict 499" in service.log


@pytest.mark.slow
def test_ten_times_the_capacity_is_refused_at_once_and_the_rest_is_served(start: Start, report: Report) -> None:
    if not allow_connections(CONNECTIONS):
        pytest.skip(f"the hard limit of open files does not allow {CONNECTIONS} connections")
    service = start({"MLPKIT_MAX_WAITING": str(ROOM), "MLPKIT_HTTP_ERRORS": "http"})
    service.client.load("queued", "m")
    service.client.predict("m", order(seconds=TAKES))
    server, health = psutil.Process(service.pid), []
    before = grown = server.memory_info().rss
    request = head_of("/predict", json.dumps({"model_id": "m", "features": order(seconds=TAKES)}).encode())
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        crowd = process.submit(ask_together, service.port, request, CONNECTIONS, TIMES / TAKES, SECONDS)
        while not crowd.done():
            health.append(seconds_for_health(service.client))
            grown = max(grown, server.memory_info().rss)
            time.sleep(0.05)
    outcomes = crowd.result()

    report(
        f"{CONNECTIONS} connections in {outcomes.connecting:.1f} s, {TIMES} times the capacity for {SECONDS:g} s: "
        f"answered {in_words(outcomes.answered)}; refused {in_words(outcomes.refused)}; health {in_words(health)}; "
        f"the server grew by {(grown - before) / 2**20:.1f} MiB"
    )
    assert outcomes.other == {}
    assert len(outcomes.refused) > TIMES / TAKES * SECONDS / 2
    assert len(outcomes.answered) > SECONDS / stretched(TAKES)
    # Who got a place waits for those before him and for nobody else, so half of them wait for a room that is full. The
    # longest wait also has the longest pause of this machine in it.
    assert statistics.median(outcomes.answered) < stretched((ROOM + 3) * TAKES)
    assert max(outcomes.answered) < stretched(3 * ROOM * TAKES)
    assert statistics.median(outcomes.refused) < stretched(0.02)
    assert statistics.median(health) < stretched(0.1)
    assert (grown - before) / CONNECTIONS < 64 << 10


def seconds_for_health(client: Client) -> float:
    began = time.monotonic()
    assert client.request("GET", "/health/ready").status == 200
    return time.monotonic() - began


def in_words(seconds: list[float]) -> str:
    middle, most, longest = statistics.median(seconds), statistics.quantiles(seconds, n=100)[98], max(seconds)
    return f"{len(seconds)} (ms: median {middle * 1e3:.0f}, p99 {most * 1e3:.0f}, longest {longest * 1e3:.0f})"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux changes the limit of another process")
def test_service_without_a_free_descriptor_serves_who_is_there_and_recovers(start: Start) -> None:
    service = start()
    client, server = service.client, psutil.Process(service.pid)
    client.load("queued", "m")
    before = server.num_fds()
    most = before + 20
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (most, most))
    with ExitStack() as crowd:
        for _ in range(60):
            crowd.enter_context(create_connection(("127.0.0.1", service.port), timeout=LONG))
        wait_until(lambda: server.num_fds() == most, "no descriptor is free")
        assert client.predict("m", order())["model_id"] == "m"
        with pytest.raises(TrainFailed, match="Too many open files"):
            client.train("faulty", parameters={"do": "nothing"}).wait(LONG)
    wait_until(lambda: server.num_fds() <= before, "they are free again")
    client.train("faulty", parameters={"do": "nothing"}).wait(LONG)
    assert client.predict("m", order())["model_id"] == "m"


def test_full_training_queue_refuses_immediately(start: Start, folder: Path, report: Report) -> None:
    service = start({"MLP_TRAIN_TASK_NUM": "1", "MLP_TRAIN_QUEUE_SIZE": "1", "MLPKIT_HTTP_ERRORS": "http"})
    client = service.client
    for _ in range(2):
        client.train("faulty")
    began = time.monotonic()
    answer = client.request("POST", "/train", train_request())
    took = time.monotonic() - began
    report(f"the full training queue refused after {took * 1e3:.0f} ms")
    assert (answer.status, answer.headers["retry-after"]) == (503, "30")
    assert b"the training queue is full: 2 jobs run or wait" in answer.body
    assert took < SOON


def train_request() -> bytes:
    fields = {"algorithm": "faulty", "model_path": "", "data": {}, "parameter": {}, "extend": {}}
    return json.dumps(fields).encode()


@pytest.mark.slow
def test_requests_whose_bodies_never_come_are_ended(start: Start, callers: ThreadPoolExecutor) -> None:
    service = start()
    began = time.monotonic()
    requests = [head_of(target, body, length=100) for target in ("/predict", "/load") for body in (b"", b'{"model_id')]
    for answer in callers.map(lambda request: unfinished(service, request), requests):
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"the body did not arrive within 60 s" in answer
    assert 55 < time.monotonic() - began < LONG


def unfinished(service: RunningService, request: bytes) -> bytes:
    """All that comes back on a connection, until the service closes it."""
    with create_connection(("127.0.0.1", service.port), timeout=LONG) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))
