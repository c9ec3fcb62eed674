"""Connections that are idle are closed, also those whose last prediction was refused at once."""

from __future__ import annotations

import asyncio
import socket
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


async def test_connection_is_closed_when_it_idles_after_a_refusal_with_a_known_head() -> None:
    heads = Heads()
    express: Any = SimpleNamespace(path="/predict", limit=100, heads=heads, lets_in=lambda scope: True, begin=refuse)
    config = uvicorn.Config("none", timeout_keep_alive=1, log_config=None)
    config.load_app = lambda: None  # type: ignore[method-assign]
    config.load()
    ours, theirs = socket.socketpair()
    await asyncio.get_running_loop().connect_accepted_socket(
        lambda: Connection(express, config=config, server_state=ServerState(), app_state={}), theirs
    )
    reader, writer = await asyncio.open_connection(sock=ours)
    for _ in range(3):
        writer.write(REQUEST)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\nno"), 5)
        assert answer.startswith(b"HTTP/1.1 200")
    assert heads.find(REQUEST) is not None
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
