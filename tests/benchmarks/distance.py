"""A network between a client and a server of this machine: `python -m tests.benchmarks.distance PORT TARGET SECONDS`.

Whatever comes is passed on after half of a round trip; its rate is not limited, and no connection waits for another. It
is a process of its own, so that it does not share the client's interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator

import uvloop

from tests.servers.ports import accepts, free_port, wait_until

_PIECE = 1 << 18


@contextlib.contextmanager
def away(endpoint: str, seconds: float) -> Iterator[str]:
    """Another endpoint (host:port) of the same server, a round trip of so many seconds away."""
    port, target = free_port(), endpoint.partition(":")[2]
    command = [sys.executable, "-m", "tests.benchmarks.distance", str(port), target, str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: accepts(port) or process.poll() is not None, "the network is there")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


async def serve(port: int, target: int, delay: float) -> None:
    """Passes on what comes to a port, `delay` seconds later, until it is ended."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(_pass(reader, back, delay), _pass(there, writer, delay))

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    await server.serve_forever()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await reader.read(_PIECE):
            loop.call_later(delay, writer.write, data)
    loop.call_later(delay, writer.close)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 2))
