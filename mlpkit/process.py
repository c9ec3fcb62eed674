"""A child process of the service: spawn it, talk to it, wait for its end, stop it, and say in words how it ended.

What: a Python module run by a fresh interpreter (nothing is forked, nothing is pickled), in a session of its own, with a
socket to the server as its only channel; its stdout and stderr are read line by line.
Who ends it: `Child.stop` (SIGTERM, then SIGKILL to the whole process group, grandchildren too). When the server itself is
killed, the guard does: a shell that holds the groups of the living children and kills them when the server's pipe closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil

_GUARD = """
trap '' HUP INT TERM
groups=''
while read -r sign group; do
    kept=''
    for each in $groups; do [ "$each" = "$group" ] || kept="$kept $each"; done
    groups=$kept
    [ "$sign" = + ] && groups="$groups $group"
done
for each in $groups; do kill -KILL -- "-$each" 2>/dev/null; done
"""
_LONGEST_LINE = 64 * 1024


@dataclass(frozen=True)
class Exit:
    """How a process ended. `asked` is why the service ended it, where it did."""

    code: int
    asked: str = ""

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
    """A running child. Made by `start_child`; every child must be awaited with `wait` or `stop`."""

    def __init__(self, process: asyncio.subprocess.Process, channel: socket.socket, reader: asyncio.Task[None]) -> None:
        self._process, self._reader, self._asked = process, reader, ""
        self.channel = channel
        self.pid = process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.returncode is None

    def memory(self) -> int:
        """Resident bytes of the child and its descendants; 0 when it has ended."""
        try:
            parent = psutil.Process(self.pid)
            family = [parent, *parent.children(recursive=True)]
        except psutil.Error:
            return 0
        total = 0
        for each in family:
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
        return total

    def kill(self, why: str = "") -> None:
        """Kills the child and its descendants at once; `why` becomes the words of its exit."""
        if self.running:
            self._asked = self._asked or why
        _kill_group(self.pid, signal.SIGKILL)

    async def stop(self, grace: float, why: str = "") -> Exit:
        """Asks the child to end (SIGTERM), and kills it and its descendants when it has not within `grace` seconds."""
        if self.running:
            self._asked = self._asked or why
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._process.wait()), grace)
        self.kill(why)
        return await self.wait()

    async def wait(self) -> Exit:
        """Waits for the end of the process, ends what it has left behind, and says how it ended."""
        code = await self._process.wait()
        _kill_group(self.pid, signal.SIGKILL)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reader), 2)
        self._reader.cancel()
        _guard.forget(self.pid)
        return Exit(code, self._asked)


async def start_child(
    module: str,
    *,
    on_line: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Runs `python -m module` with a channel to it; in the child, `channel_of_child` gives the other end.

    `on_line` gets what the child writes to file descriptors 1 and 2, line by line (very long lines in pieces).
    """
    ours, theirs = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            str(theirs.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    _guard.watch(process.pid)
    ours.setblocking(False)
    assert process.stdout is not None
    reader = asyncio.create_task(_read_lines(process.stdout, on_line))
    return Child(process, ours, reader)


def channel_of_child() -> socket.socket:
    """The child's end of the channel, as `start_child` passed it. The child must end when it is closed."""
    return socket.socket(fileno=int(sys.argv[1]))


async def _read_lines(stream: asyncio.StreamReader, on_line: Callable[[str], None]) -> None:
    rest = b""
    while chunk := await stream.read(_LONGEST_LINE):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines.append(rest)
            rest = b""
        for line in lines:
            on_line(line.decode("utf-8", "replace").rstrip("\r"))
    if rest:
        on_line(rest.decode("utf-8", "replace"))


def _kill_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


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
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            line = "".join(f"+ {each}\n" for each in self._groups)
        assert self._shell.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.write(line.encode())
            self._shell.stdin.flush()


_guard = _Guard()
