"""CPUs of the container, and threads of numerical libraries."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

THREAD_SETTINGS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""What OpenMP, OpenBLAS, MKL, numexpr and Accelerate read when they are loaded."""


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
