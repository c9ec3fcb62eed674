"""What the steps of a check share: the course that they go through, how they end, and how answers are compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlpkit.check.subject import Subject

_LONGEST_EXCERPT = 100
_ROUNDING = 1e-4


class Failed(Exception):
    """The step failed; the text is the sentence."""


class Doubtful(Exception):
    """The step is worth a warning; the text is the sentence."""


class Skipped(Exception):
    """The step has nothing to look at; the text says why."""


@dataclass
class Course:
    """What the steps share: the subject, what was asked for, and what the steps before have found out."""

    subject: Subject
    data: Path | None = None
    parameters: object = None
    timeout: float = 3600.0
    examples: Sequence[Any] = ()
    location: str | None = None
    model_id: str = ""
    answers: list[Any] = field(default_factory=list)
    throughput: float | None = None
    levels: dict[str, int] = field(default_factory=dict)

    def predict(self, features: object) -> Any:
        """The loaded model's answer."""
        return self.subject.client.predict(self.model_id, features)


def same(one: Any, other: Any) -> bool:
    """Equal, up to rounding: batches may add up floats in another order."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other or abs(one - other) <= _ROUNDING * max(abs(one), abs(other), 1.0)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def excerpt(value: object) -> str:
    """The beginning of a value as JSON, for a sentence."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_EXCERPT else text[: _LONGEST_EXCERPT - 1] + "…"
