"""Figures as tables in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from tests.benchmarks.catalog import BARE, BLOCKING_HOP, HOP
from tests.benchmarks.goals import Goal
from tests.benchmarks.load import Run
from tests.benchmarks.measure import Figures, Sample, kept, quiet

Say = Callable[[str, str], str]
"""Which of two texts a page has, the English or the Chinese one: `english` or `chinese`."""
CHINESE_FIGURES = {"throughput": "吞吐量", "CPU per request": "每个请求的 CPU", "p99 / p50": "p99 / p50"}
"""The figures of goals in Chinese."""
_CHINESE_NAMES = {
    HOP.name: "bare ASGI + 工作进程",
    BLOCKING_HOP.name: "bare ASGI + 阻塞式工作进程",
    "MLServer in process": "无进程池的 MLServer",
    "Ray Serve behind HAProxy": "HAProxy 后的 Ray Serve",
}
"""The servers whose name has English words."""


def english(en: str, zh: str) -> str:
    """The English text."""
    return en


def chinese(en: str, zh: str) -> str:
    """The Chinese text."""
    return zh


def named(name: str, say: Say) -> str:
    """The name of a server on the page."""
    return say(name, _CHINESE_NAMES.get(name, name))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Two significant digits below 10, whole numbers above."""
    return f"{value:.2f}" if value < 3 else f"{value:.1f}" if value < 20 else f"{value:.0f}"


def median_and_spread(values: Sequence[float]) -> str:
    """The median, and least and greatest behind it."""
    return f"{number(statistics.median(values))} ({number(min(values))}-{number(max(values))})"


def case_table(figures: Figures, case: str, say: Say = english) -> str:
    """All that was found in one case, a row per peer."""
    heads = (
        "",
        say("requests/s", "每秒请求数"),
        *(say(figure, CHINESE_FIGURES[figure]) for figure in ("throughput", "CPU per request")),
        *("CPU us", "p50 ms", "p99 ms"),
        say("errors", "出错数"),
        say("quiet runs", "有效次数"),
    )
    rows = [_bare_row(figures.bare[case])]
    rows += [_row(name, samples, say) for name, samples in figures.samples[case].items()]
    return table(heads, rows)


def _bare_row(runs: Sequence[Run]) -> list[str]:
    rates = [run.rate for run in runs]
    shown = f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})"
    return [BARE.name, shown, "1", "1", *_times(runs), str(sum(run.errors for run in runs)), str(len(runs))]


def _row(name: str, samples: Sequence[Sample], say: Say) -> list[str]:
    good = kept(samples)
    rates = [sample.run.rate for sample in good]
    return [
        named(name, say),
        f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})",
        median_and_spread([sample.ratio for sample in good]),
        median_and_spread([sample.cpu_ratio for sample in good]),
        *_times([sample.run for sample in good]),
        str(sum(sample.run.errors for sample in samples)),
        f"{len(quiet(samples))}{say(' of ', '/')}{len(samples)}",
    ]


def _times(runs: Sequence[Run]) -> list[str]:
    figures: Sequence[Callable[[Run], float]] = (lambda run: run.cpu, lambda run: run.p50, lambda run: run.p99)
    cpu, p50, p99 = (statistics.median(figure(run) for run in runs) for figure in figures)
    return [f"{cpu:.0f}", f"{p50:.2f}", f"{p99:.2f}"]


def goal_table(reached: Iterable[tuple[Goal, float]], say: Say = english) -> str:
    """What was to be reached, and what was."""
    rows = [
        [
            goal.case,
            say(goal.figure, CHINESE_FIGURES[goal.figure]),
            named(goal.beside, say),
            f"{'>=' if goal.figure == 'throughput' else '<='} {goal.reach:g}",
            f"{goal.aim:g}",
            number(value),
            say("yes", "是") if goal.holds(value) else say("**no**", "**否**"),
            say("yes", "是") if goal.gate else "",
        ]
        for goal, value in reached
    ]
    heads = say("case,figure,1 is,goal,aim,reached,holds,gate", "场景,指标,基准（为 1）,目标,期望,实测,达标,门槛")
    return table(heads.split(","), rows)
