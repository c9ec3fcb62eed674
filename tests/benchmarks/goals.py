"""What mlpkit must reach, and what it aims at, as ratios to other servers of the same rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.catalog import BARE, HOP
from tests.benchmarks.measure import Figures, Sample, kept


@dataclass(frozen=True)
class Goal:
    """A figure of one case. `beside`: the server whose figure is 1.

    `gate`: a run with `--gate` fails if it is missed; CPU per request is steady on a noisy machine too.
    """

    case: str
    figure: str
    reach: float
    aim: float
    gate: bool = False
    beside: str = BARE.name

    def reached(self, samples: Mapping[str, Sequence[Sample]], peer: str) -> float | None:
        """The median of the runs that were not noisy; None if it was not measured."""
        if peer not in samples or (self.beside != BARE.name and self.beside not in samples):
            return None
        value = self._median(samples[peer])
        return value if self.beside == BARE.name else value / self._median(samples[self.beside])

    def _median(self, samples: Sequence[Sample]) -> float:
        return statistics.median(_FIGURES[self.figure](sample) for sample in kept(samples))

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
    *(Goal(f"W1@{count}", "throughput", 1.0, 1.15, beside=HOP.name) for count in (1, 16, 64)),
    *(Goal(f"W1@{count}", "CPU per request", 1.0, 0.9, gate=True, beside=HOP.name) for count in (1, 16, 64)),
    Goal("W2@16", "throughput", 1.0, 1.2),
    Goal("W3@1", "throughput", 0.90, 0.97),
    Goal("W3@16", "throughput", 11, 13),
    Goal("W3@64", "throughput", 19, 22),
    Goal("W4@16", "throughput", 0.97, 1.0),
    Goal("W4@16", "p99 / p50", 1.6, 1.6),
    Goal("W5@16", "throughput", 0.85, 0.95),
)


def outcomes(figures: Figures, peer: str) -> list[tuple[Goal, float]]:
    """Every goal whose case was measured, and what was reached."""
    measured = ((goal, goal.reached(figures.samples.get(goal.case, {}), peer)) for goal in GOALS)
    return [(goal, value) for goal, value in measured if value is not None]
