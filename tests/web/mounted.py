"""The scripted algorithms inside another ASGI application: below `/ml`, and at its root for the probes of the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Message

from tests.wire.wire_algorithms import app as service


@asynccontextmanager
async def lifespan(outer: Starlette) -> AsyncIterator[None]:
    """Opens and closes the service: Starlette leaves the lifespan of what is mounted to its user."""
    messages: asyncio.Queue[Message] = asyncio.Queue()
    answers: asyncio.Queue[Message] = asyncio.Queue()
    running = asyncio.create_task(service({"type": "lifespan"}, messages.get, answers.put))
    await messages.put({"type": "lifespan.startup"})
    assert (await answers.get())["type"] == "lifespan.startup.complete"
    yield
    await messages.put({"type": "lifespan.shutdown"})
    await running


app = Starlette(routes=[Mount("/ml", service), Mount("/", service)], lifespan=lifespan)
