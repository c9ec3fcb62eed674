"""Whether the machine has room for a model: asked before anything is started for it.

What a model needs is what its author declares (`memory=`), else what it took the last time that it was loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from mlpkit.errors import LoadFailed
from mlpkit.log import logger
from mlpkit.serving.ledger import replace_file
from mlpkit.serving.memory import free_memory
from mlpkit.serving.model import Model

_STEP = 8 << 20
"""Bytes in which needs are remembered: what is smaller is in nobody's way, and nothing is written for it."""
_MOST_REMEMBERED = 1000


class Room:
    """What models need, in bytes, and what the loads under way are about to take. `file` remembers the needs."""

    def __init__(self, file: Path) -> None:
        self._file, self._needs = file, _read(file)
        self._coming: list[int] = []
        self._ended = asyncio.Event()
        self._disk = anyio.CapacityLimiter(1)

    @contextlib.asynccontextmanager
    async def taken(self, model: Model, copies: int, limit: float) -> AsyncIterator[None]:
        """Room for so many copies of a model, while they are being loaded.

        Where there may be too little beside the loads under way, it waits for them, at most `limit` seconds: what they
        take is known only at their end.

        Raises:
            LoadFailed: there is too little; names the figures.
        """
        needed = copies * (model.algorithm.load_options.memory or self._needs.get(model.model_id, 0))
        if needed:
            with anyio.move_on_after(limit):
                while any(self._coming) and needed > self._free():
                    await self._ended.wait()
            if needed > (free := self._free()):
                raise LoadFailed(_refusal(model, copies, needed, free))
        self._coming.append(needed)
        try:
            yield
        finally:
            self._coming.remove(needed)
            self._ended.set()
            self._ended = asyncio.Event()

    async def remember(self, model_id: str, growth: int) -> None:
        """Notes by how many bytes a process has grown when it loaded the model."""
        needed = growth // _STEP * _STEP
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


def _refusal(model: Model, copies: int, needed: int, free: int) -> str:
    declared = model.algorithm.load_options.memory is not None
    says = "needs {} of memory (memory=)" if declared else "needed {} of memory when it was loaded last"
    each = f"{needed / copies / 2**20:,.0f} MiB"
    amount = f"{copies} x {each}" if copies > 1 else each
    return f"the model {says.format(amount)}, {max(0, free) / 2**20:,.0f} MiB are free: unload others first"


def _read(file: Path) -> dict[str, int]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, int])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        logger.warning("what models needed when they were loaded last cannot be read from {}: {}", file, error)
        return {}
