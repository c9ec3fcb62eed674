"""The fork server: a process that imports mlpkit once and forks children.

It is a fresh interpreter, `python -m mlpkit.processes SOCKET MODULE...`, and runs no code of the user's, no thread and
no event loop. A child of it begins as a fresh interpreter does, but without the time of the imports, and shares
mlpkit's memory with the other children.

A request is one message on a socket, with three descriptors: the `line` on which the child is followed, its channel and
its output. For each child the fork server forks a *keeper*, which forks the child. The keeper is a subreaper: whatever
the child starts becomes the keeper's child when its own parent ends, also in a session of its own. The keeper
sends the child's pid on the line and, when the child ends, its exit code. When the child has ended, or the server has
closed the line or has ended, the keeper kills all processes that are left, collects them and ends. Until then no other
process can get the child's pid.
If a keeper is killed, so is its child, and the fork server kills what remains of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
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
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import msgspec

from mlpkit import start_folder

_NEWS = struct.Struct(">ci")
"""`_BORN` and the child's pid, or `_DEAD` and its exit code; as in subprocess, -N if signal N killed it."""
_BORN = b"+"
_DEAD = b"-"
_LARGEST_REQUEST = 1 << 20
_FORK_SECONDS = 30.0
"""How long a child may take to be forked; the first one waits for the imports."""
_FULL_SECONDS = 0.005
_CLOSE_SECONDS = 1.0
_LAST_KILLS = 5.0
"""How long a keeper tries to end what a child has left; a process in the kernel may take long to end."""
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36


class _ChildSpec(msgspec.Struct, frozen=True, array_like=True):
    """A child to fork: its module, folder, search path and environment.

    It runs as `python -m module` would.

    All but the module are bytes, because the names of files and the environment need not be text.
    """

    module: str
    folder: bytes
    path: list[bytes]
    environment: dict[bytes, bytes]


class ForkServerGone(Exception):
    """This fork server cannot fork: start a fresh interpreter instead."""


# --- The server's end ------------------------------------------------------------------------------------------------


class ForkedChild(asyncio.Protocol):
    """A child of the fork server, as the server sees it.

    Use it on one event loop, and close it there. `born` has its pid, as soon as it runs.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.born: asyncio.Future[int] = loop.create_future()
        self.lost = False
        """Whether its keeper ended before it."""
        self._dead: asyncio.Future[int] = loop.create_future()
        self._transport: asyncio.BaseTransport | None = None
        self._news = b""

    @property
    def pid(self) -> int:
        """The process id."""
        return self.born.result()

    @property
    def returncode(self) -> int | None:
        """The exit code, or None while it runs.

        As in subprocess, it is -N if signal N killed the child.
        """
        return self._dead.result() if self._dead.done() else None

    async def wait(self) -> int:
        """Returns the exit code when the child has ended or is `lost`.

        A lost child must be killed.
        """
        return await asyncio.shield(self._dead)

    def terminate(self) -> None:
        """Sends SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)

    def close(self) -> None:
        """Lets the keeper end.

        From now on another process may get the child's pid.
        """
        if self._transport is not None:
            # The loop may have ended before its children: then the socket goes with it.
            with contextlib.suppress(RuntimeError):
                self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._news += data
        while len(self._news) >= _NEWS.size:
            what, number = _NEWS.unpack_from(self._news)
            self._news = self._news[_NEWS.size :]
            future = self.born if what == _BORN else self._dead
            if not future.done():
                future.set_result(number)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.born.done():
            self.born.set_exception(ForkServerGone())
            self.born.exception()
        if not self._dead.done():
            self.lost = True
            self._dead.set_result(-signal.SIGKILL)


class ForkServer:
    """The server's side of the fork server; one for a whole server.

    `start` starts the process, at the latest before the first child.

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
        """Starts the process; False if it runs already.

        It does not wait for the imports of the process.

        Raises:
            ForkServerGone: the system is not Linux, or the last process ended before it had a child.
        """
        if self._process is not None and self._process.poll() is None:
            return False
        if sys.platform != "linux" or (self._process is not None and not self._proven):
            raise ForkServerGone
        if self._requests is not None:
            self._requests.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number = theirs.fileno()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - ourselves
                    [sys.executable, "-X", "faulthandler", "-m", "mlpkit.processes", str(number), *self._modules],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(number,),
                    cwd=start_folder,
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise ForkServerGone from error
        ours.setblocking(False)
        self._requests = ours
        self._proven = False
        return True

    async def fork(
        self, module: str, environment: Mapping[str, str], folder: str, channel: socket.socket, output: int
    ) -> ForkedChild:
        """Forks a child that runs `module` in the folder with a channel.

        `output` is the file descriptor of its stdout and stderr.

        Raises:
            ForkServerGone: the fork server has ended, or cannot take this.
            OSError: it did not answer in time, and was killed.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        _, child = await asyncio.get_running_loop().create_connection(ForkedChild, sock=ours)
        try:
            with theirs:
                request = msgspec.msgpack.encode(_child_spec(module, environment, folder))
                await asyncio.wait_for(self._send(request, theirs.fileno(), channel.fileno(), output), _FORK_SECONDS)
            await asyncio.wait_for(asyncio.shield(child.born), _FORK_SECONDS)
        except asyncio.TimeoutError:
            child.close()
            # It must not fork later: the channel would have two owners.
            self.kill()
            raise OSError(f"the fork server did not fork within {_FORK_SECONDS:g} s") from None
        except OSError as error:
            child.close()
            raise ForkServerGone from error
        except BaseException:
            child.close()
            raise
        self._proven = True
        return child

    def close(self) -> None:
        """Ends the process and waits a moment for its end.

        So the process does not outlive the server.
        """
        if self._requests is not None and self._process is not None:
            self._requests.close()
            self._requests = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_CLOSE_SECONDS)

    def kill(self) -> None:
        """Ends the process immediately; the next `start` makes another one."""
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
        raise ForkServerGone


def _child_spec(module: str, environment: Mapping[str, str], folder: str) -> _ChildSpec:
    return _ChildSpec(
        module,
        os.fsencode(folder),
        [os.fsencode(folder) for folder in sys.path],
        {os.fsencode(name): os.fsencode(value) for name, value in environment.items()},
    )


# --- The fork server's process ---------------------------------------------------------------------------------------


LEFT_TO_THE_SERVER = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ORPHANED = signal.SIGRTMIN + 1 if sys.platform == "linux" else 0
"""What a keeper gets when the fork server is killed. Nobody else sends it."""
_handlers: dict[int, object] = {}
"""What the signals of `LEFT_TO_THE_SERVER` did when this interpreter began."""


def main() -> None:
    """Runs the fork server; in a child, runs its module."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    requests.set_inheritable(False)
    for name in sys.argv[2:]:
        # If a module is missing, the child that needs it fails to import it too, and reports it.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        # Something that every interpreter of this machine imports has started a thread: a fork is not safe.
        return
    _name_process("mlpkit.forksrv")
    _be_subreaper()
    # A signal that reaches every process is for the server alone: it decides when its children end.
    for number in LEFT_TO_THE_SERVER:
        _handlers[number] = signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        # Otherwise every child would write what is still in the buffer.
        stream.flush()
    # The collector must not write to the memory that all children share.
    gc.collect()
    gc.freeze()
    try:
        spec = _serve(requests)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    _run_module(spec)


def _serve(requests: socket.socket) -> _ChildSpec:
    """Forks a keeper for every request; returns in the children only.

    The process ends when the server does.
    """
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    keepers: set[int] = set()
    waiting = select.poll()
    waiting.register(requests, select.POLLIN)
    waiting.register(ended, select.POLLIN)
    while True:
        # It needs no timeout: the poll returns when a request comes, a child ends or the server ends.
        for descriptor, _ in waiting.poll():
            if descriptor == ended:
                os.read(ended, 4096)
                _collect(keepers)
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, _LARGEST_REQUEST, 3)
            if not message:
                os._exit(0)
            try:
                # If the machine has no room for a process, or for its descriptors, the server hears that the line has
                # ended, and a fresh interpreter will say why it cannot be.
                pid = os.fork() if len(descriptors) == 3 else -1
            except OSError:
                pid = -1
            if not pid:
                signal.set_wakeup_fd(-1)
                for mine in (ended, wake):
                    os.close(mine)
                requests.close()
                return _keep(msgspec.msgpack.decode(message, type=_ChildSpec), *descriptors)
            if pid > 0:
                keepers.add(pid)
            for given in descriptors:
                os.close(given)


def _collect(keepers: set[int]) -> None:
    """Collects ended processes; kills what a killed keeper has left."""
    for pid in _children():
        if pid not in keepers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) > 0:
            keepers.discard(pid)


def _keep(spec: _ChildSpec, line_number: int, channel: int, output: int) -> _ChildSpec:
    """Runs the keeper of one child; in the child, returns its spec."""
    os.setsid()
    fork_server = os.getppid()
    signal.signal(_ORPHANED, lambda number, frame: None)
    _prctl(_PR_SET_PDEATHSIG, _ORPHANED)
    _name_process("mlpkit.keeper")
    _be_subreaper()
    line = socket.socket(fileno=line_number)
    keeper = os.getpid()
    try:
        child = os.fork()
    except OSError:
        os._exit(1)
    if not child:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
        _leave(line, channel, output)
        return spec
    os.close(channel)
    os.close(output)
    try:
        _follow(line, child, fork_server)
        _kill_all_but(0)
    finally:
        os._exit(0)


def _leave(line: socket.socket, channel: int, output: int) -> None:
    """In the child: gives up the keeper's signals, descriptors and session.

    Only what the keeper has imported stays.
    """
    os.setsid()
    for number in (signal.SIGCHLD, _ORPHANED):
        signal.signal(number, signal.SIG_DFL)
    for number, handler in _handlers.items():
        signal.signal(number, handler)  # type: ignore[arg-type]
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.set_inheritable(channel, False)
    sys.argv[1:] = [str(channel)]
    with line:
        line.sendall(_NEWS.pack(_BORN, os.getpid()))


def _follow(line: socket.socket, child: int, fork_server: int) -> None:
    """Sends the exit code of the child when it has ended.

    Returns when the server has closed the line, or the server or the fork server has ended.
    An ended child is not collected here, so that no other process gets its pid.
    """
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    waiting = select.poll()
    waiting.register(line, select.POLLRDHUP)
    waiting.register(ended, select.POLLIN)
    told = False
    while os.getppid() == fork_server:
        _collect_all_but(child)
        end = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if end is not None and not told:
            told = True
            _kill_all_but(child)
            code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
            with contextlib.suppress(OSError):
                line.send(_NEWS.pack(_DEAD, code), socket.MSG_DONTWAIT)
        for descriptor, _ in waiting.poll():
            if descriptor == ended:
                os.read(ended, 4096)
            else:
                return


def _kill_all_but(spared: int) -> None:
    """Kills all children but one, until no others are left.

    The children of a killed child become children of this process, and are killed too.
    """
    deadline = time.monotonic() + _LAST_KILLS
    while time.monotonic() < deadline:
        others = [pid for pid in _children() if pid != spared]
        if not others:
            return
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not _collect_all_but(spared):
            time.sleep(_FULL_SECONDS)


def _collect_all_but(spared: int) -> bool:
    """Collects the children that have ended; True if there were any."""
    found = False
    for pid in _children():
        if pid != spared:
            with contextlib.suppress(ChildProcessError):
                found = os.waitpid(pid, os.WNOHANG)[0] > 0 or found
    return found


def _children() -> list[int]:
    """The children of this process, which has one thread; ended ones too."""
    me = os.getpid()
    try:
        return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]
    except OSError:
        # A kernel without that file: look at all processes.
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    if int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]) == me:
                        found.append(int(name))
        return found


def _run_module(spec: _ChildSpec) -> NoReturn:
    """Runs the module as `python -m` would."""
    os.chdir(spec.folder)
    for name in os.environb.keys() - spec.environment.keys():
        del os.environb[name]
    os.environb.update(spec.environment)
    sys.path[:] = [os.fsdecode(folder) for folder in spec.path]
    importlib.invalidate_caches()
    _name_process(spec.module)
    runpy.run_module(spec.module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def end_with_parent() -> None:
    """Kills this process when the thread that started it ends.

    Only on Linux. The thread ends at the latest with its process.
    """
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _name_process(name: str) -> None:
    """Sets the name that `top` and `ps -o comm` show.

    The kernel keeps 15 characters.
    """
    _prctl(_PR_SET_NAME, ctypes.create_string_buffer(name.encode()[:15]))


def _be_subreaper() -> None:
    """Makes descendants whose parents have ended children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: object) -> None:
    # If the system refuses one of these, children still run; then only the guard protects them.
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
