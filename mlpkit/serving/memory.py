"""How much memory there is: what is free for this process and its children, and how much a load takes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
_V2 = ("memory.max", "memory.current", "")


def free_memory(groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that can still be taken: what the machine has available, within the limits of the control groups.

    Formats of the groups: https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html.
    """
    import psutil

    return min([psutil.virtual_memory().available, *_left_in_groups(groups, membership)])


def own_memory() -> int:
    """Bytes that this process keeps others from using: without mapped files, which the kernel can drop."""
    import psutil

    found = psutil.Process().memory_info()
    return int(found.rss - getattr(found, "shared", 0))


class Growth:
    """By how many bytes this process grows in a load; nobody can say that of loads that overlap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0
        self._begun = 0

    @contextlib.contextmanager
    def measured(self, *, whole: bool) -> Iterator[Callable[[], int | None]]:
        """Around a load; what it gives is to be called at the load's end, and answers None where another overlapped.

        `whole` counts everything that the process holds: it was started for this load.
        """
        with self._lock:
            alone = not self._under_way
            self._under_way += 1
            self._begun += 1
            number = self._begun
        before = own_memory() if alone and not whole else 0
        try:
            yield lambda: max(0, own_memory() - before) if alone and number == self._begun else None
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
        # In a container the path may be the one that the host sees, and the container's own group be at the top.
        for each in (folder, *folder.parents):
            if each.is_relative_to(top):
                with contextlib.suppress(OSError, ValueError):
                    yield _left(each, *names)


def _left(group: Path, limit: str, usage: str, prefix: str) -> int:
    """What a group may still take; the page cache counts as free, because it yields to programs."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    cached = sum(int(stat.get(f"{prefix}{name}", 0)) for name in ("active_file", "inactive_file"))
    return int((group / limit).read_text()) - int((group / usage).read_text()) + cached
