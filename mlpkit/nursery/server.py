"""The server's end of the nursery: starts it, asks it for children, and follows them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping

import msgspec

from mlpkit import start_folder
from mlpkit.nursery.messages import BORN, NEWS, Birth
from mlpkit.nursery.origin import Process, forked, fresh

_BIRTH_SECONDS = 30.0
"""How long a child may take to be forked; the first waits for the imports."""
_FULL_SECONDS = 0.005


class NurseryGone(Exception):
    """No child can come from this nursery: a fresh interpreter must do."""


class Forked:
    """A child that the nursery has forked: the server's end. Used on one event loop, and closed there."""

    def __init__(self, line: _Line, pid: int) -> None:
        self._line, self.pid = line, pid

    @property
    def returncode(self) -> int | None:
        """The exit code once it has ended: below zero the signal, as subprocess has it."""
        return self._line.dead.result() if self._line.dead.done() else None

    async def wait(self) -> int:
        """Waits for its end, or until nobody would hear of that any more: then it is `lost`, and must be killed."""
        return await asyncio.shield(self._line.dead)

    @property
    def lost(self) -> bool:
        """Whether the nursery ended before it."""
        return self._line.lost

    def terminate(self) -> None:
        """Sends SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)

    def close(self) -> None:
        """Lets the nursery collect the child: from here on its pid may be another process's."""
        self._line.close()


class Nursery:
    """The server's end. The process starts with `start`, at the latest with the first child; one for a whole server.

    Args:
        modules: what the process imports; only modules that start nothing.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._process: Process | None = None
        self._requests: socket.socket | None = None
        self._proven = False

    @property
    def pid(self) -> int | None:
        """The process id, once it is started."""
        return self._process.pid if self._process is not None else None

    def start(self, *, fork: bool = False) -> bool:
        """Starts the process where it does not run; whether it did so.

        With `fork` it is forked of this one, where that can be: where this has run nothing but mlpkit yet.

        Raises:
            NurseryGone: there can be none: not Linux, or the last one ended before it had a child.
        """
        if self._process is not None and self._process.poll() is None:
            return False
        if sys.platform != "linux" or (self._process is not None and not self._proven):
            raise NurseryGone
        if self._requests is not None:
            self._requests.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = forked(theirs, ours, self._modules) if fork else None
                self._process = process or fresh(theirs, self._modules)
            except OSError as error:
                ours.close()
                raise NurseryGone from error
        ours.setblocking(False)
        self._requests, self._proven = ours, False
        return True

    async def fork(self, module: str, environment: Mapping[str, str], channel: socket.socket, output: int) -> Forked:
        """A child that runs `module` with a channel, and with `output` as its stdout and stderr.

        Raises:
            NurseryGone: the nursery has ended, or cannot take this.
            OSError: it did not answer in time, and was killed.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        _, line = await asyncio.get_running_loop().create_connection(_Line, sock=ours)
        try:
            with theirs:
                request = msgspec.msgpack.encode(_birth(module, environment))
                await asyncio.wait_for(self._send(request, theirs.fileno(), channel.fileno(), output), _BIRTH_SECONDS)
            pid = await asyncio.wait_for(asyncio.shield(line.born), _BIRTH_SECONDS)
        except asyncio.TimeoutError:
            line.close()
            # It must not fork later: the channel would have two owners.
            self.kill()
            raise OSError(f"the nursery did not fork within {_BIRTH_SECONDS:g} s") from None
        except OSError as error:
            line.close()
            raise NurseryGone from error
        except BaseException:
            line.close()
            raise
        self._proven = True
        return Forked(line, pid)

    def kill(self) -> None:
        """Ends the process at once; the next `start` makes another one."""
        if self._process is not None:
            self._process.kill()

    async def _send(self, request: bytes, *descriptors: int) -> None:
        while self._requests is not None:
            try:
                socket.send_fds(self._requests, [request], descriptors)
            except BlockingIOError:
                # It is still importing, and others wait already.
                await asyncio.sleep(_FULL_SECONDS)
            else:
                return
        raise NurseryGone


def _birth(module: str, environment: Mapping[str, str]) -> Birth:
    return Birth(
        module,
        os.fsencode(start_folder),
        [os.fsencode(each) for each in sys.path],
        {os.fsencode(name): os.fsencode(value) for name, value in environment.items()},
    )


class _Line(asyncio.Protocol):
    """The server's end of a line: the pid and the exit code, when they arrive."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.born: asyncio.Future[int] = loop.create_future()
        self.dead: asyncio.Future[int] = loop.create_future()
        self.lost = False
        self._transport: asyncio.BaseTransport | None = None
        self._news = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._news += data
        while len(self._news) >= NEWS.size:
            what, number = NEWS.unpack_from(self._news)
            self._news = self._news[NEWS.size :]
            future = self.born if what == BORN else self.dead
            if not future.done():
                future.set_result(number)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.born.done():
            self.born.set_exception(NurseryGone())
            self.born.exception()
        if not self.dead.done():
            self.lost = True
            self.dead.set_result(-signal.SIGKILL)

    def close(self) -> None:
        if self._transport is not None:
            # The loop may have ended before its children: then the socket goes with it.
            with contextlib.suppress(RuntimeError):
                self._transport.close()
