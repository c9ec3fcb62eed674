"""A command in a real pseudo terminal, and what a person would see on its screen at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.servers.ports import LONG

_ESCAPE = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])")


@dataclass(frozen=True)
class Shown:
    """How a command ended: its exit code, all that it wrote, and the lines on the screen at the end."""

    code: int
    output: str
    screen: list[str]


def in_terminal(
    command: list[str],
    folder: Path,
    environment: Mapping[str, str],
    *,
    columns: int = 80,
    interrupt_at: Callable[[str], bool] | None = None,
) -> Shown:
    """Runs a command in a terminal, with Ctrl-C as soon as `interrupt_at` holds for its output."""
    pid, descriptor = pty.fork()
    if pid == 0:
        try:
            os.chdir(folder)
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
            os.execve(command[0], command, dict(environment))
        finally:
            os._exit(127)
    output = b""
    deadline = time.monotonic() + LONG
    interrupted = False
    try:
        while True:
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {LONG:g} s the command has not ended; it wrote {output!r}")
            if not select.select([descriptor], [], [], 0.1)[0]:
                continue
            try:
                part = os.read(descriptor, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not part:
                break
            output += part
            if interrupt_at is not None and not interrupted and interrupt_at(output.decode("utf-8", "replace")):
                interrupted = True
                os.write(descriptor, b"\x03")
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, 9)
        raise
    finally:
        os.close(descriptor)
        status = os.waitpid(pid, 0)[1]
    text = output.decode("utf-8", "replace")
    return Shown(os.waitstatus_to_exitcode(status), text, screen_of(text))


def without_escapes(output: str) -> str:
    """What was written, without colours and movements of the cursor."""
    return _ESCAPE.sub("", output)


def screen_of(output: str) -> list[str]:
    """The lines on a terminal that is tall enough; knows the escape sequences that rich and tqdm use."""
    lines: list[list[str]] = [[]]
    row = column = position = 0
    while position < len(output):
        escape = _ESCAPE.match(output, position)
        if escape is not None:
            position = escape.end()
            count = int(escape[1]) if escape[1].isdigit() else 1
            if escape[2] == "A":
                row = max(0, row - count)
            elif escape[2] == "K":
                lines[row] = lines[row][:column] if escape[1] in ("", "0") else []
            continue
        character = output[position]
        position += 1
        if character == "\n":
            row += 1
            if row == len(lines):
                lines.append([])
        elif character == "\r":
            column = 0
        else:
            lines[row] += [" "] * (column + 1 - len(lines[row]))
            lines[row][column] = character
            column += 1
    return [line for line in ("".join(line).rstrip() for line in lines) if line]
