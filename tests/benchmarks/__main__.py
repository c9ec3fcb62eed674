"""Measures mlpkit, a bare hop and Starlette against a bare ASGI callable: `python -m tests.benchmarks`.

Every figure is a ratio to the bare callable's runs before and after: machines are noisy, ratios less so. The load
is made by `wrk` (Debian package of that name); the server keeps to the first CPU and `wrk` to the second where
`taskset` exists (W4, which has two workers, uses both). Noisy runs are left out: see `measure.py`.
"""

from __future__ import annotations

import argparse
import http.client
import re
import sys
import time
from pathlib import Path

from tests.benchmarks.catalog import HOP, MLPKIT, STARLETTE
from tests.benchmarks.goals import outcomes
from tests.benchmarks.load import require_wrk
from tests.benchmarks.measure import NOISE, Measuring, chosen_cases
from tests.benchmarks.peer import Peer
from tests.benchmarks.report import case_table, goal_table
from tests.benchmarks.server import Server

LOG_SECONDS = 5.0
LEGEND = f"""
Median (least-greatest) of the quiet runs; throughput and CPU per request of bare ASGI are 1. A run is quiet when the
bare runs before and after it differ by at most {NOISE:.0%}, and its CPU is within {NOISE:.0%} of the median."""


def check(peer: Peer, server: Server) -> None:
    """Sees that mlpkit counted and logged every request, and failed none: a path that skips this does not count."""
    if peer is not MLPKIT:
        return
    answered = _answered(server.port)
    end = time.monotonic() + LOG_SECONDS
    while (logged := _logged(server.log)) < answered and time.monotonic() < end:
        time.sleep(0.1)
    if logged < answered or answered == 0:
        raise SystemExit(f"mlpkit answered {answered} predictions and logged {logged}")
    print(f"mlpkit: {answered} predictions in its metrics, {logged} lines in its access log", flush=True)


def _answered(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    said = connection.getresponse().read().decode()
    counts = {
        outcome: float(count)
        for outcome, count in re.findall(r'mlpkit_predictions_total\{.*?outcome="(\w+)"\} (\S+)', said)
    }
    if counts["fail"]:
        raise SystemExit(f"{counts['fail']:.0f} predictions of mlpkit failed")
    return int(counts["success"])


def _logged(log: Path) -> int:
    with log.open("rb") as lines:
        return sum(b" POST /predict " in line for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--only", default="", help="regular expression over W1@64 and so on")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a goal of CPU per request is missed")
    options = parser.parse_args()
    require_wrk()
    measuring = Measuring(lambda peer: Path(sys.executable), options.rounds, options.seconds)
    measuring.measure((STARLETTE, HOP, MLPKIT), chosen_cases(options.only), check)
    figures = measuring.figures
    if figures.absent:
        raise SystemExit(1)
    print(LEGEND)
    for case in figures.samples:
        print(f"\n## {case}\n\n{case_table(figures, case)}")
    reached = outcomes(figures, MLPKIT.name)
    print(f"\n## Goals of mlpkit\n\n{goal_table(reached)}")
    gated = [goal.holds(value) for goal, value in reached if goal.gate]
    if options.gate and not (gated and all(gated)):
        raise SystemExit("a goal of CPU per request is missed" if gated else "no case with a gate was measured")


if __name__ == "__main__":
    main()
