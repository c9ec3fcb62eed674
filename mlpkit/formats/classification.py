"""`text_classification`: labels with scores; rows of sentence, label and posneg.

Source of both formats: the page of ml-platform-client, "分类算法".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from mlpkit.errors import AnswerError, ArgumentError, DataError
from mlpkit.formats.evaluation import LabelMeasure
from mlpkit.formats.kind import SENTENCE_HEADERS, BrokenRow, Facts, Kind, Row, Score, join, shown, split

_ROUNDING = 1e-4


class Info(msgspec.Struct, frozen=True):
    """A key and any JSON value: further information about a label."""

    key: str
    value: Any


class Label(msgspec.Struct, frozen=True, omit_defaults=True):
    """One label of an answer with its score, 0 to 100.

    `other_info` is left out of the answer if it is None.
    """

    label: str
    score: float
    other_info: list[Info] | None = None

    @classmethod
    def ranked(cls, classes: Iterable[Any], probabilities: Any) -> list[Label]:
        """One label for each class, the best first.

        Scores go from 0 to 100; equal ones stay in the order of the classes.

        Args:
            classes: the names (numpy arrays too); numbers become text.
            probabilities: as many numbers from 0 to 1: a list, or a numpy or torch array of one dimension.

        Raises:
            ValueError: as many probabilities as classes are needed, each from 0 to 1.
        """
        names = [str(name) for name in _as_python(classes)]
        scores = from_probabilities(probabilities)
        if len(names) != len(scores):
            raise ValueError(f"{len(names)} classes but {len(scores)} probabilities")
        order = sorted(range(len(names)), key=scores.__getitem__, reverse=True)
        return [cls(names[index], scores[index]) for index in order]


class _LabelAnswer(msgspec.Struct):
    """What is checked of a label in an answer."""

    label: str
    score: Score
    other_info: list[Info] | None = None


def from_probability(probability: Any) -> float:
    """The score, 0 to 100, of a probability from 0 to 1.

    It takes numbers and numpy and torch scalars. Up to 0.0001 below 0 or above 1, as float16 arithmetic has it, is cut
    off.

    Raises:
        ValueError: not a number, or not between 0 and 1.
    """
    number = _as_python(probability)
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
    numbers = _as_python(probabilities)
    if not isinstance(numbers, Iterable):
        raise ValueError(f"a row of probabilities is needed, not {numbers!r}")
    return [from_probability(number) for number in numbers]


class ClassificationRow(Row, frozen=True):
    """A sentence and a label; `posneg` says whether it is an example."""

    sentence: str
    label: str
    posneg: bool = True


def _as_python(value: Any) -> Any:
    """Python numbers and lists from a numpy or torch scalar or array.

    Everything else stays as it is. They are known by their `tolist`, so that neither package is imported.
    """
    convert = getattr(value, "tolist", None)
    return convert() if convert is not None and not isinstance(value, type) else value


def _read(line: str) -> ClassificationRow:
    columns = split(line, 2, ("sentence", "label", "posneg"))
    if len(columns) == 3 and columns[2] not in ("0", "1"):
        column = len(columns[0]) + len(columns[1]) + 3
        hint = ": the file must not have a header" if columns[2] == "posneg" else ""
        raise BrokenRow(
            column, "posneg", f"posneg is 1 (an example of the label) or 0 (not one), not {shown(columns[2])}{hint}"
        )
    return ClassificationRow(columns[0], columns[1], len(columns) == 2 or columns[2] == "1")


def _other_format(lines: Sequence[str]) -> str:
    """The name of a format without columns, or an empty string."""
    full = [line for line in lines if line.strip()]
    if not full or any("\t" in line for line in full):
        return ""
    advice = "write each row as sentence, tab, label"
    if all(line.startswith("{") and line.endswith("}") for line in full):
        return f"the file is JSON lines, as doccano exports them: {advice}"
    if all(line.startswith("__label__") for line in full):
        return f"the file is in the format of fastText: {advice}"
    for mark, name in ((",", "comma-separated"), (";", "semicolon-separated")):
        if len(full) > 1 and all(mark in line for line in full):
            return f"the file is {name} (CSV): save it as tab-separated text, or {advice}"
    return ""


def _write(row: ClassificationRow) -> str:
    if row.posneg not in (False, True):
        raise DataError(f"posneg is true or false, not {row.posneg!r}")
    return join(row.sentence, row.label, "1" if row.posneg else "0")


def _facts(row: ClassificationRow) -> Facts:
    return Facts(row.sentence, row.label, row.posneg, (row.label,))


def limited(predictions: object, params: Mapping[str, Any] | None) -> object:
    """The labels that `params` asks for: at least `threshold`, the best `top_n`.

    They are sorted by score, the best first; equal ones keep their order. Without the two params, and for answers that
    are not lists, the answer itself.

    Args:
        predictions: labels, as Labels, dicts or objects with a `score`.
        params: `threshold` is a number from 0 to 100, `top_n` a whole number of at least 0; null counts as missing.

    Raises:
        ArgumentError: `threshold` or `top_n` is something else.
        AnswerError: an item has no score.
    """
    if not isinstance(params, Mapping):
        return predictions
    threshold = _threshold(params.get("threshold"))
    top_n = _top_n(params.get("top_n"))
    if (threshold is None and top_n is None) or not isinstance(predictions, (list, tuple)):
        return predictions
    scored = [(_score(label, index), label) for index, label in enumerate(predictions)]
    if threshold is not None:
        scored = [pair for pair in scored if pair[0] >= threshold]
    scored.sort(key=lambda pair: pair[0], reverse=True)
    return [label for _, label in scored[:top_n]]


def _are_labels(predictions: Any) -> bool:
    """Whether these are certainly labels.

    It only knows the usual types, but takes a third of the time of a conversion.
    """
    if type(predictions) is not list:
        return False
    label: Any
    score: Any
    for item in predictions:
        if type(item) is Label:
            label = item.label
            score = item.score
            further = item.other_info
        elif type(item) is dict:
            label = item.get("label")
            score = item.get("score")
            further = item.get("other_info")
        else:
            return False
        if type(label) is not str or further is not None or type(score) not in (float, int) or not 0 <= score <= 100:
            return False
    return True


def _threshold(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
        raise ArgumentError(f"params.threshold is a number from 0 to 100, not {value!r:.80}")
    return float(value)


def _top_n(value: Any) -> int | None:
    if value is None:
        return None
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(whole, bool) or not isinstance(whole, int) or whole < 0:
        raise ArgumentError(f"params.top_n is a whole number of at least 0, not {value!r:.80}")
    return whole


def _score(item: Any, index: int) -> float:
    found = item.get("score") if isinstance(item, Mapping) else getattr(item, "score", None)
    try:
        return float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise AnswerError(f"predictions[{index}].score: a number is needed, got {found!r:.80}") from error


KIND = Kind(
    name="text_classification",
    row=ClassificationRow,
    columns="sentence, label, posneg (1 or 0; a missing one is 1)",
    read=_read,
    write=_write,
    facts=_facts,
    answer=list[_LabelAnswer],
    quick_check=_are_labels,
    limit=limited,
    labelled=True,
    single=True,
    classes=True,
    measure=LabelMeasure,
    other_format=_other_format,
    headers=SENTENCE_HEADERS
    | {"label", "labels", "posneg", "category", "class", "target", "intent", "标签", "类别", "分类", "意图"},
)
