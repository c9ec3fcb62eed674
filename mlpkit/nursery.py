"""The nursery: a process that has imported the framework once, and of which the service's children are forked.

What: `Nursery` is the server's end; `python -m mlpkit.nursery SOCKET MODULE...` is the process. It imports the modules,
freezes its heap, and then forks whenever it is asked to. It runs no code of the user's, no thread and no event loop, so
that a child of it begins as a fresh interpreter would, but at once, and shares the framework's memory with the others.
How: a request is one message on a socket, with three descriptors: the `line` on which the child is followed, its
channel and its output. On the line come the child's pid and, at its end, its exit code. The dead child is collected
when the server has closed the line, so that its pid is nobody else's until then.
Who ends it: it ends when the server is gone, and the server's guard kills it if it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from typing import NoReturn

import msgspec

_NEWS = struct.Struct(">ci")
_BORN, _DEAD = b"+", b"-"
_BIRTH_SECONDS = 30.0
"""How long a child may take to be forked; the first waits for the imports."""
_FULL_SECONDS = 0.005
_LARGEST_REQUEST = 1 << 20


class Birth(msgspec.Struct, frozen=True, array_like=True):
    """What a child is: `python -m module`, in this folder, with this environment and this search path.

    All but the module are bytes, because the names of files and the environment need not be text.
    """

    module: str
    folder: bytes
    path: list[bytes]
    environment: dict[bytes, bytes]


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
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._proven = False

    @property
    def pid(self) -> int | None:
        """The process id, once it is started."""
        return self._process.pid if self._process is not None else None

    def start(self) -> bool:
        """Starts the process where it does not run; whether it did so. Its imports go on meanwhile.

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
        command = [sys.executable, "-X", "faulthandler", "-m", "mlpkit.nursery", str(theirs.fileno()), *self._modules]
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - ourselves
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
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
        os.fsencode(os.getcwd()),
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
        while len(self._news) >= _NEWS.size:
            what, number = _NEWS.unpack_from(self._news)
            self._news = self._news[_NEWS.size :]
            future = self.born if what == _BORN else self.dead
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


class _Process:
    """What runs in the nursery's own process."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._lines: dict[int, socket.socket] = {}
        self._collected_later: set[int] = set()
        self._ends, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._wake = wake

    def run(self) -> Birth:
        """Forks as it is asked to; returns in the children only. The process ends when the server does."""
        waiting = select.poll()
        for each in (self._requests.fileno(), self._ends):
            waiting.register(each, select.POLLIN)
        while True:
            # Nothing but the server's end or a request can be waited for, so there is no time-out.
            for descriptor, _ in waiting.poll():
                if descriptor == self._ends:
                    os.read(self._ends, 4096)
                    self._tell_ends()
                elif descriptor == self._requests.fileno():
                    birth = self._take(waiting)
                    if birth is not None:
                        return birth
                else:
                    waiting.unregister(descriptor)
                    self._let_go(descriptor)

    def _take(self, waiting: select.poll) -> Birth | None:
        """Forks for the next request: what the child is, in the child."""
        message, descriptors, _, _ = socket.recv_fds(self._requests, _LARGEST_REQUEST, 3)
        if not message:
            os._exit(0)
        try:
            # Where the machine has no room for a process, or for its descriptors, the server hears that its line has
            # ended, and a fresh interpreter will say why it cannot be.
            pid = os.fork() if len(descriptors) == 3 else -1
        except OSError:
            pid = -1
        if pid:
            for each in descriptors if pid < 0 else descriptors[1:]:
                os.close(each)
            if pid > 0:
                self._lines[pid] = socket.socket(fileno=descriptors[0])
                waiting.register(descriptors[0], 0)
            return None
        self._leave(socket.socket(fileno=descriptors[0]), *descriptors[1:])
        return msgspec.msgpack.decode(message, type=Birth)

    def _leave(self, line: socket.socket, channel: int, output: int) -> None:
        """In the child: nothing of the nursery's remains, but what it has imported."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._ends)
        os.close(self._wake)
        self._requests.close()
        for each in self._lines.values():
            each.close()
        self._lines.clear()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        os.set_inheritable(channel, False)
        sys.argv[1:] = [str(channel)]
        with line:
            line.sendall(_NEWS.pack(_BORN, os.getpid()))

    def _tell_ends(self) -> None:
        """Says which children have ended; they stay zombies, so that nobody else gets their pids."""
        for pid, line in self._lines.items():
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is not None:
                code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
                with contextlib.suppress(OSError):
                    line.send(_NEWS.pack(_DEAD, code), socket.MSG_DONTWAIT)
        for pid in list(self._collected_later):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._collected_later.discard(pid)

    def _let_go(self, descriptor: int) -> None:
        """Collects a child that the server has closed the line of: now, or when it ends."""
        pid = next(pid for pid, line in self._lines.items() if line.fileno() == descriptor)
        self._lines.pop(pid).close()
        if not os.waitpid(pid, os.WNOHANG)[0]:
            self._collected_later.add(pid)


def main() -> None:
    """Runs the nursery; in a child, the module that it is."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    requests.set_inheritable(False)
    for name in sys.argv[2:]:
        # What is missing here is missed again, and reported, where it is needed.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        # Something that every interpreter of this machine imports has started a thread: no place for a fork.
        return
    gc.collect()
    gc.freeze()
    _become(_Process(requests).run())


def _become(birth: Birth) -> NoReturn:
    """Runs the module as `python -m` would."""
    os.chdir(birth.folder)
    for name in os.environb.keys() - birth.environment.keys():
        del os.environb[name]
    os.environb.update(birth.environment)
    sys.path[:] = [os.fsdecode(each) for each in birth.path]
    importlib.invalidate_caches()
    _name_process(birth.module)
    runpy.run_module(birth.module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def _name_process(name: str) -> None:
    # What `top` and `ps -o comm` show; the command line stays the nursery's.
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name[:15])


if __name__ == "__main__":
    main()
