"""Answers of handlers: checked against their kind, and cut as `threshold` and `top_n` ask."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from mlpkit.errors import AnswerError, ArgumentError
from mlpkit.formats.classification import Label, LabelAnswer
from mlpkit.formats.cluster import ClusterAnswer
from mlpkit.formats.generation import GeneratedAnswer
from mlpkit.formats.json import plain
from mlpkit.formats.relation import RelationAnswer
from mlpkit.formats.sequence_labeling import EntitiesAnswer

_ANSWERS: dict[str, Any] = {
    "text_classification": list[LabelAnswer],
    "text_sequence_labeling": list[EntitiesAnswer],
    "text_cluster": list[ClusterAnswer],
    "text_generation": list[str | GeneratedAnswer],
    "relation_extraction": list[RelationAnswer],
}
_MESSAGE = re.compile(r"(.*?)(?: - at `\$(.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_NOTHING = object()


def check_answer(kind: str, predictions: object) -> None:
    """Nothing, for an answer that its kind allows; `text_custom` allows everything.

    Further fields are allowed. Scores are finite numbers from 0 to 100.

    Raises:
        AnswerError: begins with the path of the wrong field, as in `predictions[0].entity_list[2].end_pos: ...`.
        ValueError: there is no such kind.
    """
    if kind == "text_custom" or (kind == "text_classification" and _are_labels(predictions)):
        return
    wanted = _ANSWERS.get(kind)
    if wanted is None:
        raise ValueError(f"no kind {kind!r}: there are {', '.join(_ANSWERS)}, text_custom")
    try:
        msgspec.convert(predictions, wanted)
    except (msgspec.ValidationError, RecursionError):
        _check_plain(wanted, predictions)


def limited(predictions: object, params: Mapping[str, Any] | None) -> object:
    """The labels of a classification answer that `params` asks for: of at least `threshold`, the best `top_n` of them.

    Sorted by score, the best first, as soon as one of the two is given; equal ones keep their order. Without either,
    and for answers that are no list, the answer itself.

    Args:
        predictions: labels, as Labels, dicts or objects with a `score`.
        params: `threshold` is a number from 0 to 100, `top_n` a whole number of at least 0; null is as missing.

    Raises:
        ArgumentError: `threshold` or `top_n` is something else.
        AnswerError: an item has no score.
    """
    if not isinstance(params, Mapping):
        return predictions
    threshold, top_n = _threshold(params.get("threshold")), _top_n(params.get("top_n"))
    if (threshold is None and top_n is None) or not isinstance(predictions, (list, tuple)):
        return predictions
    scored = [(_score(each, index), each) for index, each in enumerate(predictions)]
    if threshold is not None:
        scored = [pair for pair in scored if pair[0] >= threshold]
    scored.sort(key=lambda pair: pair[0], reverse=True)
    return [each for _, each in scored[:top_n]]


def _are_labels(predictions: Any) -> bool:
    """Whether these are surely labels; only knows the usual ones, but takes a third of the time of a conversion."""
    if type(predictions) is not list:
        return False
    label: Any
    score: Any
    for each in predictions:
        if type(each) is Label:
            label, score, further = each.label, each.score, each.other_info
        elif type(each) is dict:
            label, score, further = each.get("label"), each.get("score"), each.get("other_info")
        else:
            return False
        if type(label) is not str or further is not None or type(score) not in (float, int) or not 0 <= score <= 100:
            return False
    return True


def _check_plain(wanted: Any, predictions: object) -> None:
    try:
        made = plain(predictions)
    except (TypeError, ValueError) as error:
        raise AnswerError(str(error)) from error
    try:
        msgspec.convert(made, wanted)
    except msgspec.ValidationError as error:
        raise AnswerError(_sentence(str(error), made)) from error


def _sentence(text: str, answer: Any) -> str:
    match = _MESSAGE.fullmatch(text)
    problem, path = (match[1], match[2] or "") if match else (text, "")
    missing = _MISSING.fullmatch(problem)
    if missing:
        return f"predictions{path}.{missing[1]}: the field is missing"
    field, colon, said = problem.partition(": ")
    if colon and field.isidentifier():
        return f"predictions{path}.{field}: {said}"
    found = _found(answer, path)
    got = "" if ", got " in problem or found is _NOTHING else f", got {found!r:.80}"
    return f"predictions{path}: {problem[0].lower()}{problem[1:].replace('`', '')}{got}"


def _found(answer: Any, path: str) -> Any:
    for name, index in _STEP.findall(path):
        try:
            answer = answer[name] if name else answer[int(index)]
        except (KeyError, IndexError, TypeError):
            return _NOTHING
    return answer


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
