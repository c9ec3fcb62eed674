"""uvicorn's connection, with one difference: the head and the body of an answer leave together, in one system call."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_AT_ONCE = 1 << 16
"""Bytes from which on nothing is kept: copying them would cost more than another system call."""


class Connection(HttpToolsProtocol):
    """An HTTP/1.1 connection, for `uvicorn.Config(http=Connection)`."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Gathering(transport))  # type: ignore[arg-type]


class _Gathering:
    """A transport that writes what one turn of the loop has for it together; all else is the transport's own."""

    __slots__ = ("_call_soon", "_transport", "_waiting")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._waiting: list[bytes] = []
        self._call_soon = asyncio.get_running_loop().call_soon

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._call_soon(self._flush)
        self._waiting.append(data)
        if len(data) >= _AT_ONCE:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._flush()
        self._transport.set_protocol(protocol)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if len(waiting) == 1:
            self._transport.write(waiting[0])
        elif sum(map(len, waiting)) < _AT_ONCE:
            self._transport.write(b"".join(waiting))
        else:
            self._transport.writelines(waiting)
