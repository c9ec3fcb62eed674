"""From JSON to the annotated type, with msgspec and pydantic."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from msgspec import inspect

from mlpkit.errors import ArgumentError
from mlpkit.injection.boundary import user_error

Decoder = Callable[[Any], object]
"""From a field's value (`msgspec.Raw` if it is still JSON) to the annotated type."""

_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_FINITE = re.compile(rb'"([+-]?(?:nan|inf|infinity))"', re.IGNORECASE)

_OBJECTS = (inspect.DictType, inspect.TypedDictType, inspect.DataclassType, inspect.StructType)
_TEXTS = (
    *(
        inspect.StrType,
        inspect.BytesType,
        inspect.DateTimeType,
        inspect.DateType,
        inspect.TimeType,
        inspect.TimeDeltaType,
    ),
    *(inspect.UUIDType, inspect.DecimalType, inspect.EnumType, inspect.LiteralType),
)
_ANYTHING = (inspect.AnyType, inspect.RawType, inspect.CustomType)


def make_decoder(annotation: Any, field: str, *, numbers_as_text: bool = False) -> Decoder:
    """The decoder of a field of this type.

    It raises ArgumentError if a value does not fit, and UserCodeError if the type's own code fails. With
    `numbers_as_text`, numbers and bools may be sent as text: `"2"`, `"1e-3"`, `"true"`.

    Raises:
        TypeError: JSON cannot become this type; the message says why.
    """
    decoded_type = _with_pydantic_checks(annotation)
    _refuse_foreign_types(decoded_type)
    from_json: Decoder = msgspec.json.Decoder(decoded_type, dec_hook=_validated).decode
    if numbers_as_text:
        from_json = _with_numbers_as_text(from_json, decoded_type)
    anything = annotation is Any

    def decode(value: object) -> object:
        try:
            if isinstance(value, msgspec.Raw):
                return from_json(value)
            return value if anything else msgspec.convert(value, decoded_type, dec_hook=_validated)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ArgumentError(f"[{field}] does not fit: {_reason(error, value)}") from None
        except Exception as error:
            raise user_error(error) from error

    return decode


def _with_numbers_as_text(strict: Decoder, annotation: Any) -> Decoder:
    lax = msgspec.json.Decoder(annotation, dec_hook=_validated, strict=False)

    def decode(value: Any) -> object:
        try:
            return strict(value)
        except msgspec.ValidationError:
            decoded = lax.decode(value)
            if _NOT_FINITE.search(bytes(value)):
                # As texts they are valid, as numbers they are not: with a space after them they can only be texts.
                lax.decode(_NOT_FINITE.sub(rb'"\1 "', bytes(value)))
            return decoded

    return decode


def fits_request(annotation: Any, kind: str) -> bool:
    """Whether an "object" or "text" of a request can become this type."""
    allowed = _ANYTHING + (_OBJECTS if kind == "object" else _TEXTS)

    def fits(info: object) -> bool:
        if isinstance(info, inspect.Metadata):
            return fits(info.type)
        if isinstance(info, inspect.UnionType):
            return any(fits(member) for member in info.types)
        return isinstance(info, allowed) and not getattr(info, "array_like", False)

    return fits(inspect.type_info(annotation))


def _reason(error: Exception, value: object) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte 0x{error.object[error.start]:02x} is not valid UTF-8"
    broken = isinstance(error, msgspec.DecodeError) and not isinstance(error, msgspec.ValidationError)
    if broken and isinstance(value, msgspec.Raw) and _HALF_PAIR.search(bytes(value)):
        return "a text has half of a surrogate pair, such as \\ud83d without \\ude00"
    return str(error)


class _StandIn(type):
    """The type of a stand-in, which accepts instances of the dataclass."""

    checked: type

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.checked)


def _with_pydantic_checks(annotation: Any) -> Any:
    """The annotation with a stand-in for each pydantic dataclass.

    msgspec takes such a class for a plain dataclass and fills in its fields without pydantic's checks. It does not know
    the stand-in, and so asks `_validated`.
    """
    if _is_pydantic_dataclass(annotation):
        from pydantic import TypeAdapter  # only a script that uses pydantic has it

        checks = {"checked": annotation, "model_validate": TypeAdapter(annotation).validate_python}
        return _StandIn(annotation.__name__, (), checks)
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    changed = tuple(_with_pydantic_checks(argument) for argument in arguments)
    if all(new is old for new, old in zip(changed, arguments, strict=True)):
        return annotation
    if origin in (Union, UnionType):
        return Union[changed]  # noqa: UP007 - the members are known at run time only
    if origin is Annotated:
        return Annotated[changed]
    generic: Any = origin
    return generic[changed]


def _is_pydantic_dataclass(annotation: Any) -> bool:
    return (
        isinstance(annotation, type)
        and dataclasses.is_dataclass(annotation)
        and hasattr(annotation, "__pydantic_validator__")
    )


def _refuse_foreign_types(annotation: Any) -> None:
    try:
        found = list(_with_class(inspect.type_info(annotation)))
    except Exception as error:
        raise TypeError(str(error)) from error
    for info in found:
        if _is_pydantic_dataclass(info.cls):
            raise TypeError(
                f"pydantic would not check the dataclass {info.cls.__name__!r} inside a type that is not pydantic's: "
                "make the outer type a pydantic model or dataclass too"
            )
        if isinstance(info, inspect.CustomType) and not hasattr(info.cls, "model_validate"):
            raise TypeError(
                f"{info.cls.__name__!r} is not a type that JSON converts to (use dict, msgspec.Struct, dataclass, "
                "TypedDict, attrs or a pydantic model)"
            )


def _with_class(info: object, seen: set[int] | None = None) -> Iterator[inspect.CustomType | inspect.DataclassType]:
    """The dataclasses inside a type, and the classes unknown to msgspec."""
    seen = set() if seen is None else seen
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, (inspect.CustomType, inspect.DataclassType)):
        yield info
    if isinstance(info, (tuple, list)):
        for item in info:
            yield from _with_class(item, seen)
    elif isinstance(info, (inspect.Type, inspect.Field)):
        for name in info.__struct_fields__:
            yield from _with_class(getattr(info, name), seen)


def _validated(wanted: Any, value: object) -> object:
    try:
        return wanted.model_validate(value)
    except ValueError as error:
        if not hasattr(error, "errors"):
            raise
        # pydantic's own text repeats the input and spans several lines.
        places = (f"{'.'.join(map(str, found['loc']))}: {found['msg']}".lstrip(": ") for found in error.errors())
        raise ValueError("; ".join(places)) from None
