"""Figures as tables in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from tests.benchmarks.catalog import BARE
from tests.benchmarks.goals import Goal
from tests.benchmarks.load import Run
from tests.benchmarks.measure import Figures, Sample, kept, quiet


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


def case_table(figures: Figures, case: str) -> str:
    """All that was found in one case, a row per peer."""
    heads = ("", "requests/s", "throughput", "CPU per request", "CPU us", "p50 ms", "p99 ms", "errors", "quiet runs")
    rows = [_bare_row(figures.bare[case])]
    rows += [_row(name, samples) for name, samples in figures.samples[case].items()]
    return table(heads, rows)


def _bare_row(runs: Sequence[Run]) -> list[str]:
    rates = [run.rate for run in runs]
    shown = f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})"
    return [BARE.name, shown, "1", "1", *_times(runs), str(sum(run.errors for run in runs)), str(len(runs))]


def _row(name: str, samples: Sequence[Sample]) -> list[str]:
    good = kept(samples)
    rates = [sample.run.rate for sample in good]
    return [
        name,
        f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})",
        median_and_spread([sample.ratio for sample in good]),
        median_and_spread([sample.cpu_ratio for sample in good]),
        *_times([sample.run for sample in good]),
        str(sum(sample.run.errors for sample in samples)),
        f"{len(quiet(samples))} of {len(samples)}",
    ]


def _times(runs: Sequence[Run]) -> list[str]:
    figures: Sequence[Callable[[Run], float]] = (lambda run: run.cpu, lambda run: run.p50, lambda run: run.p99)
    cpu, p50, p99 = (statistics.median(figure(run) for run in runs) for figure in figures)
    return [f"{cpu:.0f}", f"{p50:.2f}", f"{p99:.2f}"]


def goal_table(reached: Iterable[tuple[Goal, float]]) -> str:
    """What was to be reached, and what was."""
    rows = [
        [
            goal.case,
            goal.figure,
            goal.beside,
            f"{'>=' if goal.figure == 'throughput' else '<='} {goal.reach:g}",
            f"{goal.aim:g}",
            number(value),
            "yes" if goal.holds(value) else "**no**",
            "yes" if goal.gate else "",
        ]
        for goal, value in reached
    ]
    return table(("case", "figure", "1 is", "goal", "aim", "reached", "holds", "gate"), rows)
