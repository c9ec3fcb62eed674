"""Connections that are idle are closed, and only those."""

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
from mlpkit.web.heads import Heads

pytestmark = pytest.mark.anyio
REQUEST = b"POST /predict HTTP/1.1\r\nHost: service\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def refuse(scope: object, body: bytes, send: Any) -> Any:
    """Answers before it returns, as a prediction for a model that is not loaded is answered."""
    send(200, b"content-length: 2\r\n", b"no")
    return lambda: None


def answer_after(seconds: float) -> Any:
    """Answers so many seconds later, as a model does."""

    def begin(scope: object, body: bytes, send: Any) -> Any:
        asyncio.get_running_loop().call_later(seconds, send, 200, b"content-length: 2\r\n", b"ok")
        return lambda: None

    return begin


async def connected(begin: Any) -> tuple[Heads, asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that is closed after one idle second, and whose predictions are begun so."""
    heads = Heads()
    express: Any = SimpleNamespace(path="/predict", limit=100, heads=heads, lets_in=lambda scope: True, begin=begin)
    config = uvicorn.Config("none", timeout_keep_alive=1, log_config=None)
    config.load_app = lambda: None  # type: ignore[method-assign]
    config.load()
    ours, theirs = socket.socketpair()
    await asyncio.get_running_loop().connect_accepted_socket(
        lambda: Connection(express, config=config, server_state=ServerState(), app_state={}), theirs
    )
    return heads, *(await asyncio.open_connection(sock=ours))


async def predict(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The body of the answer to a request."""
    writer.write(REQUEST)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert answer.startswith(b"HTTP/1.1 200")
    return await asyncio.wait_for(reader.readexactly(2), 5)


async def seconds_until_closed(reader: asyncio.StreamReader, since: float) -> float:
    """How long the other end keeps the connection, from that moment on (`time.monotonic`)."""
    assert await asyncio.wait_for(reader.read(), 5) == b""
    return time.monotonic() - since


async def test_connection_is_closed_when_it_idles_after_a_refusal_with_a_known_head() -> None:
    heads, reader, writer = await connected(refuse)
    for _ in range(3):
        assert await predict(reader, writer) == b"no"
    assert heads.find(REQUEST) is not None
    await seconds_until_closed(reader, time.monotonic())
    writer.close()


async def test_connection_stays_open_while_predictions_come_and_closes_one_idle_time_after_the_last() -> None:
    _, reader, writer = await connected(refuse)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert await predict(reader, writer) == b"no"
        answered = time.monotonic()
        await asyncio.sleep(0.3)
    assert 0.9 < await seconds_until_closed(reader, answered) < 2
    writer.close()


async def test_connection_stays_open_during_a_prediction_that_takes_longer_than_the_idle_time() -> None:
    _, reader, writer = await connected(answer_after(1.7))
    for _ in range(3):
        assert await predict(reader, writer) == b"ok"
    assert 0.9 < await seconds_until_closed(reader, time.monotonic()) < 2
    writer.close()
