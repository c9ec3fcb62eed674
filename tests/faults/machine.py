"""A machine that is short of something: a small disk, a read-only one, a limit of memory. Most of it takes root."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.impossible import impossible
from tests.servers import wait_until

_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own in a folder."""

    folder: Path

    def fill(self, left: int = 0) -> None:
        """Leaves so many bytes free, in whole blocks."""
        with (self.folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while not left or self._room() > left:
                file.write(bytes(min(1 << 20, self._room() - left) or 1))

    def free(self) -> None:
        """Gives back what `fill` took."""
        (self.folder / "filler").unlink()

    def _room(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[SmallDisk]:
    """A disk of this size (`8m`) in a new folder; it is gone after the block, whoever uses it."""
    folder.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={size},mode=700", "mlpkit-test", str(folder))
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody can change anything in the folder, not even root; files that are open already can be written."""
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass(frozen=True)
class MemoryGroup:
    """A control group: its processes, and those that they start, get no more memory than its limit."""

    folder: Path
    limit_file: str
    usage_file: str

    def add(self, *pids: int) -> None:
        for pid in pids:
            (self.folder / "cgroup.procs").write_text(str(pid))

    def leave(self, room: int) -> None:
        """Lets the group have so many bytes more than it uses now."""
        used = int((self.folder / self.usage_file).read_text())
        (self.folder / self.limit_file).write_text(str(used + room))


@contextlib.contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A control group without processes and without a limit; whoever is in it at the end leaves it."""
    parent, files = _parent()
    group = MemoryGroup(parent / f"mlpkit-test-{secrets.token_hex(4)}", *files)
    try:
        group.folder.mkdir()
    except OSError as error:
        impossible(f"no control group can be made: {error}")
    try:
        yield group
    finally:
        (group.folder / group.limit_file).write_text("-1" if files == _V1 else "max")
        wait_until(lambda: _is_empty(group, parent), "nobody is in the control group")
        group.folder.rmdir()


def limit_addresses(process: psutil.Process, room: int) -> None:
    """Lets a process ask for so many bytes more than it has asked for so far; past that it gets a MemoryError."""
    if sys.platform != "linux":
        impossible("only Linux sets the limits of other processes")
    limit = process.memory_info().vms + room
    process.rlimit(psutil.RLIMIT_AS, (limit, limit))


_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
_V2 = ("memory.max", "memory.current")


def _parent() -> tuple[Path, tuple[str, str]]:
    """Where a group of our own can be, and the names of its files: below this process's in v1, at the top in v2.

    In v2 a group with processes has no groups below it that limit memory, the top one excepted.
    """
    own = Path("/proc/self/cgroup")
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _GROUPS / "memory" / path.lstrip("/"), _V1
    active = _GROUPS / "cgroup.subtree_control"
    if not active.exists() or "memory" not in active.read_text().split():
        impossible("there are no control groups for memory")
    return _GROUPS, _V2


def _is_empty(group: MemoryGroup, parent: Path) -> bool:
    pids = (group.folder / "cgroup.procs").read_text().split()
    for pid in pids:
        with contextlib.suppress(OSError):
            (parent / "cgroup.procs").write_text(pid)
    return not pids


def _mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        impossible("there is no program to mount with")
    if done.returncode:
        impossible(f"nothing can be mounted: {done.stderr.strip()}")
