"""Requests to a service in the same process.

The ASGI application is called on the event loop of another thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote

import anyio

from mlpkit.client import Answer
from mlpkit.errors import TimeLimitExceeded

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from starlette.types import ASGIApp, Message, Scope


class InProcessTransport:
    """A `Transport` without a network. The requests' peer is 127.0.0.1."""

    def __init__(self, web: ASGIApp, portal: BlockingPortal) -> None:
        self._web = web
        self._portal = portal

    def request(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], timeout: float
    ) -> Answer:
        return self._portal.call(self._request, method, target, body or b"", headers, timeout)

    def close(self) -> None:
        pass

    async def _request(self, method: str, target: str, body: bytes, headers: Mapping[str, str], limit: float) -> Answer:
        sent: list[Message] = []
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if not waiting:
                # An application that asks again waits for the client to disconnect, which it does not do.
                await anyio.sleep_forever()
            return waiting.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        try:
            with anyio.fail_after(limit):
                await self._web(_scope(method, target, body, headers), receive, send)
        except TimeoutError:
            raise TimeLimitExceeded(f"{method} {target} was not answered within {limit:g} s") from None
        start, *parts = sent
        found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
        return Answer(start["status"], found, b"".join(part.get("body", b"") for part in parts))


def _scope(method: str, target: str, body: bytes, headers: Mapping[str, str]) -> Scope:
    path, _, query = target.partition("?")
    every = {"host": "testservice", "content-length": str(len(body)), **headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in every.items()],
        "client": ("127.0.0.1", 0),
        "server": ("testservice", 80),
    }
