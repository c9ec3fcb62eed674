"""From JSON to the type of a handler's parameter: what msgspec converts to, and pydantic's types."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

from mlpkit.errors import ArgumentError
from mlpkit.injection.boundary import user_error


def make_decoder(annotation: Any, field: str) -> Callable[[object], object]:
    """A function from a field's value to the annotated type.

    The value is `msgspec.Raw` if it is still JSON. The function raises ArgumentError if the value does not fit, and
    UserCodeError if the type's own code fails.

    Raises:
        TypeError: JSON cannot become this type; says why.
    """
    decoded_type = _with_pydantic_checks(annotation)
    _refuse_foreign_types(decoded_type)
    from_json = msgspec.json.Decoder(decoded_type, dec_hook=_validated)
    anything = annotation is Any

    def decode(value: object) -> object:
        try:
            if isinstance(value, msgspec.Raw):
                return from_json.decode(value)
            return value if anything else msgspec.convert(value, decoded_type, dec_hook=_validated)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ArgumentError(f"[{field}] does not fit: {error}") from None
        except Exception as error:
            raise user_error(error) from error

    return decode


class _StandIn(type):
    """The type of a stand-in for a dataclass, whose instances count as its own."""

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
    if origin in (Union, types.UnionType):
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
        found = list(_with_class(msgspec.inspect.type_info(annotation)))
    except Exception as error:
        raise TypeError(str(error)) from error
    for info in found:
        if _is_pydantic_dataclass(info.cls):
            raise TypeError(
                f"pydantic would not check the dataclass {info.cls.__name__!r} inside a type that is not pydantic's: "
                "make the outer type a pydantic model or dataclass too"
            )
        if isinstance(info, msgspec.inspect.CustomType) and not hasattr(info.cls, "model_validate"):
            raise TypeError(
                f"{info.cls.__name__!r} is not a type that JSON converts to (use dict, msgspec.Struct, dataclass, "
                "TypedDict, attrs or a pydantic model)"
            )


def _with_class(
    info: object, seen: set[int] | None = None
) -> Iterator[msgspec.inspect.CustomType | msgspec.inspect.DataclassType]:
    """The dataclasses inside a type, and the classes that msgspec does not know."""
    seen = set() if seen is None else seen
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, (msgspec.inspect.CustomType, msgspec.inspect.DataclassType)):
        yield info
    if isinstance(info, (tuple, list)):
        for item in info:
            yield from _with_class(item, seen)
    elif isinstance(info, (msgspec.inspect.Type, msgspec.inspect.Field)):
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
