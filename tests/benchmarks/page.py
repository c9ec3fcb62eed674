"""Writes `docs/benchmarks.md` and its Chinese twin from what a run of `make bench-peers` found."""

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
from tests.benchmarks.peer import Peer
from tests.benchmarks.report import CHINESE_FIGURES, Say, case_table, chinese, english, goal_table, named, number, table
from tests.benchmarks.tails import FAST_RATE, GROWTH_GOAL, HALF_GOAL, OTHERS, Spread, Tails

ALL = (BARE, GRANIAN, STARLETTE, HOP, BLOCKING_HOP, MLPKIT, *PEERS)
SHOWN = {
    "W1@1": ("a model that does nothing, one caller", "什么也不做的模型，一个调用方"),
    "W1@16": ("a model that does nothing", "什么也不做的模型"),
    "W2@16": ("a model of a fifth of a millisecond", "耗时五分之一毫秒的模型"),
    "W3@64": ("a model that gains by batches", "能从批处理中受益的模型"),
    "W4@16": ("a model that keeps a core busy, two workers", "占满一个核的模型，两个工作进程"),
    "W5@16": ("requests of 1 MiB", "1 MiB 的请求"),
}
AHEAD = 1.05
"""From this ratio on a peer counts as ahead: what is closer lies within what repeated runs differ by."""
CHINESE_LABELS = {
    "date": "日期",
    "CPU": "CPU",
    "cores": "核数",
    "memory": "内存",
    "kernel": "内核",
    "Python": "Python",
    "build of Python": "Python 的构建方式",
    "mlpkit's packages": "mlpkit 依赖的包",
    "client": "客户端",
    "threads of the client": "客户端线程数",
    "rounds for every peer in every case": "每个服务器在每个场景的轮数",
    "length of a round": "每轮时长",
}
"""The labels of `this_machine` in Chinese."""


class Found(msgspec.Struct):
    """All that the page shows."""

    figures: Figures = msgspec.field(default_factory=Figures)
    machine: dict[str, str] = {}
    installed: dict[str, Installed] = {}
    tails: Tails | None = None
    limit: Limit | None = None


def this_machine(rounds: int, seconds: int) -> dict[str, str]:
    """What the figures depend on: hardware, kernel, versions, how long was measured, and when.

    Only the labels are in English: both pages show the values as they are.
    """
    cpus = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpus.read_text()) if cpus.exists() else None
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False, timeout=10).stdout.split()[1]
    ours = ("uvicorn", "uvloop", "httptools", "msgspec", "starlette")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "CPU": model[1] if model else platform.processor(),
        "cores": str(psutil.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "build of Python": _build(),
        "mlpkit's packages": ", ".join(f"{name} {version(name)}" for name in ours),
        "client": f"wrk {wrk}",
        "threads of the client": "1",
        "rounds for every peer in every case": str(rounds),
        "length of a round": f"{seconds} s",
    }


def _build() -> str:
    """How this Python was built, which decides how fast it is: some by half faster than others."""
    if sys.base_prefix == "/usr":
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return f"`./configure{' --enable-optimizations' if optimized else ''}`"


def write(found: Found, folder: Path) -> None:
    """Writes the page in both languages."""
    for say in (english, chinese):
        path = folder / say("benchmarks.md", "benchmarks.zh.md")
        path.write_text(text(found, say), encoding="utf-8")
        print(f"{path} is written")


def text(found: Found, say: Say) -> str:
    """The page in Markdown, in one language."""
    template = Path(__file__).with_name(say("page.md", "page.zh.md"))
    return Template(template.read_text(encoding="utf-8")).substitute(_parts(found, say))


def _parts(found: Found, say: Say) -> dict[str, str]:
    figures = found.figures
    settings = (say("server", "服务器"), say("model runs in", "模型所在的进程"), say("how it was set", "设置"))
    machine = ((say(label, CHINESE_LABELS.get(label, label)), value) for label, value in found.machine.items())
    return {
        "summary": "\n".join(_summary(figures, say)),
        "throughput": _case_matrix(figures, lambda sample: sample.ratio, say),
        "cpu": _case_matrix(figures, lambda sample: sample.cpu_ratio, say),
        "latency": _latencies(figures, say),
        "footprint": _footprint(found, say),
        "behind": "\n".join(_behind(found, say)) or say("- In no case that was measured.", "- 测过的场景里没有。"),
        "goals": goal_table(outcomes(figures, MLPKIT.name), say),
        "tails": _tails(found.tails, say),
        "limit": _limit(found.limit, say),
        "settings": table(settings, _settings(say)).replace("---:", "---"),
        "absent": _absent(figures, say),
        "machine": table(("", ""), machine).replace("---:", "---"),
        "noise": f"{NOISE:.0%}",
        "details": "\n\n".join(_details(figures, say)),
    }


def _summary(figures: Figures, say: Say) -> Iterator[str]:
    """mlpkit beside the best of those that guarantee as much: whose models live outside the web process."""
    rivals = {peer.name for peer in PEERS if peer.isolated}
    for case, (what, what_zh) in SHOWN.items():
        ratios = _ratios(figures, case)
        others = {name: ratio for name, ratio in ratios.items() if name in rivals}
        if MLPKIT.name in ratios and others:
            best = max(others, key=lambda name: others[name])
            ours, theirs = (_cell(figures.samples[case][name], lambda each: each.ratio) for name in (MLPKIT.name, best))
            yield say(
                f"- {case}, {what}: mlpkit {ours}, {best} {theirs}.",
                f"- {case}，{what_zh}：mlpkit {ours}，{named(best, say)} {theirs}。",
            )


def _ratios(figures: Figures, case: str) -> dict[str, float]:
    """The throughput of every server in one case."""
    samples = figures.samples.get(case, {})
    return {name: statistics.median(each.ratio for each in kept(runs)) for name, runs in samples.items()}


def _cases(figures: Figures) -> list[str]:
    return [name for name in (f"{workload}@{count}" for workload, count in CASES) if name in figures.samples]


def _case_matrix(figures: Figures, figure: Callable[[Sample], float], say: Say) -> str:
    cases = _cases(figures)
    rows = [[BARE.name, *("1" for _ in cases)]]
    for peer in ALL[1:]:
        cells = [_cell(figures.samples[case].get(peer.name), figure) for case in cases]
        if any(cell != "-" for cell in cells):
            rows.append(_row(peer.name, cells, say))
    return table(("", *cases), rows)


def _row(name: str, cells: Sequence[str], say: Say) -> list[str]:
    return [f"**{each}**" for each in (name, *cells)] if name == MLPKIT.name else [named(name, say), *cells]


def _cell(samples: Sequence[Sample] | None, figure: Callable[[Sample], float]) -> str:
    middle = _median(samples, figure)
    if samples is None or middle is None:
        return "-"
    return number(middle) if quiet(samples) else f"~{number(middle)}"


def _median(samples: Sequence[Sample] | None, figure: Callable[[Sample], float]) -> float | None:
    return statistics.median(figure(sample) for sample in kept(samples)) if samples else None


def _latencies(figures: Figures, say: Say) -> str:
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
            rows.append(_row(peer.name, cells, say))
    return table(("", *cases), rows)


def _pair(p50: float, p99: float) -> str:
    return f"{number(p50)} / {number(p99)}"


def _footprint(found: Found, say: Say) -> str:
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
        rows.append(_row(peer.name, cells, say))
    heads = (
        "",
        say("first answer s", "首次响应 s"),
        say("memory MiB", "内存 MiB"),
        say("processes", "进程数"),
        say("installed MiB", "安装体积 MiB"),
        say("distributions", "包数"),
    )
    return table(heads, rows)


def _behind(found: Found, say: Say) -> Iterator[str]:
    figures = found.figures
    for case in _cases(figures):
        ratios = _ratios(figures, case)
        ours = ratios.get(MLPKIT.name)
        ahead = [
            f"{named(name, say)} {number(ratio)}" for name, ratio in ratios.items() if ours and ratio >= AHEAD * ours
        ]
        if ahead and ours:
            yield say(
                f"- {case}: mlpkit {number(ours)}; {', '.join(ahead)}.",
                f"- {case}：mlpkit {number(ours)}；{'，'.join(ahead)}。",
            )
    for goal, value in outcomes(figures, MLPKIT.name):
        if not goal.holds(value):
            yield say(
                f"- {goal.case}: {goal.figure} is {number(value)}; the goal is {goal.reach:g}.",
                f"- {goal.case}，{CHINESE_FIGURES[goal.figure]}：{number(value)}，目标是 {goal.reach:g}。",
            )


def _tails(tails: Tails | None, say: Say) -> str:
    if tails is None:
        return _not_measured(say)
    half, neighbours = tails.half, tails.neighbours
    waiting, bare_waiting = _spread(half.waiting, say), _spread(half.bare_waiting, say)
    paced, bare_paced = _spread(half.paced, say), _spread(half.bare_paced, say)
    alone, beside = statistics.median(neighbours.alone), statistics.median(neighbours.beside)
    return say(
        f"- **One model, one worker, clients that wait.** 64 connections reach {half.greatest:.0f} requests/s. With "
        f"{half.connections} connections the service answers about half of that, {half.carried:.0f}/s: {waiting} "
        f"(goal: below {HALF_GOAL:g}). Bare ASGI with as many connections: {bare_waiting}.\n"
        f"- **The same, with a client that does not wait,** at half of the greatest rate: {paced} (goal: below "
        f"{HALF_GOAL:g}). Bare ASGI at that rate: {bare_paced}.\n"
        f"- **A slow model beside quick ones.** Sixteen models are on two workers, and {OTHERS} quick ones get "
        f"{FAST_RATE:.0f} requests/s: p99 {alone:.2f} ms. If the sixteenth gets four requests per second, which take "
        f"200 ms each and release the interpreter meanwhile, the p99 of the quick ones is {beside:.2f} ms, "
        f"{neighbours.growth:.2f} times as much (goal: below {GROWTH_GOAL:g}).",
        f"- **一个模型，一个工作进程，等待响应的客户端。** 64 个连接时达到每秒 {half.greatest:.0f} 个请求。"
        f"{half.connections} 个连接时大约是它的一半，每秒 {half.carried:.0f} 个：{waiting}"
        f"（目标：小于 {HALF_GOAL:g}）。连接数相同时，bare ASGI：{bare_waiting}。\n"
        f"- **同样的模型，不等待响应的客户端，** 速率是最大值的一半：{paced}（目标：小于 {HALF_GOAL:g}）。"
        f"速率相同时，bare ASGI：{bare_paced}。\n"
        f"- **快模型旁边有一个慢模型。** 16 个模型在两个工作进程上，其中 {OTHERS} 个快模型每秒共收到 "
        f"{FAST_RATE:.0f} 个请求：p99 {alone:.2f} ms。如果剩下的那个模型每秒收到 4 个请求，每个耗时 200 ms，"
        f"其间释放 GIL，快模型的 p99 是 {beside:.2f} ms，为原来的 {neighbours.growth:.2f} 倍"
        f"（目标：小于 {GROWTH_GOAL:g}）。",
    )


def _spread(spread: Spread, say: Say) -> str:
    return say(str(spread), f"p50 {spread.p50:.2f} ms，p99 {spread.p99:.2f} ms，是 p50 的 {spread.times:.1f} 倍")


def _not_measured(say: Say) -> str:
    return say("Not measured.", "没有测量。")


def _limit(limit: Limit | None, say: Say) -> str:
    if limit is None:
        return _not_measured(say)
    one = limit.fed[0].rate / limit.fed[0].workers
    rows = [
        [str(each.workers), f"{each.rate:.0f}", f"{each.rate / each.workers / one:.0%}", f"{each.web_cpu:.0%}"]
        for each in limit.fed
    ]
    heads = (
        say("workers", "工作进程数"),
        say("requests/s", "每秒请求数"),
        say("of as many times one worker", "与线性扩展之比"),
        say("CPU of the web process", "Web 进程的 CPU"),
    )
    before = say(
        f"The web process needs {limit.web_us:.0f} us of CPU per request (W1@64, without its worker). So on one core "
        f"it can keep {limit.workers:.0f} workers busy whose models take 1 ms. This was tried with models that sleep "
        "for 1 ms. The web process had one core for itself, and all workers and the client had the other:",
        f"Web 进程处理一个请求需要 {limit.web_us:.0f} us 的 CPU 时间（W1@64，不含工作进程）。所以，如果模型耗时 1 ms，"
        f"Web 进程用一个核就能让 {limit.workers:.0f} 个工作进程保持繁忙。我们用休眠 1 ms 的模型做了验证。"
        "Web 进程独占一个核，所有工作进程和客户端用另一个核：",
    )
    after = say(
        "If a row is far below 100% and the web process has time left, the other core is the limit, "
        "not the web process.",
        "如果某一行远低于 100%，而 Web 进程还有空闲，那么瓶颈是另一个核，不是 Web 进程。",
    )
    return f"{before}\n\n{table(heads, rows)}\n\n{after}"


def _settings(say: Say) -> list[list[str]]:
    places = {True: say("a process of its own", "单独的进程"), False: say("the web process", "Web 进程")}
    return [
        [named(peer.name, say) + _version(peer), places[peer.isolated], say(peer.settings, peer.settings_zh)]
        for peer in ALL
    ]


def _version(peer: Peer) -> str:
    pinned = re.findall(r"([\w-]+)(?:\[\w+\])?==([\d.]+)", " ".join(peer.pip))
    own = [number for package, number in pinned if package == peer.name.lower().split(" ")[0]]
    return f" {own[0]}" if own else ""


def _absent(figures: Figures, say: Say) -> str:
    if not figures.absent:
        return say(
            "All of them could be installed and started, and none ended before its time.",
            "所有服务器都能安装和启动，没有一个提前退出。",
        )
    head = say(
        "Left out, because they could not be installed or started, or ended before their time:",
        "以下服务器没有列入，因为无法安装、无法启动，或者提前退出：",
    )
    return "\n".join((head, "", *(_absence(each, reason, say) for each, reason in figures.absent.items())))


def _absence(each: str, reason: str, say: Say) -> str:
    name, _, workload = each.rpartition(" in ")
    first = f"`{reason.splitlines()[0]}`"
    return say(f"- {each}: {first}", f"- {named(name, say)}（{workload}）：{first}")


def _details(figures: Figures, say: Say) -> Iterator[str]:
    for case in _cases(figures):
        lines = case_table(figures, case, say).splitlines()
        yield "\n".join((f'??? note "{case}"', "", *(f"    {line}" for line in lines)))
