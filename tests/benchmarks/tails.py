"""How long the slowest requests take: `python -m tests.benchmarks.tails`.

1. At half the maximal throughput, one model, one worker: p99 stays below three times p50. The fewest connections that
   carry so much do, each with its next request when it has its answer, as the greatest rate was found. Then the same
   rate from a client that does not wait for answers (`pace.py`): a client that waits feels each pause once for each
   connection, this one with all requests that were due meanwhile, whoever paused: server, machine or client. What the
   bare callable shows is the part of the latter two.
2. Sixteen models on two workers, one of them slow (200 ms, busy four fifths of the time): the p99 of the others grows
   by less than a quarter. With and without the slow one in turn; requests leave at a constant rate.
Logs and metrics are on; of 1 the half of the rounds counts in which the bare callable was steadiest. The server has one
CPU, the client the other.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import uvloop

from tests.benchmarks.catalog import BARE, MLPKIT
from tests.benchmarks.load import Run, load, require_wrk, write_script
from tests.benchmarks.pace import Stream, pace
from tests.benchmarks.peer import Peer, Start, envelope
from tests.benchmarks.server import CLIENT_CPU, SERVER_CPU, Server, free_port, on_cpu, pinned, serve, start_server
from tests.benchmarks.workloads import FEATURES

HALF_GOAL, GROWTH_GOAL = 3.0, 1.25
SLOW_RATE = 4.0
FAST_RATE = 1000.0
OTHERS = 15


class Spread(msgspec.Struct, frozen=True):
    """p50 and p99 in ms."""

    p50: float
    p99: float

    @property
    def times(self) -> float:
        """p99, p50 being 1."""
        return self.p99 / self.p50

    def __str__(self) -> str:
        return f"p50 {self.p50:.2f} ms, p99 {self.p99:.2f} ms, {self.times:.1f} times p50"


class Half(msgspec.Struct, frozen=True):
    """Latencies at half of `greatest`, the rate that 64 connections reached: mlpkit's, and the bare callable's.

    `carried` is the rate of so many `connections` that wait for their answers, which `waiting` and `bare_waiting` are
    of; `paced` and `bare_paced` are of requests that leave at half of `greatest`.
    """

    greatest: float
    connections: int
    carried: float
    waiting: Spread
    bare_waiting: Spread
    paced: Spread
    bare_paced: Spread


class Neighbours(msgspec.Struct, frozen=True):
    """The p99 in ms of fifteen quick models, without and with requests to a slow one beside them, run by run."""

    alone: list[float]
    beside: list[float]

    @property
    def growth(self) -> float:
        """The median with the slow model, the one without it being 1."""
        return statistics.median(self.beside) / statistics.median(self.alone)


class Tails(msgspec.Struct, frozen=True):
    """Both measurements."""

    half: Half
    neighbours: Neighbours


def many_models(models: list[str], replicas: int) -> Peer:
    """mlpkit with several models (see `many.py`)."""

    def command(start: Start) -> list[str]:
        served = ["mlpkit", "run", "tests.benchmarks.many:app", "--port", str(start.port)]
        return [str(start.python), "-m", *served, "--workers", str(start.workers)]

    variables = {"MODELS": ",".join(models), "REPLICAS": str(replicas)}
    return replace(MLPKIT, command=command, body=lambda workload, features: _to(models[0]), environment=variables)


@contextlib.contextmanager
def serving(peer: Peer, workers: int) -> Iterator[Server]:
    """The service on one CPU."""
    with tempfile.TemporaryDirectory(prefix="mlpkit-bench-") as name:
        start = Start(Path(sys.executable), "W1", free_port(), workers, Path(name))
        with start_server(peer, start, pinned(SERVER_CPU)) as server:
            yield server


def measure_half(rounds: int, seconds: int) -> Half:
    """Medians of the steadier rounds, on one CPU, the client on the other; the bare callable in turn with mlpkit."""
    waiting, paced = Beside([], []), Beside([], [])
    carried: list[float] = []
    with tempfile.TemporaryDirectory(prefix="mlpkit-bench-") as name, contextlib.ExitStack() as stack:
        folder, python = Path(name), Path(sys.executable)
        bare, server = (stack.enter_context(serve(each, "W1", python, folder / each.folder)) for each in (BARE, MLPKIT))
        script = write_script(MLPKIT, "W1", folder)
        greatest = statistics.median(_run(server, MLPKIT, script, 64, 1).rate for _ in range(rounds))
        connections = _carrying(server, script, greatest / 2)
        for _ in range(rounds):
            run = _run(server, MLPKIT, script, connections, seconds)
            bare_run = _run(bare, BARE, script, connections, seconds)
            carried.append(run.rate)
            waiting.own.append(Spread(run.p50, run.p99))
            waiting.bare.append(Spread(bare_run.p50, bare_run.p99))
            for each, found in ((server, paced.own), (bare, paced.bare)):
                stream = Stream([envelope("W1", features) for features in FEATURES["W1"]], greatest / 2)
                _paced(each, [stream], seconds)
                found.append(Spread(stream.percentile(0.5), stream.percentile(0.99)))
    return Half(greatest, connections, statistics.median(carried), *waiting.steady(), *paced.steady())


@dataclass(frozen=True)
class Beside:
    """What each round found: mlpkit's latencies, and the bare callable's a moment later."""

    own: list[Spread]
    bare: list[Spread]

    def steady(self) -> tuple[Spread, Spread]:
        """Medians of mlpkit's and of bare's, of the half of the rounds in which bare was steadiest.

        Where the machine itself pauses, bare shows it; mlpkit's own figures have no say in which rounds count.
        """
        pairs = sorted(zip(self.own, self.bare, strict=True), key=lambda pair: pair[1].times)
        own, bare = zip(*pairs[: len(pairs) // 2 + 1], strict=True)
        return _middle(own), _middle(bare)


def _middle(spreads: Sequence[Spread]) -> Spread:
    """The one whose p99 is the median in terms of p50."""
    return sorted(spreads, key=lambda each: each.times)[len(spreads) // 2]


def _carrying(server: Server, script: Path, rate: float) -> int:
    """The fewest connections that carry a rate."""
    for connections in range(1, 64):
        if _run(server, MLPKIT, script, connections, 1).rate >= rate:
            return connections
    raise SystemExit(f"{connections} connections do not carry {rate:.0f} requests/s, half of what 64 did")


def _run(server: Server, peer: Peer, script: Path, connections: int, seconds: int) -> Run:
    run = load(server, peer.path, script, connections, seconds)
    if run.errors:
        raise SystemExit(f"{run.errors} predictions of {peer.name} failed")
    return run


def measure_neighbours(rounds: int, seconds: int) -> Neighbours:
    """Runs without and with the slow model in turn."""
    quick = [f"fast-{number}" for number in range(OTHERS)]
    found = Neighbours([], [])
    with serving(many_models([*quick, "slow"], replicas=1), workers=2) as server:
        for model in (*quick, "slow"):
            _paced(server, [Stream([_to(model)], 10.0)], 0.3)
        for _ in range(rounds):
            for p99s, streams in ((found.alone, []), (found.beside, [Stream([_to("slow")], SLOW_RATE)])):
                others = Stream([_to(model) for model in quick], FAST_RATE)
                _paced(server, [others, *streams], seconds)
                p99s.append(others.percentile(0.99))
    return found


def _to(model: str) -> object:
    return {"model_id": model, "features": {"sentence": "a sentence of a few words"}}


def _paced(server: Server, streams: list[Stream], seconds: float) -> None:
    with on_cpu(CLIENT_CPU):
        uvloop.run(pace(server.port, streams, seconds))
    failures = sum(stream.failures for stream in streams)
    if failures:
        raise SystemExit(f"{failures} predictions failed")


def measure(rounds: int, seconds: int) -> Tails:
    """Both measurements."""
    return Tails(measure_half(rounds, seconds), measure_neighbours(rounds, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    options = parser.parse_args()
    require_wrk()
    found = measure(options.rounds, options.seconds)
    half, neighbours = found.half, found.neighbours
    print(f"half of {half.greatest:.0f} requests/s, by {half.connections} connections ({half.carried:.0f}/s):")
    print(f"  {half.waiting} (goal: below {HALF_GOAL:g}; bare ASGI: {half.bare_waiting})")
    print("the same rate without waiting for answers:")
    print(f"  {half.paced} (goal: below {HALF_GOAL:g}; bare ASGI: {half.bare_paced})")
    print(f"p99 of {OTHERS} quick models on two workers, {FAST_RATE:.0f} requests/s:")
    alone, beside = (statistics.median(each) for each in (neighbours.alone, neighbours.beside))
    print(f"  {alone:.2f} ms, {beside:.2f} ms beside a slow one:")
    print(f"  times {neighbours.growth:.2f} (goal: below {GROWTH_GOAL:g})")


if __name__ == "__main__":
    main()
