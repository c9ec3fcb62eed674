"""Scores from 0 to 100, as the platform writes them, from probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

Score = Annotated[float, msgspec.Meta(ge=0, le=100)]
"""A score in an answer that is checked: a finite number from 0 to 100."""

_ROUNDING = 1e-4


def from_probability(probability: Any) -> float:
    """The score, 0 to 100, of a probability from 0 to 1.

    It takes numbers and numpy and torch scalars. Up to 0.0001 below 0 or above 1, as float16 arithmetic has it, is cut
    off.

    Raises:
        ValueError: not a number, or not between 0 and 1.
    """
    number = listed(probability)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise ValueError(f"a probability is a number from 0 to 1, not {number!r}")
    if not -_ROUNDING <= number <= 1 + _ROUNDING:
        raise ValueError(f"a probability is a number from 0 to 1, not {number!r}: apply a softmax or a sigmoid first")
    return min(max(number * 100.0, 0.0), 100.0)


def from_probabilities(probabilities: Any) -> list[float]:
    """The scores, 0 to 100, of probabilities from 0 to 1.

    It takes a list, or a numpy or torch array of one dimension.

    Raises:
        ValueError: an item is not a number between 0 and 1.
    """
    numbers = listed(probabilities)
    if not isinstance(numbers, Iterable):
        raise ValueError(f"a row of probabilities is needed, not {numbers!r}")
    return [from_probability(number) for number in numbers]


def listed(value: Any) -> Any:
    """Python numbers and lists from a numpy or torch scalar or array.

    Everything else stays as it is. They are known by their `tolist`, so that neither package is imported.
    """
    convert = getattr(value, "tolist", None)
    return convert() if convert is not None and not isinstance(value, type) else value
