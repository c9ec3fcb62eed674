"""Whether there is enough memory for a model.

What a model needs is what its author declares (`memory=`), else what it took the last time that it was loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec

from mlpkit.errors import LoadFailed
from mlpkit.log import logger
from mlpkit.storage import decode_json, replace_file

if TYPE_CHECKING:
    from mlpkit.serving.model import ModelState

_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
_V2 = ("memory.max", "memory.current", "")
_STEP = 8 << 20
"""Needs are remembered in multiples of this many bytes: smaller ones are not written."""
_MOST_REMEMBERED = 1000


def free_memory(groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this process and its children can still take.

    The limits of the machine and of the control groups hold.

    Formats of the groups: https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html.
    """
    import psutil

    return min([psutil.virtual_memory().available, *_left_in_groups(groups, membership)])


def _own_memory() -> int:
    """Bytes that this process alone uses.

    Without mapped files, which the kernel can drop.
    """
    import psutil

    found = psutil.Process().memory_info()
    return int(found.rss - getattr(found, "shared", 0))


class Growth:
    """By how many bytes this process grows in a load.

    If loads overlap, this is not known.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0
        self._begun = 0

    @contextlib.contextmanager
    def measured(self, *, whole: bool) -> Iterator[Callable[[], int | None]]:
        """Measures a load.

        Call what it gives when the load ends. None means that another load overlapped.

        `whole` counts everything that the process holds: it was started for this load.
        """
        with self._lock:
            alone = not self._under_way
            self._under_way += 1
            self._begun += 1
            number = self._begun
        before = _own_memory() if alone and not whole else 0
        try:
            yield lambda: max(0, _own_memory() - before) if alone and number == self._begun else None
        finally:
            with self._lock:
                self._under_way -= 1


def _left_in_groups(groups: Path, membership: Path) -> Iterator[int]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = (groups / "memory", _V1) if controllers else (groups, _V2)
        folder = top / path.lstrip("/")
        # In a container the path may be the one that the host sees; the container's own group is then at the top.
        for group in (folder, *folder.parents):
            if group.is_relative_to(top):
                with contextlib.suppress(OSError, ValueError):
                    yield _left(group, *names)


def _left(group: Path, limit: str, usage: str, prefix: str) -> int:
    """Bytes that a group may still take.

    The page cache counts as free, because it yields to programs.
    """
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    cached = sum(int(stat.get(f"{prefix}{name}", 0)) for name in ("active_file", "inactive_file"))
    return int((group / limit).read_text()) - int((group / usage).read_text()) + cached


class MemoryBudget:
    """Memory that models need, and that running loads will take.

    In bytes. `file` remembers the needs.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._needs = _read(file)
        self._coming: list[int] = []
        self._ended = asyncio.Event()
        self._disk = anyio.CapacityLimiter(1)

    @contextlib.asynccontextmanager
    async def taken(self, model: ModelState, copies: int, limit: float) -> AsyncIterator[None]:
        """Reserves memory for copies of a model during their load.

        If there may be too little while other loads run, it waits for them, at most `limit` seconds: what they take is
        known only when they end.

        Raises:
            LoadFailed: there is too little; names the figures.
        """
        needed = copies * (model.algorithm.load_options.memory or self._needs.get(model.model_id, 0))
        if needed:
            with anyio.move_on_after(limit):
                while any(self._coming) and needed > self._free():
                    await self._ended.wait()
            if needed > (free := self._free()):
                raise LoadFailed(_refusal(model, copies, needed, free), was_tried=False)
        self._coming.append(needed)
        try:
            yield
        finally:
            self._coming.remove(needed)
            self._ended.set()
            self._ended = asyncio.Event()

    def need(self, model: ModelState) -> int:
        """Bytes that one copy of a model counts.

        What its author declares, else the most that was measured; at least the size of its files, if that is known.
        """
        measured = max(model.grown, model.record.size, self._needs.get(model.model_id, 0))
        return model.algorithm.load_options.memory or measured

    def known(self, model_id: str) -> int | None:
        """Bytes that the last load of a model took, if known."""
        return self._needs.get(model_id)

    async def remember(self, model_id: str, growth: int) -> None:
        """Notes how many bytes the load of a model took.

        The most counts: a worker that has kept the memory of another model grows by less than this one needs.
        """
        needed = max(growth // _STEP * _STEP, self._needs.get(model_id, 0))
        if needed == self._needs.get(model_id, 0):
            return
        self._needs.pop(model_id, None)
        if needed:
            self._needs[model_id] = needed
        for oldest in list(self._needs)[:-_MOST_REMEMBERED]:
            del self._needs[oldest]
        content = msgspec.json.encode(self._needs)
        try:
            await anyio.to_thread.run_sync(replace_file, self._file, content, limiter=self._disk)
        except OSError as error:
            logger.warning("what models need cannot be written to {}: {}", self._file, error)

    def _free(self) -> int:
        return free_memory() - sum(self._coming)


def _refusal(model: ModelState, copies: int, needed: int, free: int) -> str:
    declared = model.algorithm.load_options.memory is not None
    says = "needs {} of memory (memory=)" if declared else "needed {} of memory when it was loaded last"
    one = f"{needed / copies / 2**20:,.0f} MiB"
    amount = f"{copies} x {one}" if copies > 1 else one
    return f"the model {says.format(amount)}, {max(0, free) / 2**20:,.0f} MiB are free: unload others first"


def _read(file: Path) -> dict[str, int]:
    try:
        return decode_json(file.read_bytes(), dict[str, int])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        logger.warning("what models needed when they were loaded last cannot be read from {}: {}", file, error)
        return {}
