"""How the nursery's process comes to be: forked of a server that has run nothing yet, or a fresh interpreter.

A forked one is in all that a child of it can notice what a fresh interpreter is: it has its own session, none of the
server's descriptors, Python's own dispositions of the signals, and streams, crash dumps and a log that lead to where
the child's output will be.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn, Protocol

from mlpkit import start_folder
from mlpkit.nursery.parent import has_threads, import_framework, run
from mlpkit.nursery.stack import can_descend, descend


class Process(Protocol):
    """What the server can do about the nursery's process."""

    @property
    def pid(self) -> int:
        """The process id; nobody else's until `poll` has told the end."""

    def poll(self) -> int | None:
        """The exit code once it has ended, and collects it then."""

    def kill(self) -> None:
        """Ends it at once, where it has not ended."""


def fresh(requests: socket.socket, modules: Sequence[str]) -> Process:
    """A fresh interpreter; its imports go on meanwhile.

    Raises:
        OSError: it cannot be started.
    """
    number = requests.fileno()
    return subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-X", "faulthandler", "-m", "mlpkit.nursery", str(number), *modules],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(number,),
        cwd=start_folder,
        start_new_session=True,
    )


def forked(requests: socket.socket, ours: socket.socket, modules: Sequence[str]) -> Process | None:
    """A fork of this process, which has imported the modules then; None where it cannot be forked.

    `ours` is the server's end of the socket. In the new process this does not return.
    """
    if not _is_as_fresh():
        return None
    import_framework(modules)
    if has_threads():
        return None
    # Neither collector may write to what both share, for as long as they live. To collect the little garbage of imports
    # first would take longer than all the rest of this.
    gc.freeze()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
    except OSError:
        gc.unfreeze()
        return None
    return _Fork(pid) if pid else _begin(requests, ours)


class _Fork:
    """A forked process, as `subprocess.Popen` would show it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            try:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                # Code of the user's has collected it, as `os.wait()` does.
                self._code = 0
            else:
                self._code = os.waitstatus_to_exitcode(status) if ended else None
        return self._code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _is_as_fresh() -> bool:
    """Whether nothing here could be in the way of what the children run: no thread, no loop, no debugger."""
    streams = ((sys.stdin, sys.__stdin__), (sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__))
    return (
        can_descend()
        and all(now is own and isinstance(own, io.TextIOWrapper) for now, own in streams)
        and not _is_watched()
        and not has_threads()
        and not _has_loop()
    )


def _is_watched() -> bool:
    """Whether a debugger, a profiler or a measurement of coverage follows what runs here."""
    if sys.gettrace() is not None or sys.getprofile() is not None:
        return True
    return sys.version_info >= (3, 12) and any(sys.monitoring.get_tool(tool) is not None for tool in range(6))


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _begin(requests: socket.socket, ours: socket.socket) -> NoReturn:
    """In the new process: runs the nursery, which has nothing of the server's but what it has imported."""
    try:
        os.setsid()
        ours.close()
        kept = socket.socket(fileno=requests.detach())
        _close_all_but(kept.fileno())
        _reset_signals()
        _reset_streams()
    except BaseException:
        # The server's own handlers must not see this.
        os._exit(1)
    descend(partial(run, kept))


def _close_all_but(kept: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for each in range(3):
        os.dup2(null, each)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != kept:
            # One of them was the listing's own.
            with contextlib.suppress(OSError):
                os.close(int(name))


def _reset_signals() -> None:
    """What is ignored stays so, as in a program that is executed; handlers of the server's do not."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _reset_streams() -> None:
    """Python's own for an output that is no terminal, whatever the server's is."""
    for each in (sys.stdin, sys.stdout):
        assert isinstance(each, io.TextIOWrapper)
        each.reconfigure(line_buffering=False)
    faulthandler.enable()
