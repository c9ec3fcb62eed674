"""What mlpkit is to reach, as ratios to the bare callable, and what it is to aim at."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.benchmarks.measure import Figures, Sample, kept


@dataclass(frozen=True)
class Goal:
    """A figure of one case. `gate`: a run with `--gate` fails where it is missed; CPU holds on a noisy machine."""

    case: str
    figure: str
    reach: float
    aim: float
    gate: bool = False

    def reached(self, samples: Sequence[Sample]) -> float:
        """The median of the runs that were not noisy."""
        return statistics.median(_FIGURES[self.figure](each) for each in kept(samples))

    def holds(self, value: float) -> bool:
        """Whether a value is good enough: at least the goal for throughput, at most for everything else."""
        value = round(value, 2)
        return value >= self.reach if self.figure == "throughput" else value <= self.reach


_FIGURES: dict[str, Callable[[Sample], float]] = {
    "throughput": lambda sample: sample.ratio,
    "CPU per request": lambda sample: sample.cpu_ratio,
    "p99 / p50": lambda sample: sample.run.p99 / sample.run.p50,
}
GOALS = (
    Goal("W1@1", "throughput", 0.75, 0.85),
    Goal("W1@16", "throughput", 0.60, 0.80),
    Goal("W1@16", "CPU per request", 1.6, 1.3, gate=True),
    Goal("W1@64", "throughput", 0.65, 0.80),
    Goal("W1@64", "CPU per request", 1.6, 1.3, gate=True),
    Goal("W2@16", "throughput", 0.85, 0.95),
    Goal("W3@1", "throughput", 0.90, 0.97),
    Goal("W3@16", "throughput", 9, 12),
    Goal("W3@64", "throughput", 15, 17),
    Goal("W4@16", "throughput", 0.97, 1.0),
    Goal("W4@16", "p99 / p50", 1.6, 1.6),
    Goal("W5@16", "throughput", 0.75, 0.90),
)


def outcomes(figures: Figures, peer: str) -> list[tuple[Goal, float]]:
    """Every goal whose case was measured, and what was reached."""
    measured = ((goal, figures.samples.get(goal.case, {}).get(peer)) for goal in GOALS)
    return [(goal, goal.reached(samples)) for goal, samples in measured if samples]
