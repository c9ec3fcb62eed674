"""Memory and descriptors of the server and of its eldest worker, all the time; flat or not is told at the end."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from dataclasses import dataclass
from typing import NamedTuple

import psutil

from tests.soak.scene import Scene

_PERIOD = 1.0


class Sample(NamedTuple):
    """One look. Memory is what a process has for itself (USS), in MiB; `at` is monotonic seconds."""

    at: float
    server_memory: float
    worker_memory: float
    server_descriptors: float
    worker_descriptors: float
    processes: float


@dataclass(frozen=True)
class Level:
    """A figure in the second and in the last quarter of the run (medians), and by how much it may have grown."""

    name: str
    second: float
    last: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        """Whether it has not grown more than it may."""
        return self.last - self.second <= self.allowed


class Gauge:
    """Looks once a second until the scene is over. A child that is a zombie at two looks is wrong."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.samples: list[Sample] = []
        self._zombies: set[int] = set()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="gauge")
        self._began = time.monotonic()

    def start(self) -> None:
        """Begins to look."""
        self._began = time.monotonic()
        self._thread.start()

    def levels(self, seconds: float) -> list[Level]:
        """The figures of a run that took so many seconds."""
        quarters: list[list[Sample]] = [[], [], [], []]
        for each in self.samples:
            quarters[min(3, int((each.at - self._began) / seconds * 4))].append(each)
        second, last = (
            {name: statistics.median(getattr(each, name) for each in quarters[index]) for name in Sample._fields[1:]}
            for index in (1, 3)
        )
        return [
            Level(name.replace("_", " "), second[name], last[name], _allowed(name, second[name])) for name in second
        ]

    def _watch(self) -> None:
        while not self._scene.over.wait(_PERIOD):
            # The server, or a worker, may be killed at any moment.
            with contextlib.suppress(psutil.Error, IndexError):
                self._look()

    def _look(self) -> None:
        family = self._scene.service.family()
        zombies = {each.pid for each in family if _is_zombie(each)}
        for pid in zombies & self._zombies:
            self._scene.record.blame(f"process {pid} stays a zombie")
        self._zombies = zombies
        server, worker = family[0], self._scene.workers()[0]
        memory = _own(server), _own(worker)
        # How many connections its users keep is their business.
        descriptors = server.num_fds() - _connections(server, self._scene.service.port), worker.num_fds()
        self.samples.append(Sample(time.monotonic(), *memory, *descriptors, len(family)))


def _own(process: psutil.Process) -> float:
    return float(process.memory_full_info().uss / 2**20)


def _connections(server: psutil.Process, port: int) -> int:
    found = server.net_connections("tcp")
    return sum(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in found)


def _is_zombie(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return False


def _allowed(name: str, before: float) -> float:
    if "memory" not in name:
        return 8.0
    # A worker holds now more, now fewer models, and its allocator keeps room of those that are gone.
    return max(16.0 if "worker" in name else 8.0, 0.1 * before)
