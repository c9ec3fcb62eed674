"""A child process of the service: spawn it, talk to it, wait for its end, stop it, and say in words how it ended.

What: a Python module run in a process that holds nothing of the server's or of the user's (forked of the nursery, which
has run nothing but mlpkit, or a fresh interpreter where there is no nursery), in a session of its own, with a socket to
the server as its only channel; its stdout and stderr are read line by line.
Who ends it: `Child.stop` (SIGTERM, then SIGKILL to the whole process group, grandchildren too), and the end of the
event loop. When the server itself is killed, the guard does: a shell that holds the groups of the living children and
kills them when the server's pipe closes. Only a descendant that left for a session of its own is not found.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlpkit import start_folder
from mlpkit.log import LogLine, logger
from mlpkit.nursery import Forked, Nursery, NurseryGone
from mlpkit.processes.output import LineSplitter, line_of_pipe

_GUARD = """
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
_FRAMEWORK = ("mlpkit.serving.runtime", "mlpkit.training.local", "mlpkit.script", "uvloop")
"""What the nursery imports: all that a worker or a job needs before it imports the script."""
_LOST = "was killed: the process that had started it has ended"
_DRAIN_SECONDS = 2.0
"""How long output is still read after a child's end if somebody else holds its pipe."""
_WORK_SECONDS = 0.004
_SHORT_WORK_SECONDS = 0.001
_LINES_AT_ONCE = 50


@dataclass(frozen=True)
class Exit:
    """How a process ended. `asked` is why the service ended it, where it did; `lost` is for no fault of its own."""

    code: int
    asked: str = ""
    lost: bool = False

    @property
    def words(self) -> str:
        """`was killed by SIGSEGV`, `exited with code 3`, ...: what a person wants to know."""
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
    """A running child, made by `start_child`. Its end is attended to even where nobody waits for it."""

    def __init__(self, process: asyncio.subprocess.Process | Forked, channel: socket.socket, output: _Output) -> None:
        self._process, self._output, self._asked = process, output, ""
        self.channel = channel
        self.pid = process.pid
        self._life = asyncio.get_running_loop().create_task(self._attend())

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.returncode is None

    def memory(self) -> int:
        """Resident bytes of the child and its descendants; 0 when it has ended. Too slow for the loop."""
        return memory_of(self.pid)

    def kill(self, why: str = "") -> None:
        """Kills the child and its descendants at once; `why` becomes the words of its exit."""
        if self._life.done():
            return
        if self.running:
            self._asked = self._asked or why
        _kill_group(self.pid)

    async def stop(self, grace: float, why: str = "") -> Exit:
        """Asks the child to end (SIGTERM), and kills it and its descendants when it has not within `grace` seconds.

        Where this is cancelled, they are killed at once.
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
        """Waits for the end of the process and of what it left behind, and says how it ended."""
        return await asyncio.shield(self._life)

    async def _attend(self) -> Exit:
        try:
            code = await self._process.wait()
        finally:
            # The loop may be ending: then this is the last chance.
            _kill_group(self.pid)
            _guard.forget(self.pid)
            if isinstance(self._process, Forked):
                self._process.close()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._output.ended.wait(), _DRAIN_SECONDS)
        self._output.close()
        lost = isinstance(self._process, Forked) and self._process.lost and not self._asked
        return Exit(code, _LOST if lost else self._asked, lost)


async def start_child(
    module: str,
    *,
    on_lines: Callable[[list[LogLine]], None],
    process: str = "child",
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Runs `python -m module` with a channel to it; in the child, `channel_of_child` gives the other end.

    `on_lines` gets what is written to the child's file descriptors 1 and 2 (very long lines in pieces, without blank
    lines and what a carriage return has overwritten) as lines of the log of `process`. A crash in C code leaves its
    Python stack there. Reading is slowed down so that endless output takes at most half of the server's time.
    """
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    output = _Output(on_lines, process)
    try:
        await output.connect(read_end)
        started = await _started(module, {**os.environ, **(environment or {})}, theirs, write_end)
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


def prepare(*, fork: bool = False) -> None:
    """Does now what the first `start_child` would wait for, where this system lets it; returns at once.

    With `fork`, children may share the memory of this process: for who calls this before he runs code of the user's.
    """
    before = _nursery.pid
    try:
        started = _nursery.start(fork=fork)
    except NurseryGone:
        started = False
    else:
        if not started:
            return
    if before is not None:
        _guard.forget(before)
    if started:
        assert _nursery.pid is not None
        _guard.watch(_nursery.pid)


async def _started(
    module: str, environment: Mapping[str, str], channel: socket.socket, output: int
) -> asyncio.subprocess.Process | Forked:
    prepare()
    try:
        return await _nursery.fork(module, environment, channel, output)
    except NurseryGone:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-X", "faulthandler", "-m", module, str(channel.fileno())),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(channel.fileno(),),
            cwd=start_folder,
            start_new_session=True,
            env=environment,
        )


def channel_of_child() -> socket.socket:
    """The child's end of the channel, as `start_child` passed it. The child must end when it is closed."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    return channel


def memory_of(pid: int) -> int:
    """Resident bytes of a process and its descendants; 0 when it has ended."""
    import psutil

    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for each in family:
        with contextlib.suppress(psutil.Error):
            total += each.memory_info().rss
    return total


class _Output(asyncio.Protocol):
    """What a child writes to its stdout and stderr; `ended` is set when all has been handed on.

    After some milliseconds of work it rests for as long, and does not read meanwhile: when the pipe is full, the
    child waits.
    """

    def __init__(self, on_lines: Callable[[list[LogLine]], None], process: str) -> None:
        self.ended = asyncio.Event()
        self._on_lines, self._process = on_lines, process
        self._lines = LineSplitter()
        self._waiting: collections.deque[str] = collections.deque()
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
        started = time.monotonic()
        self._waiting += (text for text, redrawn in self._lines.feed(data) if not redrawn)
        if self._resting is None:
            self._hand_on(started)

    def connection_lost(self, error: Exception | None) -> None:
        self._waiting += (text for text, redrawn in self._lines.close() if not redrawn)
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
        while self._waiting and time.monotonic() - started < _WORK_SECONDS:
            count = min(_LINES_AT_ONCE, len(self._waiting))
            self._on_lines([line_of_pipe(self._waiting.popleft(), self._process) for _ in range(count)])
        worked = time.monotonic() - started
        if self._waiting or worked > _SHORT_WORK_SECONDS:
            self._resting = asyncio.get_running_loop().call_later(0 if self._at_end else worked, self._go_on)
            self._pause(True)
        elif self._at_end:
            self.ended.set()
        else:
            self._pause(False)

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
    """The shell that outlives the server by a moment; started with the first child, and again should it be killed."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._shell: subprocess.Popen[bytes] | None = None

    def watch(self, group: int) -> None:
        self._groups.add(group)
        self._tell(f"+ {group}\n")

    def forget(self, group: int) -> None:
        if group in self._groups:
            self._groups.discard(group)
            self._tell(f"- {group}\n")

    def _tell(self, line: str) -> None:
        if self._shell is None or self._shell.poll() is not None:
            try:
                self._shell = _start_shell()
            except OSError as error:
                # Whoever starts or ends a child can do nothing about it; the next one tries again.
                logger.error("the guard cannot be started, a killed server would leave its children: {}", error)
                return
            line = "".join(f"+ {each}\n" for each in self._groups)
        assert self._shell.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.write(line.encode())
            self._shell.stdin.flush()


def _start_shell() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - the command is a constant
        ["/bin/sh", "-c", _GUARD],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


_guard = _Guard()
_nursery = Nursery(*_FRAMEWORK)
