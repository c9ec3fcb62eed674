"""What runs in the nursery's own process, and what its children begin with."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from mlpkit.nursery.messages import BORN, DEAD, LARGEST_REQUEST, NEWS, Birth

_ARG_START = 45
"""Where in /proc/PID/stat, behind the name: arg_start of proc(5), and arg_end after it."""


def import_framework(modules: Sequence[str]) -> None:
    """Imports what children need."""
    for name in modules:
        # What is missing here is missed again, and reported, where it is needed.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def has_threads() -> bool:
    """Whether more than one thread runs here, Python's or another one: then a fork would be a gamble."""
    return len(os.listdir("/proc/self/task")) > 1


def run(requests: socket.socket) -> NoReturn:
    """Runs the nursery until the server ends; in a child, the module that it is."""
    gc.collect()
    gc.freeze()
    _name_process("mlpkit.nursery")
    try:
        birth = _Parent(requests).run()
    except BaseException:
        # What is registered for the exit is the server's, where this was forked of it.
        traceback.print_exc()
        os._exit(1)
    _become(birth)


class _Parent:
    """Forks, and follows what it has forked."""

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
        message, descriptors, _, _ = socket.recv_fds(self._requests, LARGEST_REQUEST, 3)
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
            line.sendall(NEWS.pack(BORN, os.getpid()))

    def _tell_ends(self) -> None:
        """Says which children have ended; they stay zombies, so that nobody else gets their pids."""
        for pid, line in self._lines.items():
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is not None:
                code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
                with contextlib.suppress(OSError):
                    line.send(NEWS.pack(DEAD, code), socket.MSG_DONTWAIT)
        for pid in list(self._collected_later):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._collected_later.discard(pid)

    def _let_go(self, descriptor: int) -> None:
        """Collects a child that the server has closed the line of: now, or when it ends."""
        pid = next(pid for pid, line in self._lines.items() if line.fileno() == descriptor)
        self._lines.pop(pid).close()
        if not os.waitpid(pid, os.WNOHANG)[0]:
            self._collected_later.add(pid)


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


def _name_process(module: str) -> None:
    """Lets `top` and `ps` show the module, and a `pkill -f` that means the server not hit what is forked of it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(module[:15])
        own, start, end = _command_line()
        command = b"\0".join((own, b"-m", module.encode()))
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(command[: end - start - 1].ljust(end - start, b"\0"))


def _command_line() -> tuple[bytes, int, int]:
    """The name of the program in this process's command line, and where in the memory that begins and ends."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = map(int, fields[_ARG_START : _ARG_START + 2])
    if not 0 < start < end:
        raise OSError("this system does not tell where it is")
    return Path("/proc/self/cmdline").read_bytes().partition(b"\0")[0], start, end
