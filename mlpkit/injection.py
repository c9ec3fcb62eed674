"""From a handler's signature to a call plan, compiled once: protocol fields by name, services by type, dependencies by factory.

A plan is made when the app is built, so that every mistake in a signature is found at start-up; calling through it is cheap.
User code runs behind `user_code`, the one boundary at which its exceptions (BaseException too) are caught.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import traceback
import types
import typing
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, Union

import msgspec

from mlpkit.errors import ArgumentError, DeclarationError, UserCodeError

T = TypeVar("T")
Fields = Mapping[str, object]
"""A request's fields by their protocol names; a value that is still JSON is a `msgspec.Raw`, and is decoded when asked for."""
Services = Callable[[type], object]
"""Gives the service of a type for one call."""

FIELDS: Mapping[str, tuple[str, ...]] = {
    "train": ("model_id", "model_path", "data", "parameters", "extend", "uuid"),
    "load": ("model_id", "model_path", "extend", "uuid"),
    "predict": ("model", "features", "params", "model_id", "uuid"),
    "unload": ("model_id", "model"),
    "delete": ("model_id",),
    "status": ("model_id", "default"),
    "model_id": ("extend",),
    "on_start": (),
    "on_stop": (),
}
"""The protocol's fields that each hook can name."""

OLD_NAMES = {"data_config": "data", "parameter": "parameters"}
"""Names of the original SDK's methods, accepted for the same fields."""

BATCHED = ("features", "params", "uuid")
"""The fields that become lists where `max_batch_size` is more than 1."""

NULL = msgspec.Raw(b"null")

_AS_THEY_ARE = ("model", "default")
_MARK = "__mlpkit_hooks__"
_SERVICES: dict[str, type] = {}


def service(*hooks: str) -> Callable[[type[T]], type[T]]:
    """Marks a class as a service that handlers get by annotating it, in the named hooks (none named: in all)."""

    def mark(cls: type[T]) -> type[T]:
        setattr(cls, _MARK, frozenset(hooks or FIELDS))
        _SERVICES[cls.__name__] = cls
        return cls

    return mark


@dataclass(frozen=True)
class Depends:
    """The user's own dependency: `Annotated[T, Depends(factory)]` gives the handler what `factory()` returns.

    A factory may name fields, services and further dependencies, and may be a generator (it is resumed after the call).
    `scope="process"`: made once per worker process, and closed when the process stops.
    """

    factory: Callable[..., Any]
    scope: typing.Literal["call", "process"] = "call"


@dataclass(frozen=True)
class FieldParameter:
    """A parameter filled with a field of the request. `type` is what one request's value becomes."""

    name: str
    field: str
    type: Any
    has_default: bool
    decode: Callable[[object], object]


@dataclass(frozen=True)
class ServiceParameter:
    """A parameter filled with a service; `optional` where the annotation allows None."""

    name: str
    type: type
    optional: bool


@dataclass(frozen=True)
class DependencyParameter:
    """A parameter filled by the user's factory."""

    name: str
    depends: Depends
    plan: Plan


class ProcessScope:
    """The dependencies with `scope="process"` of one process; `close` runs their clean-up, last made first."""

    def __init__(self, services: Services, overrides: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        self.services, self.overrides = services, overrides
        self.made: dict[Callable[..., Any], object] = {}
        self.exits = contextlib.ExitStack()

    def close(self) -> None:
        self.made.clear()
        user_code(self.exits.close)


@dataclass
class Call:
    """Arguments that are ready, and the clean-up of the dependencies among them; close it after the call."""

    arguments: dict[str, object]
    exits: contextlib.ExitStack | None = None

    def close(self) -> None:
        if self.exits is not None:
            user_code(self.exits.close)


@dataclass(frozen=True)
class Plan:
    """How to call one handler: made by `compile_plan`, used for every call."""

    function: Callable[..., Any]
    hook: str
    fields: tuple[FieldParameter, ...]
    services: tuple[ServiceParameter, ...]
    dependencies: tuple[DependencyParameter, ...]
    batch: bool = False
    is_async: bool = field(init=False)
    is_generator: bool = field(init=False)

    def __post_init__(self) -> None:
        is_async = inspect.iscoroutinefunction(self.function) or inspect.isasyncgenfunction(self.function)
        object.__setattr__(self, "is_async", is_async)
        generator = inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function)
        object.__setattr__(self, "is_generator", generator)

    def takes(self, name: str) -> bool:
        """Whether the handler itself names this field."""
        return any(each.field == name for each in self.fields)

    def field_type(self, name: str) -> Any:
        """The type that one request's field becomes, or None where the handler does not name it."""
        return next((each.type for each in self.fields if each.field == name), None)

    def decode(self, fields: Fields) -> dict[str, object]:
        """The handler's own field arguments of one request, by parameter name.

        Raises:
            ArgumentError: a field does not fit its type; the message names the field and the place in it.
        """
        arguments: dict[str, object] = {}
        for each in self.fields:
            value = fields.get(each.field)
            if each.has_default and (value is None or value == NULL):
                continue
            arguments[each.name] = each.decode(value)
        return arguments

    def complete(
        self, arguments: dict[str, object], fields: Fields, services: Services, scope: ProcessScope | None = None
    ) -> Call:
        """Adds services and dependencies to decoded arguments; the call must be closed afterwards.

        Raises:
            UserCodeError: a factory failed.
        """
        for each in self.services:
            arguments[each.name] = services(each.type) if not each.optional else _optional(services, each.type)
        if not self.dependencies:
            return Call(arguments)
        call = Call(arguments, contextlib.ExitStack())
        made: dict[Callable[..., Any], object] = {}
        try:
            for dependency in self.dependencies:
                arguments[dependency.name] = _make(dependency, fields, services, scope, call, made)
        except BaseException:
            call.close()
            raise
        return call

    def __call__(self, fields: Fields, services: Services, scope: ProcessScope | None = None) -> Any:
        """Calls a handler that is no generator and not `async`, and cleans up.

        Raises:
            ArgumentError: a field does not fit its type.
            UserCodeError: the handler or a factory raised.
        """
        call = self.complete(self.decode(fields), fields, services, scope)
        try:
            return user_code(self.function, **call.arguments)
        finally:
            call.close()


def user_code(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Calls the user's function; whatever it raises leaves as `UserCodeError`."""
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        raise user_error(error) from None


async def async_user_code(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Awaits the user's function; whatever it raises leaves as `UserCodeError`, a cancellation from outside as itself."""
    import asyncio

    try:
        return await function(*args, **kwargs)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        raise user_error(error) from None


def user_error(error: BaseException) -> UserCodeError:
    """What the user's code raised, with the traceback from the user's first frame on.

    The text is the exception's own, as the original's answers have it; SystemExit and its like also get their names.
    """
    if isinstance(error, UserCodeError):
        return error
    text = str(error) if isinstance(error, Exception) else f"{type(error).__name__}: {error}"
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None and frame.tb_frame.f_globals.get("__name__") == __name__:
        frame = frame.tb_next
    trace = "".join(traceback.format_exception(type(error), error, frame))
    return UserCodeError(text, kind=type(error).__name__, trace=trace)


def compile_plan(function: Callable[..., Any], hook: str, *, batch: bool = False) -> Plan:
    """The plan of a handler, or of a factory used in that hook.

    Raises:
        DeclarationError: the signature cannot be filled; says what is wrong, where, what exists, and what may be meant.
    """
    return _compile(function, hook, batch, chain=())


def where(function: Callable[..., Any]) -> str:
    """`train (sentiment.py, line 23)`: how errors name a function."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", repr(function))
    if code is None:
        return name
    return f"{name} ({code.co_filename}, line {code.co_firstlineno})"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`, did you mean 'features'?`, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def _compile(function: Callable[..., Any], hook: str, batch: bool, chain: tuple[Callable[..., Any], ...]) -> Plan:
    if function in chain:
        names = " -> ".join(each.__name__ for each in (*chain[chain.index(function) :], function))
        raise DeclarationError(f"{where(function)}: the dependencies go round in a circle: {names}")
    fields: list[FieldParameter] = []
    services: list[ServiceParameter] = []
    dependencies: list[DependencyParameter] = []
    hints = _type_hints(function)
    for parameter in _signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise DeclarationError(
                f"{where(function)}: parameter {parameter} cannot be filled: every parameter needs a name of its own "
                "(no *args, **kwargs or positional-only ones)"
            )
        annotation = hints.get(parameter.name, Any)
        depends = _depends_of(annotation)
        service_type, optional = _service_of(annotation)
        if depends is not None:
            dependencies.append(_dependency(function, parameter.name, depends, hook, batch, chain))
        elif service_type is not None:
            services.append(_service_parameter(function, parameter.name, service_type, optional, hook))
        else:
            fields.append(_field_parameter(function, parameter, annotation, hook, batch, factory=bool(chain)))
    return Plan(function, hook, tuple(fields), tuple(services), tuple(dependencies), batch)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise DeclarationError(f"{where(function)}: its signature cannot be read: {error}") from error


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    target = function.__init__ if inspect.isclass(function) else function  # type: ignore[misc]
    if not hasattr(target, "__annotations__") and hasattr(target, "__call__"):
        target = target.__call__
    try:
        return typing.get_type_hints(target, include_extras=True)
    except NameError as error:
        raise DeclarationError(
            f"{where(function)}: an annotation names {error.name!r}, which its module does not have when the app is built "
            "(imported only under TYPE_CHECKING, or misspelt?)"
        ) from error
    except Exception as error:
        raise DeclarationError(f"{where(function)}: its annotations cannot be read: {error}") from error


def _depends_of(annotation: Any) -> Depends | None:
    if typing.get_origin(annotation) is not Annotated:
        return None
    return next((each for each in annotation.__metadata__ if isinstance(each, Depends)), None)


def _service_of(annotation: Any) -> tuple[type | None, bool]:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        members = [each for each in typing.get_args(annotation) if each is not types.NoneType]
        if len(members) == 1 and hasattr(members[0], _MARK):
            return members[0], True
        return None, False
    return (annotation, False) if inspect.isclass(annotation) and hasattr(annotation, _MARK) else (None, False)


def _service_parameter(
    function: Callable[..., Any], name: str, service_type: type, optional: bool, hook: str
) -> ServiceParameter:
    hooks = getattr(service_type, _MARK)
    if hook not in hooks:
        raise DeclarationError(
            f"{where(function)}: parameter {name!r} asks for {service_type.__name__}, which @app.{hook} does not have; "
            f"it exists in: {', '.join(sorted(hooks))}"
        )
    return ServiceParameter(name, service_type, optional)


def _dependency(
    function: Callable[..., Any],
    name: str,
    depends: Depends,
    hook: str,
    batch: bool,
    chain: tuple[Callable[..., Any], ...],
) -> DependencyParameter:
    if not callable(depends.factory):
        raise DeclarationError(f"{where(function)}: Depends of parameter {name!r} needs a function, not {depends.factory!r}")
    if depends.scope not in ("call", "process"):
        raise DeclarationError(
            f"{where(function)}: Depends of parameter {name!r} has scope={depends.scope!r}: 'call' and 'process' exist"
            + did_you_mean(str(depends.scope), ("call", "process"))
        )
    plan = _compile(depends.factory, hook, batch, (*chain, function))
    if plan.is_async:
        raise DeclarationError(
            f"{where(depends.factory)}: a factory of a dependency must be a plain function or a generator, not async"
        )
    if depends.scope == "process":
        shorter = [each.name for each in plan.dependencies if each.depends.scope == "call"]
        if plan.fields or shorter:
            names = ", ".join([each.name for each in plan.fields] + shorter)
            raise DeclarationError(
                f"{where(depends.factory)}: it is made once per process (scope='process'), so it cannot take what belongs "
                f"to one call: {names}"
            )
    return DependencyParameter(name, depends, plan)


def _field_parameter(
    function: Callable[..., Any], parameter: inspect.Parameter, annotation: Any, hook: str, batch: bool, factory: bool
) -> FieldParameter:
    known = FIELDS[hook]
    name = parameter.name
    field_name = OLD_NAMES.get(name, name) if OLD_NAMES.get(name) in known else name
    if field_name not in known:
        owner = "a dependency of " if factory else ""
        exists = f"fields: {', '.join(known) or 'none'}"
        available = sorted(each for each, cls in _SERVICES.items() if hook in getattr(cls, _MARK))
        raise DeclarationError(
            f"{where(function)}: {owner}@app.{hook} has no field {name!r}{did_you_mean(name, known)}\n"
            f"  {exists}; services (by annotation): {', '.join(available)}; your own: Annotated[T, Depends(factory)]"
        )
    if batch and field_name in BATCHED:
        if factory:
            raise DeclarationError(
                f"{where(function)}: a dependency cannot take {name!r} where max_batch_size is more than 1: "
                "it would belong to one request of the batch"
            )
        annotation = _item_type(function, name, annotation)
    has_default = parameter.default is not parameter.empty and not batch
    decode = _as_it_is if field_name in _AS_THEY_ARE else _decoder(function, name, field_name, annotation)
    return FieldParameter(name, field_name, annotation, has_default, decode)


def _item_type(function: Callable[..., Any], name: str, annotation: Any) -> Any:
    if annotation is Any or annotation is list:
        return Any
    origin = typing.get_origin(annotation)
    if origin in (list, Sequence) and len(typing.get_args(annotation)) == 1:
        return typing.get_args(annotation)[0]
    shown = getattr(annotation, "__name__", str(annotation)) if origin is None else str(annotation)
    raise DeclarationError(
        f"{where(function)}: max_batch_size is more than 1, so {name!r} is a list with one item a request: "
        f"annotate it as list[{shown}], not {shown}"
    )


def _as_it_is(value: object) -> object:
    return value


def _decoder(function: Callable[..., Any], name: str, field_name: str, annotation: Any) -> Callable[[object], object]:
    problem = _unsupported(annotation)
    if problem:
        raise DeclarationError(f"{where(function)}: parameter {name!r} cannot be made from JSON: {problem}")
    from_json = msgspec.json.Decoder(annotation, dec_hook=_foreign)
    anything = annotation is Any

    def decode(value: object) -> object:
        try:
            if isinstance(value, msgspec.Raw):
                return from_json.decode(value)
            return value if anything else msgspec.convert(value, annotation, dec_hook=_foreign)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ArgumentError(f"[{field_name}] does not fit: {error}") from None

    return decode


def _unsupported(annotation: Any) -> str:
    """Why msgspec cannot convert to this type, or an empty string."""
    try:
        found = list(_custom_types(msgspec.inspect.type_info(annotation)))
    except (TypeError, NameError, ValueError, NotImplementedError) as error:
        return str(error)
    strange = [each for each in found if not hasattr(each, "model_validate")]
    if not strange:
        return ""
    return (
        f"{strange[0].__name__!r} is no type that JSON converts to (use dict, msgspec.Struct, dataclass, TypedDict, attrs "
        "or a pydantic model)"
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


def _foreign(wanted: type, value: object) -> object:
    validate = getattr(wanted, "model_validate", None)
    if validate is None:
        raise NotImplementedError
    return validate(value)


def _optional(services: Services, wanted: type) -> object:
    try:
        return services(wanted)
    except ArgumentError:
        return None


def _make(
    dependency: DependencyParameter,
    fields: Fields,
    services: Services,
    scope: ProcessScope | None,
    call: Call,
    made: dict[Callable[..., Any], object],
) -> object:
    factory, plan = dependency.depends.factory, dependency.plan
    if scope is not None and factory in scope.overrides:
        factory = scope.overrides[factory]
        plan = compile_plan(factory, plan.hook, batch=plan.batch)
    exits = call.exits
    if dependency.depends.scope == "process" and scope is not None:
        made, exits, services = scope.made, scope.exits, scope.services
    if factory in made:
        return made[factory]
    arguments = plan.decode(fields)
    for each in plan.services:
        arguments[each.name] = services(each.type) if not each.optional else _optional(services, each.type)
    for inner in plan.dependencies:
        arguments[inner.name] = _make(inner, fields, services, scope, call, made)
    if plan.is_generator:
        assert exits is not None
        value = user_code(exits.enter_context, contextlib.contextmanager(factory)(**arguments))
    else:
        value = user_code(factory, **arguments)
    made[factory] = value
    return value


__all__ = [
    "BATCHED",
    "FIELDS",
    "NULL",
    "AsyncGenerator",
    "Call",
    "Depends",
    "Fields",
    "Generator",
    "Plan",
    "ProcessScope",
    "Services",
    "async_user_code",
    "compile_plan",
    "did_you_mean",
    "service",
    "user_code",
    "user_error",
    "where",
]
