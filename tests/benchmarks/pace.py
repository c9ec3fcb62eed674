"""An open-loop client: requests leave at a constant rate, whether answers come or not.

A closed loop, as `wrk` makes it, waits for a slow server and so hides its tail. Here each latency counts from the
moment at which the request was due, a wait for a free connection included.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_HEAD_END = b"\r\n\r\n"
CONNECTIONS = 64
ANSWER_SECONDS = 30.0


@dataclass(eq=False)
class Stream:
    """Requests at a constant rate per second; the bodies take turns. `latencies` is in seconds."""

    bodies: Sequence[object]
    rate: float
    latencies: list[float] = field(default_factory=list)
    failures: int = 0

    def percentile(self, share: float) -> float:
        """The latency in ms that `share` of the requests stay below."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


async def pace(port: int, streams: Sequence[Stream], seconds: float) -> None:
    """Sends every stream for some seconds and fills in what it found.

    Raises:
        TimeoutError: answers are missing half a minute later.
    """
    client = _Client(streams, seconds)
    await client.connect(port)
    try:
        client.start()
        await asyncio.wait_for(client.done.wait(), seconds + ANSWER_SECONDS)
    finally:
        client.close()


class _Client:
    def __init__(self, streams: Sequence[Stream], seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._requests = [[_request(body) for body in stream.bodies] for stream in streams]
        self._streams = streams
        self._totals = [int(stream.rate * seconds) for stream in streams]
        self._sent = [0] * len(streams)
        self._open = sum(self._totals)
        self._all: list[_Connection] = []
        self.free: list[_Connection] = []
        self._waiting: deque[tuple[Stream, float, bytes]] = deque()
        self.done = asyncio.Event()

    async def connect(self, port: int) -> None:
        for _ in range(CONNECTIONS):
            _, connection = await self._loop.create_connection(lambda: _Connection(self), "127.0.0.1", port)
            self._all.append(connection)
        self.free = list(self._all)

    def start(self) -> None:
        self._start = time.perf_counter()
        self._tick()

    def close(self) -> None:
        for connection in self._all:
            connection.transport.close()

    def _tick(self) -> None:
        """Sends what is due. It polls: timers of event loops are in milliseconds, and would make bursts."""
        now = time.perf_counter()
        for index, stream in enumerate(self._streams):
            while self._sent[index] < self._totals[index]:
                due = self._start + self._sent[index] / stream.rate
                if due > now:
                    break
                requests = self._requests[index]
                self._send(stream, due, requests[self._sent[index] % len(requests)])
                self._sent[index] += 1
        if not self.done.is_set():
            self._loop.call_soon(self._tick)

    def _send(self, stream: Stream, due: float, request: bytes) -> None:
        if self.free:
            self.free.pop().send(stream, due, request)
        else:
            self._waiting.append((stream, due, request))

    def answered(self, connection: _Connection) -> None:
        self._open -= 1
        if self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self.free.append(connection)
        if self._open == 0:
            self.done.set()


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport
    _stream: Stream
    _due: float

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    def send(self, stream: Stream, due: float, request: bytes) -> None:
        self._stream, self._due = stream, due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        head = received.find(_HEAD_END)
        length = _LENGTH.search(received, 0, head + 2) if head > 0 else None
        if length is None or len(received) < head + len(_HEAD_END) + int(length[1]):
            return
        self._received = b""
        self._stream.latencies.append(time.perf_counter() - self._due)
        self._stream.failures += b'"success"' not in received
        self._client.answered(self)


def _request(body: object) -> bytes:
    content = json.dumps(body).encode()
    head = b"POST /predict HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(content) + content
