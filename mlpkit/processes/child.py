"""A child process of the service, from its start to its end.

A child is a Python module in a process that starts with nothing of the server's or of the user's: the fork server forks
it, or it is a fresh interpreter if no fork server can run. It has its own session and a socket to the server; its
stdout and stderr are read line by line.
`Child.stop` ends it (SIGTERM, then SIGKILL to its process group), and so does the end of the event loop. What it leaves
behind is killed, by its keeper (`forkserver.py`) also in other sessions. If the server itself is killed, the keeper and
the guard (`_Guard`) kill it.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import FrameType

from mlpkit import start_folder
from mlpkit.log import LogLine, logger
from mlpkit.processes.forkserver import LEFT_TO_THE_SERVER, ForkedChild, ForkServer, ForkServerGone, end_with_parent
from mlpkit.processes.output import LineSplitter, line_of_pipe

_FRAMEWORK = ("mlpkit.serving.runtime", "mlpkit.training.process", "mlpkit.script")
"""What the fork server imports: all that every worker or job needs before it imports the script."""
_LOST = "was killed: the process that had started it has ended"
_DRAIN_SECONDS = 2.0
"""How long to read the output after a child's end if another process still has its pipe open."""
_WORK_SECONDS = 0.004
_SHORT_WORK_SECONDS = 0.001
_PIECE = 1024
"""Bytes that become lines together: the server does nothing else meanwhile, and they may be 500 lines."""
_DROP_PAUSE = 0.002
"""Seconds to rest after output that nobody keeps, so that `yes` does not fill the server's time."""

_GUARD_SCRIPT = """
trap '' HUP INT TERM
groups=''
while read -r sign group; do
    kept=''
    for each in $groups; do [ "$each" = "$group" ] || kept="$kept $each"; done
    groups=$kept
    [ "$sign" = + ] && groups="$groups $group"
done
for each in $groups; do kill -s KILL -- "-$each" 2>/dev/null; done
"""


@dataclass(frozen=True)
class Exit:
    """How a process ended.

    `asked` is the reason if the service ended it; `lost` means that the end is not the fault of the process.
    """

    code: int
    asked: str = ""
    lost: bool = False

    @property
    def words(self) -> str:
        """The end as text, such as `was killed by SIGSEGV`."""
        if self.asked:
            return self.asked
        if self.code >= 0:
            return f"exited with code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        likely = " (most likely because the machine ran out of memory)" if -self.code == signal.SIGKILL else ""
        return f"was killed by {name}{likely}"


class Child:
    """A running child, made by `start_child`.

    It is cleaned up after its end even if nobody waits for it.
    """

    def __init__(
        self, process: asyncio.subprocess.Process | ForkedChild, channel: socket.socket, output: _Output
    ) -> None:
        self._process = process
        self._output = output
        self._asked = ""
        self._drain = _DRAIN_SECONDS
        self.channel = channel
        self.pid = process.pid
        self._life = asyncio.get_running_loop().create_task(self._attend())

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.returncode is None

    def memory(self) -> int:
        """Resident bytes of the child and its descendants.

        0 if it has ended. Too slow for an event loop.
        """
        return memory_of(self.pid)

    def kill(self, why: str = "", drain: float = _DRAIN_SECONDS) -> None:
        """Kills the child and its descendants.

        `why` becomes the text of its exit. What it wrote last is read for at most `drain` seconds.
        """
        if self._life.done():
            return
        self._drain = drain
        if self.running:
            self._asked = self._asked or why
        _kill_group(self.pid)

    async def stop(self, grace: float, why: str = "") -> Exit:
        """Sends SIGTERM; after `grace` seconds kills the child and its descendants.

        If this is cancelled, they are killed immediately.
        """
        if self.running:
            self._asked = self._asked or why
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), grace)
            except asyncio.TimeoutError:
                pass
            finally:
                self.kill(why)
        return await self.wait()

    async def wait(self) -> Exit:
        """Waits until the process and the processes that it left have ended."""
        return await asyncio.shield(self._life)

    async def _attend(self) -> Exit:
        try:
            try:
                code = await self._process.wait()
            finally:
                # The event loop may be ending: then no later clean-up runs.
                _kill_group(self.pid)
                _guard.forget(self.pid)
                if isinstance(self._process, ForkedChild):
                    self._process.close()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._output.ended.wait(), self._drain)
        finally:
            self._output.close()
        lost = isinstance(self._process, ForkedChild) and self._process.lost and not self._asked
        return Exit(code, _LOST if lost else self._asked, lost)


async def start_child(
    module: str,
    *,
    on_lines: Callable[[list[LogLine]], None],
    process: str = "child",
    environment: Mapping[str, str] | None = None,
    drop: Callable[[int, int], bool] | None = None,
    folder: str = start_folder,
) -> Child:
    """Runs `python -m module` in the folder, with a channel to it.

    In the child, `channel_of_child` gives the other end.
    `on_lines` gets what is written to the child's file descriptors 1 and 2 (very long lines in pieces, without blank
    lines and what a carriage return has overwritten) as lines of the log of `process`. A crash in C code leaves its
    Python stack there. Reading is slowed down so that endless output takes at most half of the server's time.
    `drop` is asked with a number of lines and bytes before they are looked at: if it is True, nobody gets them.
    """
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    output = _Output(on_lines, process, drop)
    try:
        await output.connect(read_end)
        started = await _start_process(module, {**os.environ, **(environment or {})}, folder, theirs, write_end)
    except BaseException:
        ours.close()
        output.close()
        raise
    finally:
        theirs.close()
        os.close(write_end)
    _guard.watch(started.pid)
    ours.setblocking(False)
    return Child(started, ours, output)


def prepare() -> None:
    """Starts what the first `start_child` needs; returns immediately."""
    before = _fork_server.pid
    try:
        started = _fork_server.start()
    except ForkServerGone:
        started = False
    else:
        if not started:
            return
    if before is not None:
        _guard.forget(before)
    if started:
        assert _fork_server.pid is not None
        _guard.watch(_fork_server.pid)


async def _start_process(
    module: str, environment: Mapping[str, str], folder: str, channel: socket.socket, output: int
) -> asyncio.subprocess.Process | ForkedChild:
    prepare()
    try:
        return await _fork_server.fork(module, environment, folder, channel, output)
    except ForkServerGone:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-X", "faulthandler", "-m", module, str(channel.fileno())),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(channel.fileno(),),
            cwd=folder,
            start_new_session=True,
            env=environment,
        )


def channel_of_child() -> socket.socket:
    """The child's end of the channel.

    The child must end when the channel is closed.
    """
    end_with_parent()
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    return channel


def leave_signals_to_the_server() -> None:
    """Ignores Ctrl-C, SIGTERM and SIGHUP.

    They may go to every process of a terminal or container.
    Then the server drains, and ends its children at the right time. Processes that the user's code starts or forks end
    as usual.
    """
    masks = threading.local()

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    # A handler, not SIG_IGN: programs that the user's code starts would inherit SIG_IGN.
    for number in LEFT_TO_THE_SERVER:
        signal.signal(number, ignore)

    def hold_back() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_SERVER)

    def let_through() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def end_as_usual() -> None:
        # Python calls a handler between two steps of the script only: a forked process would outlive a SIGTERM that
        # comes while it begins to wait, or works in C code.
        for number in LEFT_TO_THE_SERVER:
            if signal.getsignal(number) is ignore:
                signal.signal(number, signal.SIG_DFL)
        let_through()

    # Python forgets a signal that reaches a forked process in its first moment. Held back, it arrives afterwards.
    os.register_at_fork(before=hold_back, after_in_parent=let_through, after_in_child=end_as_usual)


def memory_of(pid: int) -> int:
    """Memory of a process and its descendants, in resident bytes.

    0 if the process has ended.
    """
    import psutil

    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for process in family:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def memory_of_each(pids: Collection[int]) -> dict[int, int]:
    """Memory of several processes, as `memory_of`, with one look at all.

    They must be this process or its descendants.
    """
    import psutil

    own = psutil.Process()
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            parents[process.pid] = process.ppid()
            resident[process.pid] = process.memory_info().rss
    totals = dict.fromkeys(pids, 0)
    for pid, size in resident.items():
        ancestor: int | None = pid
        while ancestor is not None and ancestor not in totals:
            ancestor = parents.get(ancestor)
        if ancestor is not None:
            totals[ancestor] += size
    return totals


class _Output(asyncio.Protocol):
    """What a child writes to its stdout and stderr.

    `ended` is set when all has been handed on.
    After some milliseconds of work it stops reading for the same time: when the pipe is full, the child waits.
    """

    def __init__(
        self, on_lines: Callable[[list[LogLine]], None], process: str, drop: Callable[[int, int], bool] | None
    ) -> None:
        self.ended = asyncio.Event()
        self._on_lines = on_lines
        self._process = process
        self._drop = drop
        self._lines = LineSplitter()
        self._unread: collections.deque[bytes] = collections.deque()
        self._resting: asyncio.TimerHandle | None = None
        self._at_end = False
        self._paused = False
        self._transport: asyncio.ReadTransport | None = None

    async def connect(self, descriptor: int) -> None:
        file = os.fdopen(descriptor, "rb", buffering=0)
        try:
            self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: self, file)
        except BaseException:
            file.close()
            raise

    def data_received(self, data: bytes) -> None:
        self._unread.append(data)
        if self._resting is None:
            self._hand_on(time.monotonic())

    def connection_lost(self, error: Exception | None) -> None:
        self._at_end = True
        if self._resting is None:
            self._hand_on(time.monotonic())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _go_on(self) -> None:
        self._hand_on(time.monotonic())

    def _hand_on(self, started: float) -> None:
        self._resting = None
        pause = 0.0
        while self._unread and time.monotonic() - started < _WORK_SECONDS:
            data = self._unread.popleft()
            if self._drop is not None and self._drop(data.count(b"\n"), len(data)):
                pause = _DROP_PAUSE
                continue
            if len(data) > _PIECE:
                self._unread.appendleft(data[_PIECE:])
            self._say(self._lines.feed(data[:_PIECE]))
        worked = time.monotonic() - started
        if worked > _SHORT_WORK_SECONDS:
            pause = max(pause, worked)
        if self._unread or (pause and not self._at_end):
            self._resting = asyncio.get_running_loop().call_later(0 if self._at_end else pause, self._go_on)
            self._pause(True)
        elif self._at_end:
            self._say(self._lines.close())
            self.ended.set()
        else:
            self._pause(False)

    def _say(self, lines: list[tuple[str, bool]]) -> None:
        texts = [text for text, redrawn in lines if not redrawn]
        if texts:
            self._on_lines([line_of_pipe(text, self._process) for text in texts])

    def _pause(self, paused: bool) -> None:
        if self._transport is None or self._at_end or self._transport.is_closing() or paused == self._paused:
            return
        # Pipes of Python 3.10 have no `is_reading`.
        self._paused = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


class _Guard:
    """A shell that kills the children of a killed server.

    It is told which process groups to kill, and does so when the server's pipe closes: it runs a moment longer than the
    server. If the shell itself is killed, another one is started.
    """

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._shell: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def watch(self, group: int) -> None:
        """Adds a process group."""
        with self._lock:
            self._groups.add(group)
            self._tell(f"+ {group}\n")

    def forget(self, group: int) -> None:
        """Takes a process group out: it has ended."""
        with self._lock:
            if group in self._groups:
                self._groups.discard(group)
                self._tell(f"- {group}\n")

    def _tell(self, line: str) -> None:
        if self._shell is None or self._shell.poll() is not None:
            ended = self._shell
            try:
                self._shell = _start_shell()
            except OSError as error:
                # The caller, which starts or ends a child, cannot do anything about it; the next call tries again.
                logger.error(
                    "the guard cannot be started; if the server is killed, its children may keep running: {}", error
                )
                return
            if ended is not None and ended.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    ended.stdin.close()
            line = "".join(f"+ {group}\n" for group in self._groups)
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._replace, args=(self._shell,), name="mlpkit-guard", daemon=True).start()
        assert self._shell.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.write(line.encode())
            self._shell.stdin.flush()

    def _replace(self, shell: subprocess.Popen[bytes]) -> None:
        """Starts another shell as soon as this one has been killed."""
        shell.wait()
        with self._lock:
            if self._groups and self._shell is shell:
                self._tell("")


def _start_shell() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - the command is a constant
        ["/bin/sh", "-c", _GUARD_SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


_guard = _Guard()
_fork_server = ForkServer(*_FRAMEWORK)
atexit.register(_fork_server.close)
