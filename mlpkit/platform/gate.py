"""Whether a replica may load what the platform's tables name."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import anyio
import anyio.to_thread

from mlpkit.algorithm import Algorithm
from mlpkit.errors import BelowGate, StorageError
from mlpkit.settings import Settings
from mlpkit.storage import ModelDir, Storage, gate_problem
from mlpkit.training import takes

_AT_ONCE = 8


class GateCheck:
    """Keeps models below their gate (`min_f1`) from being loaded."""

    def __init__(self, algorithms: Mapping[str, Algorithm], storage: Storage, settings: Settings) -> None:
        # Only their models have a manifest: asking for those of a thousand others takes longer than their loads.
        self._with_files = {name for name, algorithm in algorithms.items() if _has_files(algorithm)}
        self._storage = storage
        self._settings = settings
        self._threads = anyio.CapacityLimiter(_AT_ONCE)

    async def check(self, algorithm: str, model_id: str, path: str | None = None) -> None:
        """Refuses a model below its gate.

        If the store cannot be asked, the load says why.

        Raises:
            BelowGate: with the figure.
        """
        if algorithm not in self._with_files:
            return
        with contextlib.suppress(StorageError):
            arguments = (self._storage, self._settings, model_id, path)
            problem = await anyio.to_thread.run_sync(gate_problem, *arguments, limiter=self._threads)
            if problem:
                raise BelowGate(f"it is below its gate: {problem}")


def _has_files(algorithm: Algorithm) -> bool:
    """Whether models of the algorithm may be folders in the store."""
    return any(plan is not None and takes(plan, ModelDir) for plan in map(algorithm.plan, ("load", "train")))
