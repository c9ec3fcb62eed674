"""`MLPKIT_DEBUGPY`: a debugger attaches to a worker or a job, by the Debug Adapter Protocol."""

from __future__ import annotations

import inspect
import json
import re
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlpkit import App
from mlpkit.errors import SettingsError
from mlpkit.processes import listen_for_debugger
from mlpkit.settings import Settings
from mlpkit.testing import TestService
from tests.servers import LONG, free_port, wait_until

app = App("stepped")


class Number(msgspec.Struct):
    """The request's `features`."""

    number: int


class Meeting(msgspec.Struct):
    """The request's `parameter`: `train` ends when this file is there."""

    file: str


@app.train
def train(parameters: Meeting) -> None:
    wait_until(Path(parameters.file).exists, "the test lets the training end")


@app.load
def load() -> int:
    return 20


@app.predict
def predict(model: int, features: Number) -> list[int]:
    answer = model + features.number
    return [answer]


class Debugger:
    """What an IDE says to a debugger, and hears from it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = connection.makefile("rb")
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def send(self, command: str, **arguments: Any) -> int:
        """Sends a request, and gives its number."""
        self._number += 1
        message = {"seq": self._number, "type": "request", "command": command, "arguments": arguments}
        body = json.dumps(message).encode()
        self._connection.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        return self._number

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request, and waits for what it gives."""
        number = self.send(command, **arguments)
        while True:
            message = self._receive()
            if message["type"] == "response" and message["request_seq"] == number:
                assert message["success"], message
                body: dict[str, Any] = message.get("body") or {}
                return body
            if message["type"] == "event":
                self._events.append(message)

    def wait_for(self, event: str) -> dict[str, Any]:
        """Waits for an event, and gives what it holds."""
        while True:
            for message in self._events:
                if message["event"] == event:
                    self._events.remove(message)
                    body: dict[str, Any] = message.get("body") or {}
                    return body
            message = self._receive()
            if message["type"] == "event":
                self._events.append(message)

    def _receive(self) -> dict[str, Any]:
        length = 0
        while line := self._stream.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        message: dict[str, Any] = json.loads(self._stream.read(length))
        return message


@contextmanager
def debugger_at(port: int) -> Iterator[Debugger]:
    with socket.create_connection(("127.0.0.1", port), timeout=LONG) as connection:
        yield Debugger(connection)


def ports_of(service: TestService) -> list[int]:
    """Where debuggers can attach, as the log tells."""
    return [int(port) for port in re.findall(r"a debugger can attach to 127\.0\.0\.1:(\d+)", service.log)]


def test_debugger_stops_a_worker_at_a_breakpoint() -> None:
    lines, first = inspect.getsourcelines(predict)
    line = first + next(number for number, text in enumerate(lines) if "return [answer]" in text)
    with (
        TestService(app, workers=1, debugpy=free_port()) as service,
        debugger_at(ports_of(service)[0]) as debugger,
        ThreadPoolExecutor(1) as callers,
    ):
        service.client.load("stepped", "m")
        debugger.call("initialize", clientID="test", adapterID="python", pathFormat="path")
        debugger.send("attach", justMyCode=False)
        debugger.wait_for("initialized")
        debugger.call("setBreakpoints", source={"path": __file__}, breakpoints=[{"line": line}])
        debugger.call("configurationDone")
        answer = callers.submit(service.client.predict, "m", {"number": 3})
        thread = debugger.wait_for("stopped")["threadId"]
        frame = debugger.call("stackTrace", threadId=thread)["stackFrames"][0]
        assert (frame["name"], frame["line"]) == ("predict", line)
        assert debugger.call("evaluate", expression="answer", frameId=frame["id"])["result"] == "23"
        debugger.call("continue", threadId=thread)
        assert answer.result(LONG) == [23]


def test_each_process_takes_the_first_free_port_and_answers_there(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with TestService(app, workers=1, debugpy=free_port()) as service:
        job = service.client.train("stepped", parameters={"file": str(go)})
        wait_until(lambda: len(ports_of(service)) == 2, "worker and job wait for debuggers")
        worker, training = ports_of(service)
        assert training > worker
        with debugger_at(training) as debugger:
            capabilities = debugger.call("initialize", clientID="test", adapterID="python")
            assert capabilities["supportsConfigurationDoneRequest"]
        go.touch()
        job.wait(LONG)


def test_without_debugpy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "debugpy", None)
    with pytest.raises(SettingsError, match="pip install debugpy"):
        listen_for_debugger(free_port())


def test_it_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "debugpy", None)
    listen_for_debugger(Settings().debugpy)
