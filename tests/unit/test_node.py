"""What `/node_info` tells of the machine."""

from __future__ import annotations

import re

import anyio
import psutil

from mlpkit.web.monitoring import machine


def test_the_machine_is_told_in_the_wire_s_words_and_units() -> None:
    told = anyio.run(machine)
    assert told["totol_memory"] == told["total_memory"] == psutil.virtual_memory().total / 2**30
    assert told["totol_cpu"] == told["total_cpu"] == psutil.cpu_count()
    for rate in (told["idle_memory_rate"], told["idle_cpu_rate"]):
        assert isinstance(rate, float)
        assert 0 <= rate <= 1
        assert round(rate, 2) == rate
    for traffic in (told["net_io"], told["block_io"]):
        assert re.fullmatch(r"\d+\.\d/\d+\.\d", str(traffic))


def test_the_look_at_the_processors_blocks_nobody() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.sleep(0.01)
            turns += 1

    async def both() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            await machine()
            tasks.cancel_scope.cancel()

    anyio.run(both)
    # Of up to 50; a look that blocks leaves none.
    assert turns > 2
