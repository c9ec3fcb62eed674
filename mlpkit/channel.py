"""Frames on the socket between the server and a child: four bytes of length (big-endian), then the message.

What is in a message is the business of the two ends (`training/trainer.py`, `serving/messages.py`): msgpack, never
pickle.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import cast

_LENGTH = struct.Struct(">I")
LONGEST_MESSAGE = 1 << 30
"""Bytes; no request and no answer is longer. A length above it means that somebody else wrote into the socket."""

_COPIED = 1 << 16
"""Bytes up to which messages are put together: cheaper than to hand each to the system."""


def frame(message: bytes) -> bytes:
    """The message with its length in front, ready to be written.

    Raises:
        ValueError: it is longer than `LONGEST_MESSAGE`.
    """
    return _head(message) + message


def _head(message: bytes) -> bytes:
    if len(message) > LONGEST_MESSAGE:
        raise ValueError(f"a message of {len(message):,} bytes cannot be sent: the limit is {LONGEST_MESSAGE:,}")
    return _LENGTH.pack(len(message))


class Frames:
    """Takes bytes as they arrive and gives back whole messages, in order."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._missing = 0
        """Bytes without which no message is complete."""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes.

        Raises:
            ValueError: these are no frames.
        """
        if self._parts:
            self._parts.append(data)
            if len(data) < self._missing:
                self._missing -= len(data)
                return []
            data = b"".join(self._parts)
        messages, start, end = [], 0, len(data)
        stop = 4
        while stop <= end:
            (length,) = _LENGTH.unpack_from(data, start)
            stop += length
            if stop > end:
                if length > LONGEST_MESSAGE:
                    raise ValueError(f"{length:,} bytes are announced: this is no frame")
                break
            messages.append(data[start + 4 : stop])
            start, stop = stop, stop + 4
        self._parts, self._missing = [data[start:]] if start < end else [], stop - end
        return messages


class BlockingChannel:
    """A child's end without an event loop: `send` from any thread, `receive` from one."""

    def __init__(self, channel: socket.socket) -> None:
        self._socket, self._lock = channel, threading.Lock()
        self._stream = channel.makefile("rb")

    def send(self, message: bytes) -> None:
        """Writes a message; nothing happens when the server is gone (the guard ends this process).

        Raises:
            ValueError: the message is too long.
        """
        whole = frame(message)
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(whole)

    def receive(self) -> bytes | None:
        """The next message, or None when the server has closed the channel or is gone."""
        try:
            head = self._stream.read(4)
            if len(head) < 4:
                return None
            (length,) = _LENGTH.unpack(head)
            message = self._stream.read(length)
        except OSError:
            return None
        return message if len(message) == length else None

    def close(self) -> None:
        """Closes the socket; the other end reads to the end of what was sent."""
        self._stream.close()
        self._socket.close()


class AsyncChannel(asyncio.Protocol):
    """An end on an event loop. The messages of one turn of the loop are written together, when the turn ends.

    `on_messages` gets every batch of whole messages that arrived; `on_close` is called once, when the channel ends.
    What is sent faster than the other end reads is kept: those who send bound how much that can be.
    """

    def __init__(self, on_messages: Callable[[list[bytes]], None], on_close: Callable[[], None]) -> None:
        self._on_messages, self._on_close = on_messages, on_close
        self._frames = Frames()
        self._waiting: list[bytes] = []
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
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._frames.feed(data)
        except ValueError:
            self._abort()
            return
        if messages:
            self._on_messages(messages)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_close()

    def send(self, message: bytes) -> None:
        """Writes a message soon; dropped when the channel has ended (then `on_close` has been called, or will be).

        Raises:
            ValueError: the message is too long.
        """
        if self._transport is None:
            return
        if not self._waiting:
            # Written at once, it would wake the other end for this message alone.
            self._loop.call_soon(self._write_waiting)
        self._waiting.append(_head(message))
        self._waiting.append(message)

    def close(self) -> None:
        """Writes what waits, and closes."""
        self._write_waiting()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _abort(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def _write_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting or self._transport is None:
            return
        if sum(map(len, waiting)) < _COPIED:
            self._transport.write(b"".join(waiting))
        else:
            self._transport.writelines(waiting)
