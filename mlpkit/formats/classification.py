"""`text_classification`: labels with scores; rows of sentence, label and posneg.

Source of both formats: the page of ml-platform-client, "分类算法".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from mlpkit.errors import DataError
from mlpkit.formats.row import BrokenRow, Facts, Format, join, shown, split
from mlpkit.formats.score import Score, from_probabilities, listed


class Info(msgspec.Struct, frozen=True):
    """Further information about a label, as a key and any value that JSON can hold."""

    key: str
    value: Any


class Label(msgspec.Struct, frozen=True, omit_defaults=True):
    """One label of an answer with its score, 0 to 100. `other_info` is left out of the answer when it is None."""

    label: str
    score: float
    other_info: list[Info] | None = None

    @classmethod
    def ranked(cls, classes: Iterable[Any], probabilities: Any) -> list[Label]:
        """One label a class with scores from 0 to 100, the best first; equal ones stay in the order of the classes.

        Args:
            classes: the names (numpy arrays too); what is no text becomes text.
            probabilities: as many numbers from 0 to 1: a list, or a numpy or torch array of one dimension.

        Raises:
            ValueError: as many probabilities as classes are needed, each from 0 to 1.
        """
        names = [str(each) for each in listed(classes)]
        scores = from_probabilities(probabilities)
        if len(names) != len(scores):
            raise ValueError(f"{len(names)} classes but {len(scores)} probabilities")
        order = sorted(range(len(names)), key=scores.__getitem__, reverse=True)
        return [cls(names[each], scores[each]) for each in order]


class LabelAnswer(msgspec.Struct):
    """What is checked of a label in an answer."""

    label: str
    score: Score
    other_info: list[Info] | None = None


class ClassificationRow(msgspec.Struct, frozen=True):
    """A sentence that is (`posneg`) or is not an example of the label."""

    sentence: str
    label: str
    posneg: bool = True


def _read(line: str) -> ClassificationRow:
    columns = split(line, 2, ("sentence", "label", "posneg"))
    if len(columns) == 3 and columns[2] not in ("0", "1"):
        column = len(columns[0]) + len(columns[1]) + 3
        hint = ": the file must not have a header" if columns[2] == "posneg" else ""
        raise BrokenRow(
            column, "posneg", f"posneg is 1 (an example of the label) or 0 (not one), not {shown(columns[2])}{hint}"
        )
    return ClassificationRow(columns[0], columns[1], len(columns) == 2 or columns[2] == "1")


def _write(row: ClassificationRow) -> str:
    if row.posneg not in (False, True):
        raise DataError(f"posneg is true or false, not {row.posneg!r}")
    return join(row.sentence, row.label, "1" if row.posneg else "0")


def _facts(row: ClassificationRow) -> Facts:
    return Facts(row.sentence, row.label, row.posneg, (row.label,))


CLASSIFICATION = Format(
    columns="sentence, label, posneg (1 or 0; a missing one is 1)",
    read=_read,
    write=_write,
    facts=_facts,
    labelled=True,
    single=True,
)
