"""A network between a client and a server of this machine: `python -m tests.benchmarks.distance PORT TARGET SECONDS`.

Every answer takes a round trip longer; requests pass at once, connections do not wait for each other, and to open one
takes no longer. It is a process of its own, so that it does not share the client's interpreter; it shares the cores.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

from tests.servers import Relay, free_port, wait_until
from tests.servers.ports import accepts


@contextlib.contextmanager
def away(endpoint: str, seconds: float) -> Iterator[str]:
    """Another endpoint (host:port) of the same server, a round trip of so many seconds away."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.distance", str(port), endpoint, str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: accepts(port) or process.poll() is not None, "the network is there")
        assert process.poll() is None
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


if __name__ == "__main__":
    with Relay(sys.argv[2], int(sys.argv[1]), trip=float(sys.argv[3])):
        signal.pause()
