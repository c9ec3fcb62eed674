"""The machine that the service runs on, in the words of `/node_info`.

Source: `tests/wire/PROTOCOL.md`, section 1.4. The protocol spells `totol_`; the answer has the right spelling too.
"""

from __future__ import annotations

import anyio

_GIB = 1 << 30
_SAMPLE = 0.5


async def node_info() -> dict[str, float | int | str]:
    """The machine's memory, processors, network and disks.

    Memory is in GiB, idle rates are from 0 to 1, `sent/received` and `read/written` in GiB since boot.

    Takes half a second, to measure how idle the processors are.
    """
    import psutil  # here and below: the server starts sooner and smaller without it

    before = psutil.cpu_times()
    await anyio.sleep(_SAMPLE)
    memory = psutil.virtual_memory()
    gibibytes = memory.total / _GIB
    cpus = psutil.cpu_count() or 1
    return {
        "totol_memory": gibibytes,
        "totol_cpu": cpus,
        "idle_memory_rate": round(memory.available / memory.total, 2),
        "idle_cpu_rate": round(_idle_share(before, psutil.cpu_times()), 2),
        "net_io": _network(),
        "block_io": _disks(),
        "total_memory": gibibytes,
        "total_cpu": cpus,
    }


def _idle_share(before: tuple[float, ...], after: tuple[float, ...]) -> float:
    idle = getattr(after, "idle", 0.0) - getattr(before, "idle", 0.0)
    whole = sum(after) - sum(before)
    return min(1.0, max(0.0, idle / whole)) if whole > 0 else 1.0


def _network() -> str:
    import psutil

    counters = psutil.net_io_counters()
    return _both(counters.bytes_sent, counters.bytes_recv) if counters else _both(0, 0)


def _disks() -> str:
    import psutil

    counters = psutil.disk_io_counters()
    return _both(counters.read_bytes, counters.write_bytes) if counters else _both(0, 0)


def _both(out: int, into: int) -> str:
    return f"{out / _GIB:.1f}/{into / _GIB:.1f}"
