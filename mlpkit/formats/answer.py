"""Answers of handlers: written as JSON, and checked against their kind.

Most answers are plain lists and dicts of text and numbers: one look at their types, then msgspec writes them.
Everything else is first made plain by `plain`, which knows numpy and torch by their `tolist`, so that neither package
is imported.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence, Set, ValuesView
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any
from uuid import UUID

import msgspec

from mlpkit.errors import AnswerError
from mlpkit.formats.classification import Label
from mlpkit.formats.kind import kind_of

_ATOMS = frozenset((str, int, bool, type(None)))
_LARGEST = sys.float_info.max
_FINITE = list[Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]]
_LONG = 8
_encode = msgspec.json.Encoder().encode
_MESSAGE = re.compile(r"(.*?)(?: - at `\$(.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_NOTHING = object()


def to_json(answer: object, name: str = "predictions") -> bytes:
    """The answer as JSON.

    Tuples, sets and other collections become lists (the items of a set in order, if they have one); mappings, Structs,
    dataclasses, attrs classes and pydantic models objects; numpy and torch scalars and arrays numbers and lists.

    An enum becomes its value, a Decimal a number, a UUID or path its text, a datetime `2021-08-31 02:53:38`, a date
    `2021-08-31`, a time `02:53:38`, a timedelta its ISO 8601 duration (`PT5S`), numpy's dates and times the same. An
    object with `serialize()` becomes what that returns. Keys that are not text become text, as in `json.dumps`. Half of
    a surrogate pair is written as its escape.

    Args:
        answer: what a handler returned.
        name: what messages call it.

    Raises:
        TypeError: `predictions[0].x: Object of type bytes is not JSON serializable`; without the path for the answer
            itself.
        ValueError: NaN, Infinity or NaT, a key that cannot become text, or a value that contains itself; begins with
            the path.
    """
    try:
        if _is_plain(answer):
            return _encode(answer)
    except (UnicodeEncodeError, TypeError, RecursionError):
        pass
    made = plain(answer, name)
    try:
        return _encode(made)
    except UnicodeEncodeError:
        return json.dumps(made, separators=(",", ":")).encode()


def plain(value: object, name: str = "predictions") -> Any:
    """The value in JSON's own types, as `to_json` writes it.

    Raises:
        TypeError, ValueError: as `to_json`.
    """
    try:
        return _plain(value, name)
    except RecursionError:
        raise ValueError(f"{name}: nested too deeply, or contains itself") from None


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


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or (type(item) not in _ATOMS and not _is_plain(item)):
                return False
        return True
    if kind is list or kind is tuple:
        if len(value) > _LONG and type(value[0]) is float:
            return _are_floats(value)
        for item in value:  # noqa: SIM110 - a generator takes twice the time
            if type(item) not in _ATOMS and not _is_plain(item):
                return False
        return True
    return (
        kind is Label
        and type(value.label) is str
        and type(value.score) is float
        and value.other_info is None
        and -_LARGEST <= value.score <= _LARGEST
    )


def _are_floats(values: Any) -> bool:
    try:
        msgspec.convert(values, _FINITE)
    except msgspec.ValidationError:
        return False
    return True


def _plain(value: Any, path: str) -> Any:
    if value is None or value is True or value is False:
        return value
    if isinstance(value, Enum):
        return _plain(value.value, path)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path}: {float(value)} is not a number in JSON")
        return float.__float__(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        return _object(value.items(), path)
    return _converted(value, path)


def _object(pairs: Iterable[tuple[Any, Any]], path: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        text = _key(key, path)
        if text in made:
            raise ValueError(f"{path}: two keys become {text!r}")
        made[text] = _plain(value, f"{path}.{text}")
    return made


def _key(key: Any, path: str) -> str:
    if isinstance(key, str) and not isinstance(key, Enum):
        return str.__str__(key)
    if key is not None and not isinstance(key, tuple):
        try:
            made = _plain(key, path)
        except (TypeError, ValueError):
            made = None
        if isinstance(made, str):
            return made
        if isinstance(made, bool):
            return "true" if made else "false"
        if isinstance(made, (int, float)):
            return repr(made)
    raise ValueError(f"{path}: {key!r} cannot be a key of a JSON object")


def _converted(value: Any, path: str) -> Any:
    """What a value becomes that is not one of JSON's own types."""
    if isinstance(value, (datetime, date, time, timedelta)):
        return _moment(value, path)
    if isinstance(value, Decimal):
        return _decimal(value, path)
    if isinstance(value, (UUID, PurePath)):
        return str(value)
    if isinstance(value, (type, bytes, bytearray, memoryview)):
        raise _unserializable(value, path)
    if callable(getattr(value, "serialize", None)):
        return _plain(value.serialize(), path)
    if callable(getattr(value, "tolist", None)):
        return _listed(value, path)
    fields = _fields(value)
    if fields is not None:
        return _plain(fields, path)
    if isinstance(value, Mapping):
        return _object(value.items(), path)
    if isinstance(value, Set):
        return _ordered([_plain(item, path) for item in value])
    if isinstance(value, (Sequence, ValuesView)):
        return _plain(list(value), path)
    raise _unserializable(value, path)


def _unserializable(value: object, path: str) -> TypeError:
    # Without a path for the answer itself: callers of the platform know this message.
    place = f"{path}: " if "." in path or "[" in path else ""
    return TypeError(f"{place}Object of type {type(value).__name__} is not JSON serializable")


def _moment(value: datetime | date | time | timedelta, path: str) -> str:
    if value != value:
        raise ValueError(f"{path}: NaT is not a time in JSON")
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    if isinstance(value, timedelta):
        written: str = msgspec.to_builtins(timedelta(value.days, value.seconds, value.microseconds))
        return written
    return value.isoformat()


def _decimal(value: Decimal, path: str) -> int | float:
    if not value.is_finite():
        raise ValueError(f"{path}: {value} is not a number in JSON")
    return int(value) if value == value.to_integral_value() and value.as_tuple().exponent == 0 else float(value)


def _listed(value: Any, path: str) -> Any:
    """The numbers or times of a numpy or torch scalar or array."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind == "f" and value.dtype.itemsize > 8:
        # Python has no number for a longdouble; its own `tolist` returns it as it is.
        value = value.astype("float64")
    if kind not in ("m", "M"):
        made = value.tolist()
        if type(made) is type(value):
            raise _unserializable(value, path)
        return made if _is_plain(made) else _plain(made, path)
    if (value != value).any():
        raise ValueError(f"{path}: NaT is not a time in JSON")
    name = "datetime64" if kind == "M" else "timedelta64"
    # Without this, nanoseconds become whole numbers; days stay days.
    exact = value if kind == "M" and str(value.dtype) == "datetime64[D]" else value.astype(f"{name}[us]")
    return _plain(exact.tolist(), path)


def _ordered(items: list[Any]) -> list[Any]:
    """The items of a set in order, if they have one.

    The order of a set of texts differs from one process to the next.
    """
    try:
        return sorted(items)
    except TypeError:
        return items


def _fields(value: Any) -> dict[str, Any] | list[Any] | None:
    kind = type(value)
    if isinstance(value, msgspec.Struct):
        return _struct_fields(value)
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(kind, "__attrs_attrs__"):
        return {field.name: getattr(value, field.name) for field in kind.__attrs_attrs__}
    if callable(getattr(kind, "model_dump", None)):
        dumped: dict[str, Any] = value.model_dump(by_alias=True)
        return dumped
    return None


def _struct_fields(value: msgspec.Struct) -> dict[str, Any] | list[Any]:
    kind = type(value)
    config = value.__struct_config__
    values = [getattr(value, name) for name in kind.__struct_fields__]
    if config.array_like:
        return values if config.tag is None else [config.tag, *values]
    made: dict[str, Any] = {} if config.tag_field is None else {config.tag_field: config.tag}
    defaults = (msgspec.NODEFAULT,) * (len(values) - len(kind.__struct_defaults__)) + kind.__struct_defaults__
    for name, found, default in zip(kind.__struct_encode_fields__, values, defaults, strict=True):
        if found is not msgspec.UNSET and not (config.omit_defaults and _is_default(found, default)):
            made[name] = found
    return made


def _is_default(value: Any, default: Any) -> bool:
    factory = getattr(default, "factory", None)
    return value is default or (factory in (list, dict, set) and type(value) is factory and not value)


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
