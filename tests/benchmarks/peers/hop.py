"""The least that a model in another process can cost: the bare callable with its model behind a socket.

No limits, metrics, errors or restarts: only a uuid, a log line, and one write for the frames of one turn of the loop.
What mlpkit takes beyond this is the price of its guarantees. The worker runs on uvloop, or with HOP_WORKER=blocking in
one thread without an event loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from random import getrandbits
from typing import cast

import msgspec

from tests.benchmarks.bare import Message, Receive, Send
from tests.benchmarks.workloads import WORKLOADS


class Envelope(msgspec.Struct):
    model_id: str
    features: msgspec.Raw


class Frame(msgspec.Struct, array_like=True):
    number: int
    content: bytes


_envelope = msgspec.json.Decoder(Envelope)
_frame = msgspec.msgpack.Decoder(Frame)
_HEAD, _TAIL = b'{"status": "success", "data": {"predictions": ', b"}}"
_LINES = 64
_BUFFER = 1 << 18


class End(asyncio.Protocol):
    """An end of the socket; `take` gets every frame."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        data, start = self._rest + data, 0
        while len(data) - start >= 4:
            end = start + 4 + int.from_bytes(data[start : start + 4], "big")
            if end > len(data):
                break
            self.take(_frame.decode(data[start + 4 : end]))
            start = end
        self._rest = data[start:]

    def take(self, frame: Frame) -> None:
        raise NotImplementedError

    def send(self, frame: Frame) -> None:
        content = msgspec.msgpack.encode(frame)
        if not self._waiting:
            self._loop.call_soon(self._write)
        self._waiting += (len(content).to_bytes(4, "big"), content)

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._transport.write(b"".join(waiting))


class ServerEnd(End):
    def __init__(self) -> None:
        super().__init__()
        self._futures: dict[int, asyncio.Future[bytes]] = {}

    def ask(self, features: bytes) -> asyncio.Future[bytes]:
        number, future = getrandbits(32), self._loop.create_future()
        self._futures[number] = future
        self.send(Frame(number, features))
        return future

    def take(self, frame: Frame) -> None:
        self._futures.pop(frame.number).set_result(frame.content)


class WorkerEnd(End):
    def __init__(self) -> None:
        super().__init__()
        make, self._call = WORKLOADS[os.environ["WORKLOAD"]]
        self._model = make()
        self.closed = asyncio.Event()

    def take(self, frame: Frame) -> None:
        (answer,) = self._call(self._model, [msgspec.json.decode(frame.content)])
        self.send(Frame(frame.number, msgspec.json.encode(answer)))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()


_worker: ServerEnd | None = None
_log: list[str] = []


async def asgi(scope: Message, receive: Receive, send: Send) -> None:
    began = time.perf_counter()
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"])
        if not message.get("more_body"):
            break
    uuid = f"{getrandbits(128):032x}"
    worker = _worker or await _start()
    predictions = await worker.ask(bytes(_envelope.decode(b"".join(parts)).features))
    body = b"".join((_HEAD, predictions, _TAIL))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", uuid.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    _log.append(f"{time.time():.3f} INFO [{uuid}] POST /predict 200 {(time.perf_counter() - began) * 1e3:.1f} ms\n")
    if len(_log) >= _LINES:
        sys.stderr.write("".join(_log))
        _log.clear()


async def _start() -> ServerEnd:
    """The worker, for the first request: the benchmark sends that alone."""
    global _worker
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        await asyncio.create_subprocess_exec(*command, pass_fds=(theirs.fileno(),))
    _, _worker = await asyncio.get_running_loop().create_connection(ServerEnd, sock=ours)
    return _worker


async def _serve(channel: socket.socket) -> None:
    _, end = await asyncio.get_running_loop().create_connection(WorkerEnd, sock=channel)
    await end.closed.wait()


def _serve_blocking(channel: socket.socket) -> None:
    make, call = WORKLOADS[os.environ["WORKLOAD"]]
    model = make()
    buffer = bytearray(_BUFFER)
    view, filled = memoryview(buffer), 0
    while count := channel.recv_into(view[filled:]):
        filled, start = filled + count, 0
        answers: list[bytes] = []
        while filled - start >= 4:
            end = start + 4 + int.from_bytes(view[start : start + 4], "big")
            if end > filled:
                break
            frame = _frame.decode(view[start + 4 : end])
            (answer,) = call(model, [msgspec.json.decode(frame.content)])
            content = msgspec.msgpack.encode(Frame(frame.number, msgspec.json.encode(answer)))
            answers += (len(content).to_bytes(4, "big"), content)
            start = end
        buffer[: filled - start] = buffer[start:filled]
        filled -= start
        channel.sendall(b"".join(answers))


if __name__ == "__main__":
    channel = socket.socket(fileno=int(sys.argv[1]))
    if os.environ.get("HOP_WORKER") == "blocking":
        _serve_blocking(channel)
    else:
        import uvloop

        uvloop.run(_serve(channel))
