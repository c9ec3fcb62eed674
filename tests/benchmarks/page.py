"""Writes `docs/benchmarks.md` from what a run of `make bench-peers` found."""

from __future__ import annotations

import platform
import re
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from string import Template

import msgspec
import psutil

from tests.benchmarks.catalog import BARE, BLOCKING_HOP, GRANIAN, HOP, MLPKIT, PEERS, STARLETTE
from tests.benchmarks.environments import Installed
from tests.benchmarks.goals import outcomes
from tests.benchmarks.limit import Limit
from tests.benchmarks.measure import CASES, NOISE, Figures, Sample, kept, quiet
from tests.benchmarks.report import case_table, goal_table, number, table
from tests.benchmarks.tails import FAST_RATE, GROWTH_GOAL, HALF_GOAL, OTHERS, Tails

PAGE = Path("docs/benchmarks.md")
TEXT = Path(__file__).with_name("page.md")
ALL = (BARE, GRANIAN, STARLETTE, HOP, BLOCKING_HOP, MLPKIT, *PEERS)
SHOWN = {
    "W1@1": "a model that does nothing, one caller",
    "W1@16": "a model that does nothing",
    "W2@16": "a model of a fifth of a millisecond",
    "W3@64": "a model that gains by batches",
    "W4@16": "a model that keeps a core busy, two workers",
    "W5@16": "requests of 1 MiB",
}
AHEAD = 1.05
"""From this ratio on a peer counts as ahead: what is closer lies within what repeated runs differ by."""


class Found(msgspec.Struct):
    """All that the page shows."""

    figures: Figures = msgspec.field(default_factory=Figures)
    machine: dict[str, str] = {}
    installed: dict[str, Installed] = {}
    tails: Tails | None = None
    limit: Limit | None = None


def this_machine(rounds: int, seconds: int) -> dict[str, str]:
    """What the figures depend on: hardware, kernel, versions, how long was measured, and when."""
    cpus = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpus.read_text()) if cpus.exists() else None
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False, timeout=10).stdout.split()[1]
    ours = ("uvicorn", "uvloop", "httptools", "msgspec", "starlette")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "CPU": f"{model[1] if model else platform.processor()}, {psutil.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()}, {_build()}",
        "mlpkit's packages": ", ".join(f"{name} {version(name)}" for name in ours),
        "client": f"wrk {wrk}, one thread",
        "runs": f"{rounds} rounds of {seconds} s for every peer in every case",
    }


def _build() -> str:
    """How this Python was built, which decides how fast it is: some by half faster than others."""
    if sys.base_prefix == "/usr":
        return f"the package of {platform.freedesktop_os_release()['PRETTY_NAME']}"
    optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return f"built {'with' if optimized else 'without'} optimizations"


def text(found: Found) -> str:
    """The page in Markdown."""
    return Template(TEXT.read_text()).substitute(_parts(found))


def _parts(found: Found) -> dict[str, str]:
    figures = found.figures
    return {
        "summary": "\n".join(_summary(figures)),
        "throughput": _case_matrix(figures, lambda sample: sample.ratio),
        "cpu": _case_matrix(figures, lambda sample: sample.cpu_ratio),
        "latency": _latencies(figures),
        "footprint": _footprint(found),
        "behind": "\n".join(_behind(found)) or "- In no case that was measured.",
        "goals": goal_table(outcomes(figures, MLPKIT.name)),
        "tails": _tails(found.tails),
        "limit": _limit(found.limit),
        "settings": table(("server", "model runs in", "how it was set"), _settings()).replace("---:", "---"),
        "absent": _absent(figures),
        "machine": table(("", ""), found.machine.items()).replace("---:", "---"),
        "noise": f"{NOISE:.0%}",
        "details": "\n\n".join(_details(figures)),
    }


def _summary(figures: Figures) -> Iterator[str]:
    """mlpkit beside the best of those that guarantee as much: whose models live outside the web process."""
    rivals = {peer.name for peer in PEERS if peer.isolated}
    for case, what in SHOWN.items():
        ratios = _ratios(figures, case)
        others = {name: ratio for name, ratio in ratios.items() if name in rivals}
        if MLPKIT.name in ratios and others:
            best = max(others, key=lambda name: others[name])
            ours, theirs = (_cell(figures.samples[case][name], lambda each: each.ratio) for name in (MLPKIT.name, best))
            yield f"- {case}, {what}: mlpkit {ours}, {best} {theirs}."


def _ratios(figures: Figures, case: str) -> dict[str, float]:
    """The throughput of every server in one case."""
    samples = figures.samples.get(case, {})
    return {name: statistics.median(each.ratio for each in kept(runs)) for name, runs in samples.items()}


def _cases(figures: Figures) -> list[str]:
    return [name for name in (f"{workload}@{count}" for workload, count in CASES) if name in figures.samples]


def _case_matrix(figures: Figures, figure: Callable[[Sample], float]) -> str:
    cases = _cases(figures)
    rows = [[BARE.name, *("1" for _ in cases)]]
    for peer in ALL[1:]:
        cells = [_cell(figures.samples[case].get(peer.name), figure) for case in cases]
        if any(cell != "-" for cell in cells):
            rows.append(_row(peer.name, cells))
    return table(("", *cases), rows)


def _row(name: str, cells: Sequence[str]) -> list[str]:
    return [f"**{each}**" for each in (name, *cells)] if name == MLPKIT.name else [name, *cells]


def _cell(samples: Sequence[Sample] | None, figure: Callable[[Sample], float]) -> str:
    middle = _median(samples, figure)
    if samples is None or middle is None:
        return "-"
    return number(middle) if quiet(samples) else f"~{number(middle)}"


def _median(samples: Sequence[Sample] | None, figure: Callable[[Sample], float]) -> float | None:
    return statistics.median(figure(sample) for sample in kept(samples)) if samples else None


def _latencies(figures: Figures) -> str:
    cases = _cases(figures)
    bare = [figures.bare[case] for case in cases]
    first = [
        _pair(statistics.median(run.p50 for run in runs), statistics.median(run.p99 for run in runs)) for runs in bare
    ]
    rows = [[BARE.name, *first]]
    for peer in ALL[1:]:
        cells = []
        for case in cases:
            samples = figures.samples[case].get(peer.name)
            p50, p99 = (_median(samples, lambda each: each.run.p50), _median(samples, lambda each: each.run.p99))
            cells.append("-" if p50 is None or p99 is None else _pair(p50, p99))
        if any(cell != "-" for cell in cells):
            rows.append(_row(peer.name, cells))
    return table(("", *cases), rows)


def _pair(p50: float, p99: float) -> str:
    return f"{number(p50)} / {number(p99)}"


def _footprint(found: Found) -> str:
    rows = []
    for peer in ALL:
        idle, installed = found.figures.idle.get(peer.name), found.installed.get(peer.name)
        if not idle or installed is None:
            continue
        cells = [
            number(statistics.median(each.first_answer for each in idle)),
            f"{statistics.median(each.memory for each in idle):.0f}",
            str(idle[0].processes),
            f"{installed.mebibytes:.0f}",
            str(installed.distributions),
        ]
        rows.append(_row(peer.name, cells))
    return table(("", "first answer s", "memory MiB", "processes", "installed MiB", "distributions"), rows)


def _behind(found: Found) -> Iterator[str]:
    figures = found.figures
    for case in _cases(figures):
        ratios = _ratios(figures, case)
        ours = ratios.get(MLPKIT.name)
        ahead = [f"{name} {number(ratio)}" for name, ratio in ratios.items() if ours and ratio >= AHEAD * ours]
        if ahead and ours:
            yield f"- {case}: mlpkit {number(ours)}; {', '.join(ahead)}."
    for goal, value in outcomes(figures, MLPKIT.name):
        if not goal.holds(value):
            yield f"- {goal.case}: {goal.figure} is {number(value)}; the goal is {goal.reach:g}."


def _tails(tails: Tails | None) -> str:
    if tails is None:
        return "Not measured."
    half, neighbours = tails.half, tails.neighbours
    return (
        f"- **One model, one worker, clients that wait.** 64 connections reach {half.greatest:.0f} requests/s. With "
        f"{half.connections} connections the service answers about half of that, {half.carried:.0f}/s: {half.waiting} "
        f"(goal: below {HALF_GOAL:g}). Bare ASGI with as many connections: {half.bare_waiting}.\n"
        f"- **The same, with a client that does not wait,** at half of the greatest rate: {half.paced} (goal: below "
        f"{HALF_GOAL:g}). Bare ASGI at that rate: {half.bare_paced}.\n"
        f"- **A slow model beside quick ones.** Sixteen models are on two workers, and {OTHERS} quick ones get "
        f"{FAST_RATE:.0f} requests/s: p99 {statistics.median(neighbours.alone):.2f} ms. If the sixteenth gets four "
        f"requests per second, which take 200 ms each and release the interpreter meanwhile, the p99 of the quick ones "
        f"is {statistics.median(neighbours.beside):.2f} ms, {neighbours.growth:.2f} times as much (goal: below "
        f"{GROWTH_GOAL:g})."
    )


def _limit(limit: Limit | None) -> str:
    if limit is None:
        return "Not measured."
    one = limit.fed[0].rate / limit.fed[0].workers
    rows = [
        [str(each.workers), f"{each.rate:.0f}", f"{each.rate / each.workers / one:.0%}", f"{each.web_cpu:.0%}"]
        for each in limit.fed
    ]
    return (
        f"The web process needs {limit.web_us:.0f} us of CPU per request (W1@64, without its worker). So on one core "
        f"it can keep {limit.workers:.0f} workers busy whose models take 1 ms. This was tried with models that sleep "
        "for 1 ms. The web process had one core for itself, and all workers and the client had the other:\n\n"
        f"{table(('workers', 'requests/s', 'of as many times one worker', 'CPU of the web process'), rows)}\n\n"
        "If a row is far below 100% and the web process has time left, the other core is the limit, "
        "not the web process."
    )


def _settings() -> list[list[str]]:
    places = {True: "a process of its own", False: "the web process"}
    return [[_versioned(peer.name, peer.pip), places[peer.isolated], peer.settings] for peer in ALL]


def _versioned(name: str, pip: Sequence[str]) -> str:
    pinned = re.findall(r"([\w-]+)(?:\[\w+\])?==([\d.]+)", " ".join(pip))
    own = [number for package, number in pinned if package == name.lower().split(" ")[0]]
    return f"{name} {own[0]}" if own else name


def _absent(figures: Figures) -> str:
    if not figures.absent:
        return "All of them could be installed and started, and none ended before its time."
    reasons = (f"- {name}: `{reason.splitlines()[0]}`" for name, reason in figures.absent.items())
    return "\n".join(
        ("Left out, because they could not be installed or started, or ended before their time:", "", *reasons)
    )


def _details(figures: Figures) -> Iterator[str]:
    for case in _cases(figures):
        lines = case_table(figures, case).splitlines()
        yield "\n".join((f'??? note "{case}"', "", *(f"    {line}" for line in lines)))
