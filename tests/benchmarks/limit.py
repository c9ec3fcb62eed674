"""How many workers one web process feeds before it is the limit itself: `python -m tests.benchmarks.limit`.

The CPU of the web process per request says how many models of 1 ms it could keep busy. That is then tried with models
that sleep 1 ms, and so need no CPU: the web process alone on one CPU, the workers and the client on the other.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import msgspec
import psutil

from tests.benchmarks.catalog import MLPKIT
from tests.benchmarks.load import Run, load, require_wrk, write_script
from tests.benchmarks.server import Server, cpu_seconds, serve
from tests.benchmarks.tails import many_models, serving

MODEL_US = 1000.0
WORKERS = (1, 4, 8, 16)
PER_WORKER = 8


class Fed(msgspec.Struct, frozen=True):
    """What some workers reached: requests per second, and the share of a CPU that the web process took."""

    workers: int
    rate: float
    web_cpu: float


class Limit(msgspec.Struct, frozen=True):
    """`web_us`: CPU of the web process alone per request in us, with 64 connections and a model that does nothing."""

    web_us: float
    fed: list[Fed]

    @property
    def workers(self) -> float:
        """How many workers with models of 1 ms one web process feeds."""
        return MODEL_US / self.web_us


def measure(rounds: int, seconds: int) -> Limit:
    """Medians of some rounds."""
    with tempfile.TemporaryDirectory(prefix="mlpkit-bench-") as name:
        folder = Path(name)
        script = write_script(MLPKIT, "W1", folder)
        with serve(MLPKIT, "W1", Path(sys.executable), folder / "home") as server:
            web_us = statistics.median(_web_us(server, script, seconds) for _ in range(rounds))
    return Limit(web_us, [_feed(workers, rounds, seconds) for workers in WORKERS])


def _web_us(server: Server, script: Path, seconds: int) -> float:
    before = cpu_seconds(server.process)
    run = load(server, MLPKIT.path, script, connections=64, seconds=seconds)
    return (cpu_seconds(server.process) - before) / run.requests * 1e6


def _feed(workers: int, rounds: int, seconds: int) -> Fed:
    peer = many_models(["sleeper"], replicas=workers)
    with tempfile.TemporaryDirectory(prefix="mlpkit-bench-") as name, serving(peer, workers) as server:
        _separate(server)
        script = write_script(peer, "W1", Path(name))
        found: list[tuple[Run, float]] = []
        for _ in range(rounds):
            before = cpu_seconds(server.process)
            run = load(server, peer.path, script, connections=PER_WORKER * workers, seconds=seconds)
            found.append((run, (cpu_seconds(server.process) - before) * run.rate / run.requests))
    rates, shares = ([run.rate for run, _ in found], [share for _, share in found])
    return Fed(workers, statistics.median(rates), statistics.median(shares))


def _separate(server: Server) -> None:
    """The web process to the first CPU, the workers to the second."""
    if (psutil.cpu_count() or 1) < 2 or not psutil.LINUX:
        return
    server.process.cpu_affinity([0])
    for child in server.process.children(recursive=True):
        child.cpu_affinity([1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2)
    options = parser.parse_args()
    require_wrk()
    limit = measure(options.rounds, options.seconds)
    print(f"CPU of the web process: {limit.web_us:.0f} us a request: enough for {limit.workers:.0f} workers of 1 ms")
    for each in limit.fed:
        print(f"{each.workers} workers: {each.rate:.0f} requests/s, web process {each.web_cpu:.0%} of a CPU")


if __name__ == "__main__":
    main()
