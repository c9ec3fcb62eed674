"""Frames on the socket between the server and a child: four bytes of length (big-endian), then the message.

What is in a message is the business of the two ends (`training/trainer.py`, `serving/messages.py`): msgpack, never pickle.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable

_LENGTH = struct.Struct(">I")


def frame(message: bytes) -> bytes:
    """The message with its length in front, ready to be written."""
    return _LENGTH.pack(len(message)) + message


class Frames:
    """Takes bytes as they arrive and gives back whole messages, in order."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes."""
        buffer = self._buffer
        buffer += data
        messages, start, end = [], 0, len(buffer)
        while end - start >= 4:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if end - start - 4 < length:
                break
            messages.append(bytes(memoryview(buffer)[start + 4 : start + 4 + length]))
            start += 4 + length
        if start:
            del buffer[:start]
        return messages


class BlockingChannel:
    """A child's end without an event loop: `send` from any thread, `receive` from one."""

    def __init__(self, channel: socket.socket) -> None:
        self._socket, self._lock = channel, threading.Lock()
        self._stream = channel.makefile("rb")

    def send(self, message: bytes) -> None:
        """Writes a message; nothing happens when the server is gone (the guard ends this process)."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(frame(message))

    def receive(self) -> bytes | None:
        """The next message, or None when the server has closed the channel."""
        head = self._stream.read(4)
        if len(head) < 4:
            return None
        (length,) = _LENGTH.unpack(head)
        message = self._stream.read(length)
        return message if len(message) == length else None


class AsyncChannel(asyncio.Protocol):
    """An end on an event loop. The first message of a moment is written at once, those that follow it together.

    `on_messages` gets every batch of whole messages that arrived; `on_close` is called once, when the other end is gone.
    """

    def __init__(self, on_messages: Callable[[list[bytes]], None], on_close: Callable[[], None]) -> None:
        self._on_messages, self._on_close = on_messages, on_close
        self._frames, self._waiting, self._scheduled = Frames(), bytearray(), False
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(
        cls, channel: socket.socket, on_messages: Callable[[list[bytes]], None], on_close: Callable[[], None]
    ) -> AsyncChannel:
        """Puts the socket on the running loop."""
        channel.setblocking(False)
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(lambda: cls(on_messages, on_close), sock=channel)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        messages = self._frames.feed(data)
        if messages:
            self._on_messages(messages)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_close()

    def send(self, message: bytes) -> None:
        """Writes a message soon; dropped when the other end is gone (then `on_close` has been called, or will be)."""
        if self._transport is None:
            return
        if self._scheduled:
            self._waiting += _LENGTH.pack(len(message))
            self._waiting += message
            return
        self._scheduled = True
        self._transport.write(frame(message))
        self._loop.call_soon(self._write_waiting)

    def close(self) -> None:
        """Writes what waits, and closes."""
        self._write_waiting()
        if self._transport is not None:
            self._transport.close()

    def _write_waiting(self) -> None:
        self._scheduled = False
        if self._waiting and self._transport is not None:
            waiting, self._waiting = self._waiting, bytearray()
            self._transport.write(waiting)
