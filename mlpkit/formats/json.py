"""JSON of any answer, as bytes: strict where Python's own writers are not.

Most answers are plain lists and dicts of text and numbers: one look at their types, then msgspec writes them.
Everything else is first made plain by `plain`, which knows numpy and torch by their `tolist`, so that neither package
is imported.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable
from datetime import date, datetime
from typing import Annotated, Any

import msgspec

from mlpkit.formats.classification import Label

_ATOMS = frozenset((str, int, bool, type(None)))
_LARGEST = sys.float_info.max
_FINITE = list[Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]]
_LONG = 8
_encode = msgspec.json.Encoder().encode


def to_json(answer: object, name: str = "predictions") -> bytes:
    """The answer as JSON.

    Tuples become lists; numpy and torch scalars and arrays numbers and lists; Structs, dataclasses, attrs classes and
    pydantic models objects; a datetime `2021-08-31 02:53:38`, a date `2021-08-31`; an object with `serialize()` what
    that returns. Numbers and booleans as keys become text as in `json.dumps`. Half of a surrogate pair is written as
    its escape.

    Args:
        answer: what a handler returned.
        name: what messages call it.

    Raises:
        TypeError: `Object of type set is not JSON serializable`; so are bytes and everything unknown.
        ValueError: NaN or Infinity, a key that cannot become text, or a value that contains itself; begins with the
            path.
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
    """The value as new dicts and lists of text, numbers, booleans and None; see `to_json` for what becomes what.

    Raises:
        TypeError, ValueError: as `to_json`.
    """
    try:
        return _plain(value, name)
    except RecursionError:
        raise ValueError(f"{name}: nested too deeply, or contains itself") from None


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        for key, each in value.items():
            if type(key) is not str or (type(each) not in _ATOMS and not _is_plain(each)):
                return False
        return True
    if kind is list or kind is tuple:
        if len(value) > _LONG and type(value[0]) is float:
            return _are_floats(value)
        for each in value:  # noqa: SIM110 - a generator takes twice the time
            if type(each) not in _ATOMS and not _is_plain(each):
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
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path}: {float(value)} is no number in JSON")
        return float.__float__(value)
    if isinstance(value, dict):
        return _object(value.items(), path)
    if isinstance(value, (list, tuple)):
        return [_plain(each, f"{path}[{index}]") for index, each in enumerate(value)]
    return _converted(value, path)


def _object(pairs: Iterable[tuple[Any, Any]], path: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, each in pairs:
        text = _key(key, path)
        if text in made:
            raise ValueError(f"{path}: two keys become {text!r}")
        made[text] = _plain(each, f"{path}.{text}")
    return made


def _key(key: Any, path: str) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    number = key.tolist() if hasattr(key, "tolist") else key
    if isinstance(number, bool):
        return "true" if number else "false"
    if isinstance(number, int):
        return int.__repr__(number)
    if isinstance(number, float) and math.isfinite(number):
        return float.__repr__(number)
    raise ValueError(f"{path}: {key!r} cannot be a key of a JSON object")


def _converted(value: Any, path: str) -> Any:
    kind = type(value)
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (type, bytes, bytearray, memoryview)):
        raise TypeError(f"Object of type {kind.__name__} is not JSON serializable")
    if callable(getattr(value, "serialize", None)):
        return _plain(value.serialize(), path)
    if callable(getattr(value, "tolist", None)) and getattr(getattr(value, "dtype", None), "kind", "") not in (
        "m",
        "M",
    ):
        made = value.tolist()
        return made if _is_plain(made) else _plain(made, path)
    fields = _fields(value)
    if fields is None:
        raise TypeError(f"Object of type {kind.__name__} is not JSON serializable")
    return _plain(fields, path)


def _fields(value: Any) -> dict[str, Any] | list[Any] | None:
    kind = type(value)
    if isinstance(value, msgspec.Struct):
        return _struct_fields(value)
    if dataclasses.is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if hasattr(kind, "__attrs_attrs__"):
        return {each.name: getattr(value, each.name) for each in kind.__attrs_attrs__}
    if callable(getattr(kind, "model_dump", None)):
        dumped: dict[str, Any] = value.model_dump(by_alias=True)
        return dumped
    return None


def _struct_fields(value: msgspec.Struct) -> dict[str, Any] | list[Any]:
    kind, config = type(value), value.__struct_config__
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
