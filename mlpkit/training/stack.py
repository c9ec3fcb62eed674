"""The stack of a job's process, asked for by a signal.

The process registers `faulthandler` for the signal when it starts. C code in the signal's handler writes the stack to a
file in the job's folder, so a process that is stuck in Python or in a C function answers too.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from pathlib import Path

import anyio

from mlpkit.errors import JobConflict, TimeLimitExceeded

# A real-time signal if there is one: authors and libraries use SIGUSR1 and SIGUSR2.
_SIGNAL = signal.SIGRTMAX - 3 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
_NAME = "stack"
_LARGEST = 256 << 10
"""Bytes of a stack that are read. It has at most 100 threads with 100 lines each."""
_LONGEST_WAIT = 5.0
_QUIET = 0.1
"""A stack is whole when its file has not grown for this many seconds: nothing marks its end."""
_LOOK = 0.02


def answer_stack_signal(folder: Path) -> None:
    """Lets this process write its stack into the folder when asked."""
    made = folder / f"{_NAME}.part"
    # It must stay open for the life of the process.
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    faulthandler.register(_SIGNAL, file=descriptor, all_threads=True)
    # Only now may somebody send the signal: before, it would end the process.
    made.replace(folder / _NAME)


def forget_stack(folder: Path) -> None:
    """Removes the file of an earlier process."""
    (folder / _NAME).unlink(missing_ok=True)


async def stack_of(pid: int, folder: Path) -> str:
    """The stack of each thread of the process that uses the folder.

    Raises:
        JobConflict: the process is still starting, or has just ended.
        TimeLimitExceeded: it did not answer within 5 seconds; it may be stopped, or in a call of the kernel.
    """
    file = folder / _NAME
    try:
        before = size = file.stat().st_size
        os.kill(pid, _SIGNAL)
    except FileNotFoundError:
        raise JobConflict("the process of the job is starting: try again in a moment") from None
    except ProcessLookupError:
        raise JobConflict("the process of the job has just ended") from None
    started = grown = time.monotonic()
    while time.monotonic() - started < _LONGEST_WAIT:
        await anyio.sleep(_LOOK)
        try:
            now = file.stat().st_size
        except FileNotFoundError:
            raise JobConflict("the process of the job has just ended") from None
        if now != size:
            size = now
            grown = time.monotonic()
        elif size > before and time.monotonic() - grown > _QUIET:
            return await anyio.to_thread.run_sync(_read, file, before)
    raise TimeLimitExceeded(
        f"the process of the job did not write its stack within {_LONGEST_WAIT:g} s: it may be stopped or wait in a "
        "call of the kernel, such as for a disk"
    )


def _read(file: Path, start: int) -> str:
    try:
        with file.open("rb") as opened:
            opened.seek(start)
            content = opened.read(_LARGEST + 1)
    except FileNotFoundError:
        raise JobConflict("the process of the job has just ended") from None
    text = content[:_LARGEST].decode("utf-8", "replace")
    return text + ("…\n" if len(content) > _LARGEST else "")
