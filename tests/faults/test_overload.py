"""More than the service can do: bounded rooms, clear refusals at once, and places that come free."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import create_connection, socket

import psutil
import pytest

from mlpkit import Client
from mlpkit.errors import Overloaded
from tests.acceptance.service import RunningService
from tests.conftest import Report
from tests.faults.conftest import Start, notes, order
from tests.servers import wait_until

CONNECTIONS, SECONDS = 300, 8.0
ROOM = 30


def head_of(target: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


@contextmanager
def asking(port: int, model_id: str, **ordered: object) -> Iterator[socket]:
    """A caller who has asked for a prediction, and hangs up at the end."""
    body = json.dumps({"model_id": model_id, "features": {"do": "", "seconds": 0.0, "say": "", **ordered}}).encode()
    with create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head_of("/predict", body))
        yield connection


def waiting(client: Client) -> int:
    return sum(each.waiting for each in client.models())


def test_caller_who_goes_away_gives_the_place_free(
    start: Start, folder: Path, callers: ThreadPoolExecutor, report: Report
) -> None:
    service = start({"MLPKIT_MAX_WAITING": "3"})
    client = service.client
    client.load("queued", "m")
    client.predict("m", order(seconds=0.1))
    running = [callers.submit(client.predict, "m", order(seconds=2.0, say=f"running-{n}")) for n in range(2)]
    wait_until(lambda: sum(each.in_flight for each in client.models()) == 2, "the worker has what it takes")
    with asking(service.port, "m", say="gone"), asking(service.port, "m", say="gone"):
        staying = callers.submit(client.predict, "m", order(say="staying"))
        wait_until(lambda: waiting(client) == 3, "the room is full")
        with pytest.raises(Overloaded, match="3 predictions wait for model"):
            client.predict("m", order())
        # For so long a caller is not looked after.
        time.sleep(0.6)
        assert waiting(client) == 3
    began = time.monotonic()
    wait_until(lambda: waiting(client) == 1, "their places are free", 2)
    report(f"places of callers who went away were free after {time.monotonic() - began:.2f} s")
    assert client.predict("m", order(say="next"))["say"] == "next"
    assert staying.result(10)["say"] == "staying"
    assert [each.result(10)["say"] for each in running] == ["running-0", "running-1"]
    assert "gone" not in notes(folder / "predictions")
    assert "POST /predict 499" in service.log


@dataclass
class Crowd:
    """Clients who ask as fast as they are answered, and pause for a moment after a refusal; health is asked beside."""

    port: int
    outcomes: Counter[str] = field(default_factory=Counter)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)

    async def run(self, count: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        await asyncio.gather(self._ask_health(end), *(self._ask(end) for _ in range(count)))

    async def _ask(self, end: float) -> None:
        request = head_of("/predict", json.dumps({"model_id": "m", "features": order(seconds=0.02)}).encode())
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while time.monotonic() < end:
            status, headers, seconds = await exchange(reader, writer, request)
            if status == 200:
                self.outcomes["answered"] += 1
                self.answered.append(seconds)
            else:
                refused = status == 503 and b"\r\nretry-after: 1\r\n" in headers
                self.outcomes["refused" if refused else headers.decode()] += 1
                self.refused.append(seconds)
                await asyncio.sleep(0.2)
        writer.close()

    async def _ask_health(self, end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while time.monotonic() < end:
            status, _, seconds = await exchange(reader, writer, b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status == 200
            self.health.append(seconds)
            await asyncio.sleep(0.05)
        writer.close()


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bytes, float]:
    """Status, head and duration of a request."""
    began = time.monotonic()
    writer.write(request)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1]), head.lower(), time.monotonic() - began


@pytest.mark.slow
def test_ten_times_the_capacity_is_refused_clearly_and_the_rest_is_served(start: Start, report: Report) -> None:
    service = start({"MLPKIT_MAX_WAITING": str(ROOM), "MLPKIT_HTTP_ERRORS": "http"})
    service.client.load("queued", "m")
    crowd, server = Crowd(service.port), psutil.Process(service.pid)
    asyncio.run(crowd.run(CONNECTIONS, 1.0))
    crowd, before = Crowd(service.port), server.memory_info().rss
    asyncio.run(crowd.run(CONNECTIONS, SECONDS))
    grown = (server.memory_info().rss - before) / 2**20
    middle = {name: statistics.median(getattr(crowd, name)) * 1e3 for name in ("answered", "refused", "health")}
    report(
        f"{CONNECTIONS} connections for {SECONDS:g} s: {dict(crowd.outcomes)}; median milliseconds: "
        + ", ".join(f"{name} {each:.0f}" for name, each in middle.items())
        + f" (longest {max(crowd.health) * 1e3:.0f}); the server grew by {grown:.1f} MiB"
    )
    assert set(crowd.outcomes) == {"answered", "refused"}
    assert crowd.outcomes["refused"] > crowd.outcomes["answered"] > 10 * SECONDS
    assert middle["refused"] < 250
    assert middle["health"] < 250
    assert max(crowd.answered) < ROOM * 0.02 * 10
    assert grown < 30


def test_full_training_queue_refuses_at_once_and_waits_for_short_jobs(
    start: Start, folder: Path, report: Report
) -> None:
    service = start({"MLP_TRAIN_TASK_NUM": "1", "MLP_TRAIN_QUEUE_SIZE": "0", "MLPKIT_HTTP_ERRORS": "http"})
    client = service.client
    # On a busy machine a short job may not be short enough, so there are several tries.
    assert any(takes_a_burst(client) for _ in range(5))
    long = client.train("faulty")
    client.train("faulty")
    wait_until(lambda: bool(notes(folder / f"train {long.model_id}")), "the job runs")
    started = client.job_view(long.model_id).started
    assert started is not None
    wait_until(lambda: time.time() > started + 5.1, "it is no short job any more")
    began = time.monotonic()
    answer = client.request("POST", "/train", train_request())
    took = time.monotonic() - began
    report(f"the full training queue refused after {took * 1e3:.0f} ms")
    assert (answer.status, answer.headers["retry-after"]) == (503, "30")
    assert b"the training queue is full: 2 jobs run or wait" in answer.body
    assert took < 1.0


def takes_a_burst(client: Client) -> bool:
    """Whether three short jobs find places in a queue for two."""
    jobs = []
    try:
        for _ in range(3):
            jobs.append(client.train("faulty", parameters={"do": "nothing"}))
    except Overloaded:
        return False
    finally:
        for each in jobs:
            each.wait(30)
    return True


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
    assert 55 < time.monotonic() - began < 75


def unfinished(service: RunningService, request: bytes) -> bytes:
    """All that comes back on a connection, until the service closes it."""
    with create_connection(("127.0.0.1", service.port), timeout=90) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))
