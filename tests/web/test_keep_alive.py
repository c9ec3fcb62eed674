"""Connections that are idle are closed, and only those; and what a connection does with a body in many parts."""

from __future__ import annotations

import asyncio
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from mlpkit.web.connection import Connection
from mlpkit.web.request import HttpResponse
from tests.servers import LONG, SOON

pytestmark = pytest.mark.anyio
HEAD = b"POST /predict HTTP/1.1\r\nHost: service\r\n"
REQUEST = HEAD + b"Content-Length: 2\r\n\r\n{}"


def refuse(context: object, body: bytes, respond: Any) -> None:
    """Answers before it returns, as a prediction for a model that is not loaded is answered."""
    respond(HttpResponse(b"no"))


def answer_after(seconds: float) -> Any:
    """Answers so many seconds later, as a model does."""

    def begin(context: object, body: bytes, respond: Any) -> Any:
        asyncio.get_running_loop().call_later(seconds, respond, HttpResponse(b"ok"))

    return begin


async def _nothing(scope: object, receive: object, send: object) -> None:
    """An application that is never called."""


async def connected(begin: Any, limit: int = 100) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that is closed after one idle second, and whose predictions are begun so."""
    application: Any = SimpleNamespace(
        predict=SimpleNamespace(answer=begin, limit=limit),
        predict_path="/predict",
        settings=SimpleNamespace(predict_shortcut=True),
        admit=lambda context: None,
        note_soon=lambda context: None,
    )
    config = uvicorn.Config(_nothing, timeout_keep_alive=1, log_config=None)
    config.load()
    ours, theirs = socket.socketpair()
    await asyncio.get_running_loop().connect_accepted_socket(
        lambda: Connection(application, config=config, server_state=ServerState(), app_state={}), theirs
    )
    return await asyncio.open_connection(sock=ours)


async def predict(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The body of the answer to a request."""
    writer.write(REQUEST)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LONG)
    assert answer.startswith(b"HTTP/1.1 200")
    return await asyncio.wait_for(reader.readexactly(2), LONG)


async def seconds_until_closed(reader: asyncio.StreamReader, since: float) -> float:
    """How long the other end keeps the connection, from that moment on (`time.monotonic`)."""
    assert await asyncio.wait_for(reader.read(), LONG) == b""
    return time.monotonic() - since


async def test_connection_is_closed_when_it_idles_after_a_refusal() -> None:
    reader, writer = await connected(refuse)
    for _ in range(3):
        assert await predict(reader, writer) == b"no"
    await seconds_until_closed(reader, time.monotonic())
    writer.close()


async def test_connection_stays_open_while_predictions_come_and_closes_one_idle_time_after_the_last() -> None:
    reader, writer = await connected(refuse)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert await predict(reader, writer) == b"no"
        answered = time.monotonic()
        await asyncio.sleep(0.3)
    assert 0.9 < await seconds_until_closed(reader, answered) < SOON
    writer.close()


async def test_connection_stays_open_during_a_prediction_that_takes_longer_than_the_idle_time() -> None:
    reader, writer = await connected(answer_after(1.7))
    for _ in range(3):
        assert await predict(reader, writer) == b"ok"
    assert 0.9 < await seconds_until_closed(reader, time.monotonic()) < SOON
    writer.close()


async def test_body_in_a_million_parts_holds_the_loop_for_moments_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpkit.web.connection._HELD_SECONDS", 60.0)
    bodies: list[bytes] = []

    def begin(context: object, body: bytes, respond: Any) -> None:
        bodies.append(body)
        refuse(context, body, respond)

    reader, writer = await connected(begin, limit=64 << 20)
    began = time.thread_time()
    turns = asyncio.create_task(longest_turn())
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(150):
        writer.write((b"8\r\n" + b"x" * 8 + b"\r\n") * 10_000)
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b"no"), LONG)
    turns.cancel()
    assert await turns < (time.thread_time() - began) / 10
    assert bodies == [b"x" * 12_000_000]
    writer.close()


async def longest_turn() -> float:
    """The most processor time of a turn of the loop until the task is cancelled; other processes do not count."""
    longest = 0.0
    try:
        while True:
            started = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - started)
    except asyncio.CancelledError:
        return longest
