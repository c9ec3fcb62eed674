"""Locks that processes and threads share: a file that is locked by the kernel, which lets go however a holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from mlpkit.errors import StorageUnavailable

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05


@contextlib.contextmanager
def locked(file: str, timeout: float) -> Iterator[None]:
    """Holds the lock of that file inside the block; the file is made, and its holder may remove it.

    Raises:
        StorageUnavailable: others have held it for `timeout` seconds.
        OSError: the file cannot be made.
    """
    descriptor = _acquired(file, timeout)
    try:
        yield
    finally:
        # Not by closing alone: a child that was forked meanwhile has the same open file.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _acquired(file: str, timeout: float) -> int:
    deadline, pause = time.monotonic() + timeout, _FIRST_PAUSE
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the file: then the next one locks another.
            if os.fstat(descriptor).st_nlink:
                return descriptor
            pause = 0.0
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() >= deadline:
            raise StorageUnavailable(
                f"the file cache: another process has held {file} for {timeout:.0f} s: is it stuck?"
            )
        time.sleep(pause)
        pause = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
