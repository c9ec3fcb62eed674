"""Thousands of clients in a process of their own, so that what they cost does not slow down whoever measures beside."""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.servers import LONG

SPARE_DESCRIPTORS = 200


@dataclass
class Outcomes:
    """Seconds until each answer, by what it was; `other` counts what is neither an answer nor a clear refusal."""

    connecting: float = 0.0
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)


def allow_connections(count: int) -> bool:
    """Raises this process's limit of open files, and that of its children, so that it can have so many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        return False
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True


def ask_together(port: int, request: bytes, connections: int, rate: float, seconds: float) -> Outcomes:
    """Connects all clients, who then send `request` at random times, `rate` requests a second in all."""
    allow_connections(connections)
    return asyncio.run(_ask_together(port, request, connections, rate, seconds))


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bytes, float]:
    """Status, head (in lower case) and duration of a request."""
    began = time.monotonic()
    writer.write(request)
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LONG)).lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1]), head, time.monotonic() - began


async def _ask_together(port: int, request: bytes, connections: int, rate: float, seconds: float) -> Outcomes:
    outcomes, began = Outcomes(), time.monotonic()
    opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(connections)))
    outcomes.connecting = time.monotonic() - began
    end = time.monotonic() + seconds

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Each has a part of the rate, as a Poisson process.
        while (pause := random.expovariate(rate / connections)) < end - time.monotonic():
            await asyncio.sleep(pause)
            status, head, took = await exchange(reader, writer, request)
            if status == 200:
                outcomes.answered.append(took)
            elif status == 503 and b"\r\nretry-after: 1\r\n" in head:
                outcomes.refused.append(took)
            else:
                outcomes.other[head.decode()] += 1
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        writer.close()

    await asyncio.gather(*(ask(*each) for each in opened))
    return outcomes
