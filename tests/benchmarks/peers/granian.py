"""granian: a bare RSGI callable that calls the model on the loop."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.bare import answer

_HEADERS = [("content-type", "application/json")]


async def app(scope: Any, protocol: Any) -> None:
    body = await protocol()
    protocol.response_bytes(200, _HEADERS, answer(body))
