"""Free ports, and waiting for a condition instead of for a time."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

import anyio

LONG = 120.0
"""Seconds that are long enough, also on a busy machine, for what should happen soon. Only a failure waits this long."""
SOON = 30.0
"""Seconds that are enough, also on a busy machine, for what must not wait. Where it does wait, it waits longer."""
_MOST = 6


def stretched(seconds: float) -> float:
    """A bound about speed: as it is on a quiet machine, longer on a busy one.

    It grows with the number of processes that want a processor (the load of the last minute), as everything does then.
    """
    wanted = os.getloadavg()[0] / (os.cpu_count() or 1)
    return seconds * min(_MOST, max(1.0, wanted))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections: it is taken, so that nobody else can listen on it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        yield port


def wait_until(condition: Callable[[], bool], what: str, timeout: float = LONG) -> None:
    """Returns once the condition holds; TimeoutError, which says what was waited for, if it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout:g} s, still waiting until {what}")
        time.sleep(0.02)


async def until(condition: Callable[[], bool], seconds: float = LONG) -> None:
    """Waits for what another task, thread or process does; TimeoutError if it does not in time."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - no event comes from there
            await anyio.sleep(0.01)


def accepts(port: int) -> bool:
    """Whether something on 127.0.0.1 accepts connections at the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
