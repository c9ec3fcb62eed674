"""What leaves the service when something inside it goes wrong: a clear answer, always."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from starlette.types import Message, Receive, Scope, Send

from mlpkit.errors import DataError
from mlpkit.log import LogOutput
from mlpkit.settings import Settings
from mlpkit.web import Application, Dependencies, ServiceState
from mlpkit.web.request import HttpResponse


@dataclass
class Connection:
    """One HTTP connection without a network: what was sent over it."""

    sent: list[Message] = field(default_factory=list)

    async def receive(self) -> Message:
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def answer(self) -> Any:
        return json.loads(self.sent[1]["body"])


def asked(failing: Any, path: str = "/anything") -> tuple[Connection, str]:
    """What an application with a failing router sends, and logs."""
    log, connection = io.StringIO(), Connection()
    output = LogOutput(log)
    nothing: Any = None
    dependencies = Dependencies(
        {}, Settings(), nothing, nothing, nothing, nothing, nothing, output, ServiceState("ready"), nothing, nothing
    )
    application = Application(dependencies)
    application.router = failing
    scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    asyncio.run(application(scope, connection.receive, connection.send))
    output.flush()
    return connection, log.getvalue()


@pytest.mark.parametrize("path", ["/anything", "/predict"])
@pytest.mark.parametrize("error", [RuntimeError("in secret/file.py"), RecursionError(), DataError("row 3 is broken")])
def test_an_exception_becomes_an_answer_of_the_protocol(error: Exception, path: str) -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    connection, log = asked(failing, path)
    answer = connection.answer()
    assert connection.sent[0]["status"] == 200
    assert answer["status"] == "fail"
    assert answer["trace"] == ""
    assert "secret" not in answer["message"]
    assert " 200 fail " in log


def test_a_failure_after_the_start_of_an_answer_sends_no_second_one() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        await scope["context"].send(HttpResponse(b"{}"), send)
        raise RuntimeError

    connection, _ = asked(failing)
    assert [message["type"] for message in connection.sent] == ["http.response.start", "http.response.body"]


def test_a_caller_who_has_gone_is_noted_and_not_answered() -> None:
    from mlpkit.web.request import read_body

    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, 1000)

    connection, log = asked(reading)
    assert connection.sent == []
    assert " 499 " in log


def test_a_websocket_is_closed() -> None:
    connection = Connection()
    nothing = cast(Any, None)
    state = ServiceState("ready")
    dependencies = Dependencies(
        {}, Settings(), nothing, nothing, nothing, nothing, nothing, LogOutput(io.StringIO()), state, nothing, nothing
    )
    asyncio.run(Application(dependencies)({"type": "websocket"}, connection.receive, connection.send))
    assert connection.sent[0]["type"] == "websocket.close"
