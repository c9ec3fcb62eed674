"""From JSON to the type of a handler's parameter: whatever msgspec converts to, and pydantic models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from mlpkit.errors import ArgumentError
from mlpkit.injection.boundary import user_error


def make_decoder(annotation: Any, field: str) -> Callable[[object], object]:
    """A function from a field's value (`msgspec.Raw` where it is still JSON) to the annotated type.

    The function raises ArgumentError where the value does not fit, and UserCodeError where the type's own code fails.

    Raises:
        TypeError: JSON cannot become this type; says why.
    """
    _refuse_foreign_types(annotation)
    from_json = msgspec.json.Decoder(annotation, dec_hook=_validated)
    anything = annotation is Any

    def decode(value: object) -> object:
        try:
            if isinstance(value, msgspec.Raw):
                return from_json.decode(value)
            return value if anything else msgspec.convert(value, annotation, dec_hook=_validated)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ArgumentError(f"[{field}] does not fit: {error}") from None
        except Exception as error:
            raise user_error(error) from error

    return decode


def _refuse_foreign_types(annotation: Any) -> None:
    try:
        found = list(_custom_types(msgspec.inspect.type_info(annotation)))
    except Exception as error:
        raise TypeError(str(error)) from error
    for each in found:
        if not hasattr(each, "model_validate"):
            raise TypeError(
                f"{each.__name__!r} is no type that JSON converts to (use dict, msgspec.Struct, dataclass, TypedDict, "
                "attrs or a pydantic model)"
            )


def _custom_types(info: object, seen: set[int] | None = None) -> Iterator[type]:
    seen = set() if seen is None else seen
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.CustomType):
        yield info.cls
    if isinstance(info, (tuple, list)):
        for each in info:
            yield from _custom_types(each, seen)
    elif isinstance(info, (msgspec.inspect.Type, msgspec.inspect.Field)):
        for name in info.__struct_fields__:
            yield from _custom_types(getattr(info, name), seen)


def _validated(wanted: Any, value: object) -> object:
    try:
        return wanted.model_validate(value)
    except ValueError as error:
        if not hasattr(error, "errors"):
            raise
        # pydantic's own text repeats the input and spans several lines.
        places = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}".lstrip(": ") for each in error.errors())
        raise ValueError("; ".join(places)) from None
