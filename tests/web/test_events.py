"""Server-sent events: what happens is told in order, once more to those who come back, and costs the service little."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlpkit.training.events import Event, Listener
from mlpkit.training.job import Job
from mlpkit.training.journal import EVENTS_KEPT, Journal
from tests.servers import LONG, wait_until
from tests.web.conftest import TOKEN
from tests.web.test_edge import WITH_TOKEN
from tests.web.test_jobs import job_in, train
from tests.wire.replayer import Service

CHATTY = """
from mlpkit import App
app = App("chatty")

@app.train
def train() -> None:
    for number in range(60_000):
        print(number, "x" * 200)

@app.load
def load() -> None: ...

@app.predict
def predict(features: dict) -> None: ...
"""
LISTENERS = 500
COST_OF_ALL = 10 << 20
"""Bytes that 500 listeners may cost the server."""


@dataclass(frozen=True)
class Sent:
    """One event as it came; `id` is None if it has none."""

    kind: str
    data: Any
    id: str | None


class Stream:
    """The events of a path, one after the other."""

    def __init__(
        self,
        service: Service,
        path: str,
        last: str | None = None,
        method: str = "GET",
        body: str | None = None,
        **headers: str,
    ) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=LONG)
        more: Mapping[str, str] = {} if last is None else {"Last-Event-ID": last}
        self._connection.request(method, path, body, headers={**more, **headers})
        self.response = self._connection.getresponse()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    def __iter__(self) -> Iterator[Sent]:
        fields: dict[str, str] = {}
        while line := self.response.readline():
            if line.strip():
                name, _, value = line.decode().rstrip("\n").partition(": ")
                fields[name] = value
            elif "event" in fields:
                yield Sent(fields["event"], json.loads(fields["data"]), fields.get("id"))
                fields = {}

    def until(self, kind: str, **content: object) -> list[Sent]:
        """The events up to the first of a kind that has this content."""
        events = []
        for event in self:
            events.append(event)
            if event.kind == kind and all(event.data.get(name) == value for name, value in content.items()):
                return events
        raise AssertionError(f"the stream ended without {kind} {content}: {events}")


def of_model(events: list[Sent], model_id: str, kind: str) -> list[str]:
    return [event.data["state"] for event in events if event.kind == kind and event.data["model_id"] == model_id]


def load(service: Service, model_id: str, path: str = "load") -> dict[str, Any]:
    answer: dict[str, Any] = service.post(f"/{path}", f'{{"algorithm": "echo", "model_id": "{model_id}"}}').json
    return answer


def test_a_stream_tells_what_happens_to_jobs_and_models_in_order(plain: Service) -> None:
    with Stream(plain, "/events") as stream:
        assert stream.response.headers["content-type"] == "text/event-stream"
        model_id = train(plain)
        job_in(plain, model_id, "completed")
        load(plain, "told")
        load(plain, "told", "unload")
        events = stream.until("model", model_id="told", state="unloaded")
    assert events[0].kind == "reset"
    assert of_model(events, model_id, "job") == ["init", "training", "completed"]
    assert of_model(events, "told", "model") == ["loading", "loaded", "unloading", "unloaded"]
    assert [event.data["workers"] for event in events if event.data.get("state") == "loaded"] == [[0]]
    numbers = [int(event.id) for event in events if event.id is not None]
    assert numbers == sorted(numbers)


def test_who_comes_back_gets_what_it_has_missed_and_nothing_else(plain: Service) -> None:
    with Stream(plain, "/events") as stream:
        load(plain, "missed")
        last = stream.until("model", model_id="missed", state="loaded")[-1]
    load(plain, "missed", "unload")
    with Stream(plain, "/events", last.id) as stream:
        events = stream.until("model", model_id="missed", state="unloaded")
    assert [event.data["state"] for event in events] == ["unloading", "unloaded"]


@pytest.mark.parametrize("last", ["999999999", "-1", "a", "1.2.3", "9" * 40, ""])
def test_an_id_that_is_not_known_resets_the_stream(plain: Service, last: str) -> None:
    for path in ("/events", f"/jobs/{train(plain)}/events"):
        with Stream(plain, path, last) as stream:
            first = next(iter(stream))
        assert (first.kind, "Last-Event-ID" in first.data["reason"]) == ("reset", True)
        assert first.id is not None


def test_the_oldest_events_are_not_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add_events([("model", f"m{number}", b"{}") for number in range(EVENTS_KEPT + 5)])
    assert journal.event_numbers() == (6, EVENTS_KEPT + 5)
    assert journal.add(Job("j", "a")).number == EVENTS_KEPT + 6
    (event,) = journal.events_after(EVENTS_KEPT + 5)
    assert (event.kind, event.model_id, json.loads(event.data)["state"]) == ("job", "j", "init")
    journal.close()
    # A number is never given again, or an old `Last-Event-ID` would stand for another event.
    again = Journal(tmp_path)
    assert again.add_events([("model", "m", b"{}")])[0].number == EVENTS_KEPT + 7
    again.close()


def test_the_stream_of_a_job_has_its_log_and_ends_with_it(plain: Service) -> None:
    model_id = train(plain, "boom", '{"mode": "raise"}')
    with Stream(plain, f"/jobs/{model_id}/events") as stream:
        events = list(stream)
    assert [event.kind for event in events[-2:]] == ["job", "end"]
    assert events[-2].data["state"] == "error"
    told = "".join(event.data["text"] for event in events if event.kind == "log")
    assert told == plain.get(f"/jobs/{model_id}/log").text
    assert "Traceback" in told
    # Whoever comes back in the middle gets the rest of it, also after the end.
    first_lines = next(event for event in events if event.kind == "log")
    with Stream(plain, f"/jobs/{model_id}/events", first_lines.id) as stream:
        rest = list(stream)
    assert first_lines.data["text"] + "".join(event.data["text"] for event in rest if event.kind == "log") == told
    assert rest[-1].kind == "end"
    with Stream(plain, f"/jobs/{model_id}/events?tail=1") as stream:
        last_line = [event.data["text"] for event in stream if event.kind == "log"]
    assert "".join(last_line) == told.splitlines(keepends=True)[-1]


def test_the_job_of_a_stream_must_exist(plain: Service, strict: Service) -> None:
    assert "no-such" in plain.get("/jobs/no-such/events").json["message"]
    assert strict.get("/jobs/no-such/events", **WITH_TOKEN).status == 404
    assert "tail" in plain.get(f"/jobs/{train(plain)}/events?tail=0").json["message"]


def test_a_stream_needs_the_token(strict: Service) -> None:
    assert strict.get("/events").status == 401
    assert strict.get("/events?last_event_id=1").status == 401
    with Stream(strict, "/events", **WITH_TOKEN) as stream:
        assert next(iter(stream)).kind == "reset"
    assert TOKEN not in strict.log()


def test_a_head_request_gets_the_headers_alone(plain: Service) -> None:
    answer = plain.send({"method": "HEAD", "path": "/events", "headers": {}})
    assert (answer.status, answer.content_type, answer.text) == (200, "text/event-stream", "")


def test_a_listener_who_takes_nothing_holds_a_bounded_queue() -> None:
    listener = Listener(None)
    event = Event(1, "model", "m", b"x" * 1000)
    for _ in range(1000):
        listener.put(event)
    assert listener.lost
    assert list(listener.take()) == []


@pytest.mark.slow
def test_a_listener_who_never_reads_is_cut_off(tmp_path: Path) -> None:
    script = tmp_path / "chatty.py"
    script.write_text(CHATTY)
    service = Service("default", command=("-m", "mlpkit", "run", f"{script}:app"), MLP_CLIENT_WORKER="1")
    try:
        server = psutil.Process(service.pid)
        model_id = train(service, "chatty")
        job_in(service, model_id, "completed")
        with socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.connect(("127.0.0.1", service.port))
            before = server.memory_info().rss
            silent.sendall(f"GET /jobs/{model_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            own = silent.getsockname()[1]
            wait_until(lambda: own in peers(server), "the listener is connected")
            wait_until(lambda: own not in peers(server), "the listener is cut off", 2 * LONG)
        assert server.memory_info().rss - before < 4 << 20
        with Stream(service, f"/jobs/{model_id}/events") as stream:
            assert list(stream)[-1].kind == "end"
    finally:
        service.stop()


def peers(server: psutil.Process) -> set[int]:
    """The ports of those who are connected."""
    return {each.raddr.port for each in server.net_connections() if each.status == "ESTABLISHED"}


def test_many_listeners_cost_little_memory_and_leave_nothing(plain: Service) -> None:
    server = psutil.Process(plain.pid)
    load(plain, "many")
    predict = '{"model_id": "many", "features": {"sentence": "x"}}'
    before = server.memory_info().rss
    with ExitStack() as streams:
        for _ in range(LISTENERS):
            connection = streams.enter_context(socket.create_connection(("127.0.0.1", plain.port), timeout=LONG))
            connection.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"text/event-stream" in connection.recv(1000)
        assert plain.post("/predict", predict).json["status"] == "success"
        load(plain, "many", "unload")
        cost = server.memory_info().rss - before
        assert len(peers(server)) >= LISTENERS
    assert cost < COST_OF_ALL, f"{cost / 2**20:.1f} MiB"
    wait_until(lambda: not peers(server), "all have gone")


def test_a_stop_of_the_service_ends_its_streams() -> None:
    service = Service("default", MLP_CLIENT_WORKER="1")
    try:
        with Stream(service, "/events") as stream:
            assert next(iter(stream)).kind == "reset"
            service.terminate()
            assert list(stream) == []
            assert service.wait() == 0
    finally:
        service.stop()
