"""Answers of handlers, checked against their kind."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from mlpkit.errors import AnswerError
from mlpkit.formats.json import plain
from mlpkit.formats.kinds import kind_of

_MESSAGE = re.compile(r"(.*?)(?: - at `\$(.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_NOTHING = object()


def check_answer(kind: str, predictions: object) -> None:
    """Returns if the kind allows this answer.

    Further fields are allowed. Scores are finite numbers from 0 to 100.

    Raises:
        AnswerError: begins with the path of the wrong field, as in `predictions[0].entity_list[2].end_pos: ...`.
        ValueError: no kind has this name.
    """
    known = kind_of(kind)
    if known.answer is None or (known.quick_check is not None and known.quick_check(predictions)):
        return
    try:
        msgspec.convert(predictions, known.answer)
    except (msgspec.ValidationError, RecursionError):
        _check_plain(known.answer, predictions)


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
