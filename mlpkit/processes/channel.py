"""Messages between the server and a child, on a socket.

A frame is four bytes of length (big-endian), then the message. What is in a message is defined in
`training/process.py` and `serving/messages.py`: msgpack, never pickle.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import NoReturn, cast

Message = bytes | memoryview
_LENGTH = struct.Struct(">I")
_unpack = _LENGTH.unpack_from
LONGEST_MESSAGE = 1 << 30
"""In bytes; every request and answer is shorter. A greater length means that somebody else wrote to the socket."""

LONG = 1 << 16
"""Messages of at least this size are sent without copying; for smaller ones a copy is cheaper than several writes."""
_READ_BUFFER = 4 * LONG
"""Bytes that one read of the blocking end may return."""
_SEND_BUFFER = 2 << 20
"""Bytes that the system may buffer, if it allows that: then a long message wakes the reader only once."""


def _allow_long_writes(channel: socket.socket) -> None:
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)


def _head(length: int) -> bytes:
    if length > LONGEST_MESSAGE:
        raise ValueError(f"a message of {length:,} bytes cannot be sent: the limit is {LONGEST_MESSAGE:,}")
    return _LENGTH.pack(length)


class Frames:
    """Makes whole messages, in order, from the bytes that arrive.

    A long message is read directly into its final memory: while `awaits_long`, put its bytes into `space`, and call
    `arrived` with their number. It is handed on as a view, without a copy.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._place: memoryview | None = None
        """The memory for the long message that has begun."""
        self._filled = 0

    def take(self, data: bytes) -> list[Message]:
        """The messages that these bytes complete; not for use while `awaits_long`.

        Raises:
            ValueError: these bytes are not frames.
        """
        if self._rest:
            data = self._rest + data
        end = len(data)
        if end >= 4 and _unpack(data)[0] == end - 4:
            # One whole message is what arrives most often.
            self._rest = b""
            return [data[4:]]
        messages: list[Message] = []
        start = 0
        while end - start >= 4:
            (length,) = _unpack(data, start)
            if end - start - 4 < length:
                if length > LONG:
                    self._begin_long(length, memoryview(data)[start + 4 :])
                    start = end
                break
            messages.append(data[start + 4 : start + 4 + length])
            start += 4 + length
        self._rest = data[start:]
        return messages

    @property
    def awaits_long(self) -> bool:
        """Whether the next bytes belong to a long message that has begun."""
        return self._place is not None

    def space(self) -> memoryview:
        """Where the next bytes of the long message belong; never empty."""
        assert self._place is not None
        return self._place[self._filled :]

    def arrived(self, count: int) -> list[Message]:
        """The long message, once `count` more bytes in `space` have completed it."""
        assert self._place is not None
        self._filled += count
        if self._filled < len(self._place):
            return []
        whole = self._place
        self._place = None
        return [whole]

    def _begin_long(self, length: int, begun: memoryview) -> None:
        if length > LONGEST_MESSAGE:
            raise ValueError(f"{length:,} bytes are announced: this is not a frame")
        self._place = memoryview(bytearray(length))
        self._filled = len(begun)
        self._place[: self._filled] = begun


class BlockingChannel:
    """A child's end: `send` from any thread, `receive` from one."""

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(True)
        _allow_long_writes(channel)
        self._socket = channel
        os.register_at_fork(after_in_child=self._leave)
        self._sending = threading.RLock()
        self._is_sending = False
        self._postponed: list[Message] = []
        # One buffer for all reads: a new one for every read costs more than the read itself.
        self._buffer = memoryview(bytearray(_READ_BUFFER))
        self._start = 0
        self._end = 0

    def send(self, message: Message) -> None:
        """Writes a message. Nothing happens if the server is gone.

        Raises:
            ValueError: the message is too long.
        """
        head = _head(len(message))
        with self._sending:
            if self._is_sending:
                # A signal handler, in the middle of a message of the thread that it has interrupted.
                self._postponed.append(message)
                return
            self._is_sending = True
            try:
                self._write(head, message)
                while self._postponed:
                    message = self._postponed.pop(0)
                    self._write(_head(len(message)), message)
            except OSError as error:
                # Otherwise the server is gone.
                if error.errno in (errno.EBADF, errno.ENOTSOCK) and self._socket.fileno() >= 0:
                    _end_without_channel()
            finally:
                self._is_sending = False

    def _write(self, head: bytes, message: Message) -> None:
        if len(message) < LONG:
            self._socket.sendall(head + message)
        else:
            self._socket.sendall(head)
            self._socket.sendall(message)

    def _leave(self) -> None:
        """Prepares a forked process: the channel belongs to its parent."""
        self._sending = threading.RLock()
        self._socket.close()

    def receive(self) -> Message | None:
        """The next message; None if the channel has ended."""
        try:
            while True:
                arrived = self._end - self._start
                if arrived >= 4:
                    (length,) = _unpack(self._buffer, self._start)
                    begin = self._start + 4
                    if length <= arrived - 4:
                        self._start = begin + length
                        return bytes(self._buffer[begin : begin + length])
                    if length > LONG:
                        return self._receive_long(length)
                if not self._read_more():
                    return None
        except OSError:
            return None

    def receive_now(self) -> Message | None:
        """The next message if one has begun to arrive, otherwise None."""
        try:
            if self._end == self._start:
                self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return None
        return self.receive()

    def close(self) -> None:
        """Closes the socket. The other end still reads what was sent."""
        self._socket.close()

    def _read_more(self) -> bool:
        """Reads more of the message that has begun; False at the end."""
        if self._start:
            rest = self._end - self._start
            self._buffer[:rest] = self._buffer[self._start : self._end]
            self._start = 0
            self._end = rest
        count = self._socket.recv_into(self._buffer[self._end :])
        self._end += count
        return count > 0

    def _receive_long(self, length: int) -> Message | None:
        """A message that is too long for the buffer."""
        if length > LONGEST_MESSAGE:
            return None
        message = memoryview(bytearray(length))
        filled = self._end - self._start - 4
        message[:filled] = self._buffer[self._start + 4 : self._end]
        self._start = 0
        self._end = 0
        while filled < length:
            count = self._socket.recv_into(message[filled:])
            if count == 0:
                return None
            filled += count
        return message


def _end_without_channel() -> NoReturn:
    """Ends this process.

    Only that can still tell the server and its callers.
    """
    with contextlib.suppress(OSError):
        os.write(2, b"the connection to the server was closed, as os.closerange does with all open files\n")
    os._exit(1)


class AsyncChannel(asyncio.Protocol):
    """An end on an event loop.

    `on_messages` gets every batch of whole messages that arrived; all that it sends is written together when it
    returns. `on_close` is called once, when the channel ends.
    Messages that the other end has not read yet are kept: the senders must limit how many there can be.
    """

    def __init__(self, on_messages: Callable[[list[Message]], None], on_close: Callable[[], None]) -> None:
        self._on_messages = on_messages
        self._on_close = on_close
        self._frames = Frames()
        self._waiting: list[Message] = []
        self._handing_on = False
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(
        cls, channel: socket.socket, on_messages: Callable[[list[Message]], None], on_close: Callable[[], None]
    ) -> AsyncChannel:
        """Puts the socket on the running loop."""
        channel.setblocking(False)
        _allow_long_writes(channel)
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(lambda: cls(on_messages, on_close), sock=channel)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        frames = self._frames
        try:
            messages = frames.take(data)
        except ValueError:
            self._abort()
            return
        if messages:
            self.hand_on(messages)
        if frames.awaits_long and self._transport is not None:
            _read_with(self._transport, _LongMessage(self, self._transport, frames))

    def hand_on(self, messages: list[Message]) -> None:
        """Calls `on_messages`, and then writes all that it has sent."""
        self._handing_on = True
        try:
            self._on_messages(messages)
        finally:
            self._handing_on = False
            if self._waiting:
                self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_close()

    def send(self, *parts: Message) -> None:
        """Writes a message, of one part or several.

        Dropped if the channel has ended (then `on_close` has been called, or will be).

        Raises:
            ValueError: the message is too long.
        """
        self.put(*parts)
        self.flush()

    def put(self, *parts: Message) -> None:
        """Keeps a message until `flush`.

        Several messages that are written together wake the other end once.

        Raises:
            ValueError: the message is too long.
        """
        if self._transport is not None:
            self._waiting.append(_head(sum(map(len, parts))))
            self._waiting += parts

    def flush(self) -> None:
        """Writes what was put; inside `on_messages` this waits until its end."""
        waiting = self._waiting
        if not waiting or self._handing_on or self._transport is None:
            return
        self._waiting = []
        if sum(map(len, waiting)) < LONG:
            self._transport.write(b"".join(waiting))
        else:
            self._transport.writelines(waiting)

    def close(self) -> None:
        """Writes what waits, and closes."""
        self._handing_on = False
        self.flush()
        transport = self._transport
        self._transport = None
        if transport is not None:
            transport.close()

    def _abort(self) -> None:
        transport = self._transport
        self._transport = None
        if transport is not None:
            transport.abort()


class _LongMessage(asyncio.BufferedProtocol):
    """Reads the rest of one long message; then the channel reads on."""

    def __init__(self, channel: AsyncChannel, transport: asyncio.Transport, frames: Frames) -> None:
        self._channel = channel
        self._transport = transport
        self._frames = frames

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._frames.space()

    def buffer_updated(self, nbytes: int) -> None:
        messages = self._frames.arrived(nbytes)
        if messages:
            _read_with(self._transport, self._channel)
            self._channel.hand_on(messages)

    def connection_lost(self, error: Exception | None) -> None:
        self._channel.connection_lost(error)


def _read_with(transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
    # uvloop looks at the protocol when it begins to read.
    transport.pause_reading()
    transport.set_protocol(protocol)
    transport.resume_reading()
