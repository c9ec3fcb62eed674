"""The CPUs and GPUs of this machine, and who gets them.

Jobs and models share the GPUs, whole or in parts. A part is a promise: nothing limits what a process takes of its
device.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from mlpkit.errors import ArgumentError

THREAD_SETTINGS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""What OpenMP, OpenBLAS, MKL, numexpr and Accelerate read when they are loaded."""
_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
"""What CUDA reads when it is loaded: the devices that a process sees."""
_WHOLE = 1000
"""A device in thousandths, because shares such as 0.1 are not exact as floats."""


def available_cpus() -> int:
    """How many CPUs this process may use, by affinity and quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min(cpus, int(_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))))


def thread_settings(processes: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Settings that share the CPUs among this number of processes.

    A setting that the user has made is not among them.
    OpenBLAS, MKL and numexpr follow OMP_NUM_THREADS, so nothing is set if the user has set that.
    """
    if "OMP_NUM_THREADS" in environment:
        return {}
    share = str(max(1, available_cpus() // max(1, processes)))
    return {name: share for name in THREAD_SETTINGS if name not in environment}


def device_settings(devices: Sequence[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What lets a process see only these devices.

    It is empty if the process has none, or if the user has said which devices to see.
    """
    if not devices or _VISIBLE_DEVICES in environment:
        return {}
    return {_VISIBLE_DEVICES: ",".join(devices)}


class Devices:
    """Gives devices to jobs and models.

    Jobs wait for them, models do not.

    Used on one event loop.

    Args:
        names: the numbers of the GPUs, as in `MLPKIT_GPUS`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._free = dict.fromkeys(names, _WHOLE)
        self._turn = anyio.Lock()
        self._returned: anyio.Event | None = None

    def check(self, gpus: float) -> None:
        """Refuses a number of devices that could never be given.

        Raises:
            ArgumentError: more devices than there are.
        """
        if gpus > len(self._free):
            raise ArgumentError(
                f"the algorithm asks for {gpus_in_words(gpus)}, this service has {len(self._free)}: "
                "MLPKIT_GPUS lists their numbers"
            )

    def take(self, gpus: float) -> tuple[str, ...] | None:
        """Devices for a process; None if there are not enough now.

        A share below 1 is of one device.
        """
        size = round(gpus * _WHOLE)
        if 0 < size < _WHOLE:
            fitting = [name for name, free in self._free.items() if free >= size]
            # The fullest one, so that whole devices stay free.
            taken = sorted(fitting, key=self._free.__getitem__)[:1]
        else:
            taken = [name for name, free in self._free.items() if free == _WHOLE][: size // _WHOLE]
        if sum(min(size, _WHOLE) for _ in taken) < size:
            return None
        for name in taken:
            self._free[name] -= min(size, _WHOLE)
        return tuple(taken)

    def give_back(self, devices: Iterable[str], gpus: float) -> None:
        """Takes back what `take(gpus)` has given."""
        for name in devices:
            self._free[name] += min(round(gpus * _WHOLE), _WHOLE)
        if self._returned is not None:
            self._returned.set()

    @asynccontextmanager
    async def held(self, gpus: float) -> AsyncIterator[tuple[str, ...]]:
        """Waits for devices, and gives their names.

        First come, first served: nobody is overtaken by a job that needs fewer.
        """
        if gpus == 0:
            yield ()
            return
        async with self._turn:
            while (taken := self.take(gpus)) is None:
                self._returned = anyio.Event()
                await self._returned.wait()
        try:
            yield taken
        finally:
            self.give_back(taken, gpus)

    def why_waiting(self, gpus: float) -> str:
        """Why a job waits for devices; empty if it does not."""
        whole = sum(free == _WHOLE for free in self._free.values())
        most = max(self._free.values(), default=0) / _WHOLE
        if gpus <= (most if gpus < 1 else whole):
            return ""
        return f"waits for {gpus_in_words(gpus)}: {whole} of {len(self._free)} are free now"


def gpus_in_words(gpus: float) -> str:
    """A number of devices, such as `2 GPUs`."""
    return f"{gpus:g} GPU{'s' * (gpus > 1)}"


def _quota(memberships: Path, root: Path) -> float:
    """CPUs that the cgroups allow; 1e6 if they set no quota.

    It is the smallest quota on the way to the root, of cgroups version 1 or 2.
    Source: the kernel's cgroup-v2 documentation (cpu.max) and its scheduler's bandwidth control (cpu.cfs_quota_us).
    """
    found = [1e6]
    try:
        lines = memberships.read_text().splitlines()
    except OSError:
        return found[0]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for base in [root, root / controllers, root / "cpu"] if controllers else [root]:
            folder = base / path.lstrip("/")
            for place in (folder, *folder.parents):
                if place == root.parent:
                    break
                found += _quotas_in(place)
    return min(found)


def _quotas_in(folder: Path) -> list[float]:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return [] if quota == "max" else [int(quota) / int(period)]
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        allowed = int((folder / "cpu.cfs_quota_us").read_text())
        return [] if allowed <= 0 else [allowed / int((folder / "cpu.cfs_period_us").read_text())]
    return []
