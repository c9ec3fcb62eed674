"""What a handler can ask for: fields, services and dependencies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

T = TypeVar("T")
Fields = Mapping[str, object]
"""A request's fields by their protocol names; one that is still JSON is a `msgspec.Raw`, decoded when asked for."""
Services = Callable[[type], object]
"""Gives the service of a type for one call; raises NotInRequest if the request has nothing to make it from."""

FIELDS: Mapping[str, tuple[str, ...]] = {
    "train": ("model_id", "model_path", "data", "parameters", "extend", "uuid"),
    "load": ("model_id", "model_path", "extend", "uuid"),
    "predict": ("model", "features", "params", "model_id", "uuid"),
    "unload": ("model_id", "model"),
    "delete": ("model_id",),
    "status": ("model_id", "default"),
    "model_id": ("extend",),
    "features": ("row",),
    "evaluate": ("pairs", "model", "model_id"),
    "on_start": (),
    "on_stop": (),
}
"""The protocol's fields that each hook can name."""

OLD_NAMES = {"data_config": "data", "parameter": "parameters"}
"""Names of the original SDK's methods, accepted for the same fields."""

WIRE_NAMES = {"parameters": "parameter"}
"""The request's own name of a field that handlers name differently: messages to callers use it."""

BATCHED = ("features", "params", "uuid")
"""The fields that become lists if `max_batch_size` is more than 1."""

OBJECTS = ("data", "parameters", "extend", "features", "params")
"""The fields that are objects of JSON; the others are texts."""

NUMBERS_AS_TEXT = ("parameters", "params")
"""The fields in which numbers and bools may be sent as text: platforms and their users do that."""

AS_THEY_ARE = ("model", "row", "pairs")
"""The fields that are objects of this process: their annotation is for the reader only."""

NULL = msgspec.Raw(b"null")

_BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "Log": tuple(FIELDS),
    "Storage": tuple(FIELDS),
    "ModelDir": ("train", "load"),
    "Checkpoint": ("train",),
    "Progress": ("train",),
    "TrainData": ("train",),
    "TrainJob": ("train",),
}
"""mlpkit's own services and the hooks that have them: messages name them, also if no module has imported them yet."""

_MARK = "__mlpkit_hooks__"
_MARKED: dict[str, frozenset[str]] = {}


def service(*hooks: str) -> Callable[[type[T]], type[T]]:
    """Marks a class as a service that handlers get by annotating it.

    It exists in the named hooks; without a name, in all.
    """

    def mark(cls: type[T]) -> type[T]:
        _MARKED[cls.__name__] = frozenset(hooks or FIELDS)
        setattr(cls, _MARK, _MARKED[cls.__name__])
        return cls

    return mark


def hooks_of_service(annotation: object) -> frozenset[str] | None:
    """The hooks that have this service; None if it is not one.

    A subclass of a service is not a service.
    """
    return vars(annotation).get(_MARK) if isinstance(annotation, type) else None


def services_of_hook(hook: str) -> list[str]:
    """The names of the services that a hook can ask for."""
    known = {name: frozenset(hooks) for name, hooks in _BUILT_IN.items()} | _MARKED
    return sorted(name for name, hooks in known.items() if hook in hooks)


@dataclass(frozen=True)
class Depends:
    """The user's own dependency: `Annotated[T, Depends(factory)]` gives the handler what `factory()` returns.

    A factory may name fields, services and further dependencies. One that yields is resumed after the call; it sees
    what the handler raised, at its `yield`. `scope="process"`: made once per worker process, closed when that stops.
    """

    factory: Callable[..., Any]
    scope: Literal["call", "process"] = "call"
