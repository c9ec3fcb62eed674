"""Measures mlpkit beside its peers and writes the page of benchmarks: `python -m tests.benchmarks.peers`.

Each peer gets a virtual environment of its own in `.bench/`; what was found stays in `.bench/found.json`, where a
later run replaces what it measures again, case by case and peer by peer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.benchmarks import limit, page, tails
from tests.benchmarks.__main__ import check
from tests.benchmarks.catalog import BLOCKING_HOP, GRANIAN, HOP, MLPKIT, PEERS, STARLETTE
from tests.benchmarks.environments import CACHE, environment
from tests.benchmarks.load import require_wrk
from tests.benchmarks.measure import Figures, Measuring, chosen_cases
from tests.benchmarks.peer import Peer

FOUND = CACHE / "found.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--only", default="", help="regular expression over W1@64 and so on")
    parser.add_argument("--peers", default="", help="names of servers, separated by commas; all where it is not given")
    parser.add_argument("--page", action="store_true", help="only write both pages anew from what was found last")
    options = parser.parse_args()
    found = msgspec.json.decode(FOUND.read_bytes(), type=page.Found) if FOUND.exists() else page.Found()
    if not options.page:
        require_wrk()
        CACHE.mkdir(exist_ok=True)
        _measure(found, options)
    page.write(found, Path("docs"))


def _measure(found: page.Found, options: argparse.Namespace) -> None:
    """Adds to what was found, and keeps it after every workload: half an hour is not lost by an accident at its end."""
    peers, cases = _chosen(options.peers), chosen_cases(options.only)
    found.machine = page.this_machine(options.rounds, options.seconds)
    for workload in dict.fromkeys(name for name, _ in cases):
        measuring = Measuring(_installer(found), options.rounds, options.seconds, starts=3)
        measuring.measure(peers, [case for case in cases if case[0] == workload], check)
        _merge(found.figures, measuring.figures, peers, workload)
        FOUND.write_bytes(msgspec.json.encode(found))
        print(f"{workload} is measured", flush=True)
    if not options.only and MLPKIT in peers:
        found.tails = tails.measure(options.rounds, options.seconds)
        found.limit = limit.measure(options.rounds, options.seconds)
        FOUND.write_bytes(msgspec.json.encode(found))


def _chosen(names: str) -> list[Peer]:
    known = {peer.name: peer for peer in (STARLETTE, HOP, MLPKIT, BLOCKING_HOP, GRANIAN, *PEERS)}
    wanted = [name.strip() for name in names.split(",")] if names else list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"no such server: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def _installer(found: page.Found) -> Callable[[Peer], Path]:
    def python_of(peer: Peer) -> Path:
        python, found.installed[peer.name] = environment(peer)
        # What is measured is this working tree; the environment only says how large mlpkit is.
        return Path(sys.executable) if peer is MLPKIT else python

    return python_of


def _merge(figures: Figures, new: Figures, peers: list[Peer], workload: str) -> None:
    for peer in peers:
        figures.absent.pop(f"{peer.name} in {workload}", None)
    figures.bare |= new.bare
    figures.idle |= new.idle
    for case, samples in new.samples.items():
        others = figures.samples.setdefault(case, {})
        for peer in peers:
            others.pop(peer.name, None)
        others |= samples
    figures.absent |= new.absent


if __name__ == "__main__":
    main()
