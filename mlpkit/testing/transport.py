"""Requests to a service in the same process.

The ASGI application is called on the event loop of another thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote

import anyio

from mlpkit.client import Answer, StreamedAnswer
from mlpkit.errors import ServiceUnreachable, TimeLimitExceeded

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from starlette.types import ASGIApp, Message, Scope


class InProcessTransport:
    """A `Transport` without a network. The requests' peer is 127.0.0.1."""

    def __init__(self, web: ASGIApp, portal: BlockingPortal) -> None:
        self._web = web
        self._portal = portal

    def request(
        self, method: str, target: str, body: bytes | BinaryIO | None, headers: Mapping[str, str], timeout: float
    ) -> Answer:
        content = body if isinstance(body, bytes) else body.read() if body is not None else b""
        return self._portal.call(self._request, method, target, content, headers, timeout)

    def stream(self, target: str, headers: Mapping[str, str], timeout: float) -> StreamedAnswer:
        # The application waits when one message has not been taken.
        sending, taking = self._portal.call(anyio.create_memory_object_stream["Message"], 1)

        async def serve() -> None:
            async with sending:
                await self._web(_scope("GET", target, b"", headers), _Body(b"").receive, sending.send)

        async def take() -> Message | None:
            with anyio.fail_after(timeout):
                try:
                    return await taking.receive()
                except anyio.EndOfStream:
                    return None

        serving = self._portal.start_task_soon(serve)

        def parts() -> Generator[bytes, None, None]:
            try:
                while (message := self._taken(take, target, timeout)) is not None:
                    yield message.get("body", b"")
            finally:
                serving.cancel()

        try:
            start = self._taken(take, target, timeout)
        except TimeLimitExceeded:
            serving.cancel()
            raise
        if start is None:
            raise ServiceUnreachable(f"GET {target} was not answered")
        return StreamedAnswer(start["status"], _named(start), parts())

    def close(self) -> None:
        pass

    def _taken(self, take: Callable[[], Awaitable[Message | None]], target: str, limit: float) -> Message | None:
        try:
            return self._portal.call(take)
        except TimeoutError:
            raise TimeLimitExceeded(f"GET {target} sent nothing for {limit:g} s") from None

    async def _request(self, method: str, target: str, body: bytes, headers: Mapping[str, str], limit: float) -> Answer:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        try:
            with anyio.fail_after(limit):
                await self._web(_scope(method, target, body, headers), _Body(body).receive, send)
        except TimeoutError:
            raise TimeLimitExceeded(f"{method} {target} was not answered within {limit:g} s") from None
        start, *parts = sent
        return Answer(start["status"], _named(start), b"".join(part.get("body", b"") for part in parts))


class _Body:
    """The body of a request, as the application receives it."""

    def __init__(self, body: bytes) -> None:
        self._waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive(self) -> Message:
        if not self._waiting:
            # An application that asks again waits for the client to disconnect, which it does not do.
            await anyio.sleep_forever()
        return self._waiting.pop()


def _named(start: Message) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}


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
