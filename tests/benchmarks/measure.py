"""Measures peers in turn with the bare callable: it runs before the first and after every second of them.

A run is noisy, and left out, when the bare runs before and after it differ by more than a quarter, or when the peer's
CPU per request is more than a quarter off its median. Where no run is left, the one with the least difference stays.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tests.benchmarks.catalog import BARE
from tests.benchmarks.load import Run, load, write_script
from tests.benchmarks.peer import Peer
from tests.benchmarks.server import Server, Unavailable, serve

NOISE = 0.25
TOGETHER = 3
"""So many servers, and the bare one, are alive at a time: of a dozen, the idle ones are in the way of the other."""
ROUNDS_OF_A_START = 2
"""After so many rounds all servers are started anew: where a process happens to lie in memory makes it faster or slower
by a tenth, for as long as it lives."""
SETTLE_SECONDS = 0.5
STARTED_WITH = "W1"
Case = tuple[str, int]
CASES: tuple[Case, ...] = (
    ("W0", 16),
    ("W1", 1),
    ("W1", 16),
    ("W1", 64),
    ("W2", 16),
    ("W3", 1),
    ("W3", 16),
    ("W3", 64),
    ("W4", 16),
    ("W5", 16),
)


class Sample(msgspec.Struct, frozen=True):
    """A run of a peer, and the bare callable's last one before it and first one after it."""

    run: Run
    before: Run
    after: Run

    @property
    def ratio(self) -> float:
        """The peer's throughput, the bare callable's being 1."""
        return self.run.rate / ((self.before.rate + self.after.rate) / 2)

    @property
    def cpu_ratio(self) -> float:
        """The peer's CPU per request, the bare callable's being 1."""
        return self.run.cpu / ((self.before.cpu + self.after.cpu) / 2)

    @property
    def drift(self) -> float:
        """How much the bare callable's throughput changed meanwhile."""
        return abs(self.after.rate - self.before.rate) / max(self.after.rate, self.before.rate)


class Idle(msgspec.Struct, frozen=True):
    """A server that has answered once: seconds from its start to that answer, MiB (PSS), processes."""

    first_answer: float
    memory: float
    processes: int


class Figures(msgspec.Struct):
    """All that was found: `samples` by case (`W1@16`) and peer, `idle` by peer, `absent` by peer and workload."""

    samples: dict[str, dict[str, list[Sample]]] = {}
    bare: dict[str, list[Run]] = {}
    idle: dict[str, list[Idle]] = {}
    absent: dict[str, str] = {}


def chosen_cases(only: str) -> list[Case]:
    """The cases whose name (`W1@16`) a regular expression finds."""
    return [(name, count) for name, count in CASES if re.search(only, f"{name}@{count}")]


def quiet(samples: Sequence[Sample]) -> list[Sample]:
    """The samples that are not noisy."""
    typical = statistics.median(sample.run.cpu for sample in samples)
    return [each for each in samples if each.drift <= NOISE and abs(each.run.cpu - typical) <= NOISE * typical]


def kept(samples: Sequence[Sample]) -> list[Sample]:
    """The samples that are not noisy; where all are, the one whose bare runs differ least."""
    return quiet(samples) or [min(samples, key=lambda each: each.drift)]


def crowds(peers: Sequence[Peer]) -> list[list[Peer]]:
    """The peers that are measured in turn: a few at a time, and those that never rest by themselves."""
    together = [peer for peer in peers if not peer.alone]
    few = [together[start : start + TOGETHER] for start in range(0, len(together), TOGETHER)]
    return [*few, *([peer] for peer in peers if peer.alone)]


class Measuring:
    """Runs peers against the bare callable. `python_of` gives the interpreter of a peer's environment; `starts` is
    how often each peer is started for the figures of its start."""

    def __init__(self, python_of: Callable[[Peer], Path], rounds: int, seconds: int, starts: int = 0) -> None:
        self._python_of, self._rounds, self._seconds, self._starts = python_of, rounds, seconds, starts
        self.figures = Figures()

    def measure(self, peers: Sequence[Peer], cases: Sequence[Case], check: Callable[[Peer, Server], None]) -> None:
        """Adds to the figures. `check` looks at each peer's server before it is ended."""
        for workload in dict.fromkeys(name for name, _ in cases):
            counts = [count for name, count in cases if name == workload]
            for crowd in crowds([peer for peer in peers if workload in peer.workloads]):
                for done in range(0, self._rounds, ROUNDS_OF_A_START):
                    rounds = min(ROUNDS_OF_A_START, self._rounds - done)
                    self._measure(crowd, workload, counts, rounds, check)

    def _measure(
        self,
        peers: Sequence[Peer],
        workload: str,
        counts: Sequence[int],
        rounds: int,
        check: Callable[[Peer, Server], None],
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="mlpkit-bench-") as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            servers: dict[Peer, Server] = {}
            for peer in (BARE, *(peer for peer in peers if _absence(peer, workload) not in self.figures.absent)):
                server = self._started(peer, workload, folder, stack)
                if server is not None:
                    servers[peer] = server
            scripts = {peer: write_script(peer, workload, folder) for peer in servers}
            for _ in range(rounds):
                for connections in counts:
                    self._round(servers, scripts, workload, connections)
            for peer, server in servers.items():
                check(peer, server)

    def _started(self, peer: Peer, workload: str, folder: Path, stack: contextlib.ExitStack) -> Server | None:
        try:
            python = self._python_of(peer)
            missing = self._starts - len(self.figures.idle.get(peer.name, ()))
            for number in range(missing if workload == STARTED_WITH else 0):
                with serve(peer, workload, python, folder / f"{peer.folder}-{number}") as server:
                    time.sleep(SETTLE_SECONDS)
                    found = Idle(server.first_answer, server.memory(), len(server.processes()))
                    self.figures.idle.setdefault(peer.name, []).append(found)
            return stack.enter_context(serve(peer, workload, python, folder / peer.folder))
        except Unavailable as reason:
            self._leave_out(peer, workload, reason)
            return None

    def _round(self, servers: dict[Peer, Server], scripts: dict[Peer, Path], workload: str, connections: int) -> None:
        case = f"{workload}@{connections}"
        samples = self.figures.samples.setdefault(case, {})
        bare_runs = self.figures.bare.setdefault(case, [])
        bare_seconds = max(1, self._seconds // 2)
        before = load(servers[BARE], BARE.path, scripts[BARE], connections, bare_seconds)
        bare_runs.append(before)
        peers = [peer for peer in servers if peer is not BARE]
        for pair in (peers[start : start + 2] for start in range(0, len(peers), 2)):
            runs: dict[str, Run] = {}
            for peer in pair:
                try:
                    runs[peer.name] = load(servers[peer], peer.path, scripts[peer], connections, self._seconds)
                except Unavailable as reason:
                    self._leave_out(peer, workload, reason)
                    del servers[peer]
            after = load(servers[BARE], BARE.path, scripts[BARE], connections, bare_seconds)
            for name, run in runs.items():
                samples.setdefault(name, []).append(Sample(run, before, after))
            bare_runs.append(after)
            before = after

    def _leave_out(self, peer: Peer, workload: str, reason: Unavailable) -> None:
        if peer is BARE:
            raise reason
        self.figures.absent[_absence(peer, workload)] = str(reason)
        for case, samples in self.figures.samples.items():
            if case.startswith(f"{workload}@"):
                samples.pop(peer.name, None)
        print(f"{peer.name} is left out of {workload}: {reason}", flush=True)


def _absence(peer: Peer, workload: str) -> str:
    return f"{peer.name} in {workload}"
