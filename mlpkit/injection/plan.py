"""How to call a handler: its plan, compiled from its signature."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Annotated, Any, Union

from mlpkit.errors import AnswerError, DeclarationError, NotInRequest, UserCodeError, did_you_mean
from mlpkit.injection.boundary import (
    END,
    async_user_code,
    called_code,
    next_async_value,
    next_value,
    original,
    user_code,
    user_error,
    where,
)
from mlpkit.injection.declarations import (
    AS_THEY_ARE,
    BATCHED,
    FIELDS,
    NULL,
    NUMBERS_AS_TEXT,
    OLD_NAMES,
    WIRE_NAMES,
    Depends,
    Fields,
    Services,
    hooks_of_service,
    services_of_hook,
)
from mlpkit.injection.decoding import make_decoder

_Function = Callable[..., Any]
_Overrides = Mapping[_Function, _Function]
_CONTEXT_MANAGERS = tuple(
    manager(lambda: None).__code__  # type: ignore[arg-type,return-value]
    for manager in (contextlib.contextmanager, contextlib.asynccontextmanager)
)
"""The code of what these decorators return: the same for every function that they decorate."""


@dataclass(frozen=True)
class FieldParameter:
    """A parameter that gets a field of the request.

    `type` is what the value of one request becomes. `batched`: the handler gets a list of them, one per request.
    `decode` is None if the value is passed on as it is.
    """

    name: str
    field: str
    type: Any
    has_default: bool
    batched: bool
    decode: Callable[[object], object] | None


@dataclass(frozen=True)
class ServiceParameter:
    """A parameter that gets a service; `optional` if it may be None."""

    name: str
    type: type
    optional: bool

    def fill(self, services: Services) -> object:
        """The service, or None if it is optional and cannot be made."""
        try:
            return services(self.type)
        except NotInRequest:
            if not self.optional:
                raise
            return None


@dataclass(frozen=True)
class DependencyParameter:
    """A parameter that gets what the author's factory makes.

    `compile_override` compiles the plan of a factory that replaces it in tests.
    """

    name: str
    depends: Depends
    plan: Plan
    compile_override: Callable[[_Function], Plan]


def _run_in_own_loop(function: Callable[..., Any], /, **arguments: Any) -> Any:
    import asyncio

    return asyncio.run(async_user_code(function, **arguments))


class ProcessScope:
    """What the calls of one process share.

    These are the dependencies with `scope="process"`, and `run_async`, which calls an `async` function of the author's
    and waits for what it returns: in an event loop of its own each time, if nothing else is given.
    """

    def __init__(
        self, services: Services, overrides: _Overrides, run_async: Callable[..., Any] = _run_in_own_loop
    ) -> None:
        self.services = services
        self.overrides = overrides
        self.run_async = run_async
        self._lock = threading.RLock()
        self._exits = contextlib.ExitStack()
        self._resolver = _Resolver({}, services, self, self._exits)

    def make(self, dependency: DependencyParameter) -> object:
        """What the factory of a process-wide dependency returned.

        It is called if this has not happened yet.
        """
        with self._lock:
            return self._resolver.run(dependency)

    def close(self) -> None:
        """Cleans up; a dependency that is needed later is made again.

        Raises:
            UserCodeError: a clean-up failed; the others ran too.
        """
        with self._lock:
            self._resolver.made.clear()
            user_code(self._exits.close)


@dataclass
class Call:
    """Arguments that are ready, and the clean-up of the dependencies among them.

    Close it after the call, or use it as a context manager around the call.
    """

    arguments: dict[str, object]
    exits: contextlib.ExitStack | None = None

    def close(self, error: BaseException | None = None) -> None:
        """Cleans up, last made first.

        Generators see what the handler raised, `error`, at their `yield`.

        Raises:
            UserCodeError: a clean-up failed. If the handler failed already, that is only logged.
        """
        if self.exits is None:
            return
        if error is None:
            user_code(self.exits.close)
            return
        cause = original(error)
        try:
            self.exits.__exit__(type(cause), cause, cause.__traceback__)
        except BaseException as failure:
            if failure is not cause:
                from mlpkit.log import logger

                logger.error("the clean-up after a failed call failed too: {}", user_error(failure).trace)

    def __enter__(self) -> Call:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close(error)


@dataclass(frozen=True)
class Plan:
    """How to call one handler: made by `compile_plan`, used for every call."""

    function: Callable[..., Any]
    hook: str
    fields: tuple[FieldParameter, ...]
    services: tuple[ServiceParameter, ...]
    dependencies: tuple[DependencyParameter, ...]
    batch: bool = False
    returns: Any = Any
    """The type that it is annotated to return."""
    is_async: bool = field(init=False)
    is_generator: bool = field(init=False)
    is_simple: bool = field(init=False)
    """Whether it takes decoded fields only."""

    def __post_init__(self) -> None:
        code = called_code(self.function)
        is_async_generator = inspect.isasyncgenfunction(code)
        object.__setattr__(self, "is_async", inspect.iscoroutinefunction(code) or is_async_generator)
        object.__setattr__(self, "is_generator", inspect.isgeneratorfunction(code) or is_async_generator)
        object.__setattr__(self, "is_simple", not self.services and not self.dependencies)

    def takes(self, name: str) -> bool:
        """Whether the handler itself names this field."""
        return any(parameter.field == name for parameter in self.fields)

    def all_fields(self) -> Iterator[FieldParameter]:
        """The fields of the handler and of the factories that it needs."""
        yield from self.fields
        for dependency in self.dependencies:
            yield from dependency.plan.all_fields()

    def all_services(self) -> Iterator[ServiceParameter]:
        """The services of the handler and of the factories that it needs."""
        yield from self.services
        for dependency in self.dependencies:
            yield from dependency.plan.all_services()

    def field_type(self, name: str) -> Any:
        """The type that a field becomes; None if it is not named."""
        return next((parameter.type for parameter in self.fields if parameter.field == name), None)

    def decode(self, fields: Fields) -> dict[str, object]:
        """The handler's own field arguments of one request, by parameter name.

        Raises:
            ArgumentError: a field does not fit its type; the message names the field and the place in it.
            UserCodeError: the code of the user's type failed.
        """
        arguments: dict[str, object] = {}
        for parameter in self.fields:
            value = fields.get(parameter.field)
            if parameter.has_default and (value is None or value == NULL):
                continue
            arguments[parameter.name] = value if parameter.decode is None else parameter.decode(value)
        return arguments

    def merged(self, items: Sequence[Mapping[str, object]]) -> dict[str, object]:
        """The arguments of a batch, from the decoded ones of its items.

        A list per batched field; of what belongs to the model, the first item's value.
        """
        first = items[0]
        return {
            field.name: [item[field.name] for item in items] if field.batched else first[field.name]
            for field in self.fields
            if field.batched or field.name in first
        }

    def complete(
        self, arguments: dict[str, object], fields: Fields, services: Services, scope: ProcessScope | None = None
    ) -> Call:
        """Adds services and dependencies to decoded arguments.

        Close the call afterwards.

        Raises:
            ArgumentError: a field of a factory does not fit.
            NotInRequest: the request lacks what a service is made from.
            UserCodeError: a factory failed.
        """
        for service in self.services:
            arguments[service.name] = service.fill(services)
        if not self.dependencies:
            return Call(arguments)
        call = Call(arguments, contextlib.ExitStack())
        resolver = _Resolver(fields, services, scope, call.exits)
        try:
            for dependency in self.dependencies:
                arguments[dependency.name] = resolver.run(dependency)
        except BaseException as error:
            call.close(error)
            raise
        return call

    def __call__(self, fields: Fields, services: Services, scope: ProcessScope | None = None) -> Any:
        """Calls a handler, and cleans up.

        The clean-up of its dependencies sees what it raised.

        Raises:
            ArgumentError: a field does not fit its type, or the request lacks what a service is made from.
            UserCodeError: the handler, a factory or a clean-up raised.
        """
        with self.complete(self.decode(fields), fields, services, scope) as call:
            return self.run(call.arguments, _run_in_own_loop if scope is None else scope.run_async)

    def run(self, arguments: Mapping[str, object], run_async: Callable[..., Any]) -> Any:
        """What the handler returns, or a list of what it yields.

        Raises:
            UserCodeError: it raised.
        """
        if self.is_generator:
            step = self._steps(arguments, run_async)
            found = []
            while (value := step()) is not END:
                found.append(value)
            return found
        if self.is_async:
            return run_async(self.function, **arguments)
        return user_code(self.function, **arguments)

    def open(
        self, fields: Fields, services: Services, scope: ProcessScope
    ) -> tuple[object, list[Callable[[], object]]]:
        """What `load` returns or yields, and what cleans up after it.

        Raises:
            ArgumentError: a field does not fit its type, or the request lacks what a service is made from.
            UserCodeError: it raised or yielded nothing, or a factory or a clean-up raised.
        """
        call = self.complete(self.decode(fields), fields, services, scope)
        if not self.is_generator:
            with call:
                return self.run(call.arguments, scope.run_async), []
        try:
            step = self._steps(call.arguments, scope.run_async)
            value = step()
            if value is END:
                raise UserCodeError("load is a generator that yielded no model")
        except BaseException as error:
            call.close(error)
            raise
        return value, [step, call.close]

    def _steps(self, arguments: Mapping[str, object], run_async: Callable[..., Any]) -> Callable[[], object]:
        """What gives the generator's next value with each call, or `END`."""
        generator = user_code(self.function, **arguments)
        if self.is_async:
            return functools.partial(run_async, next_async_value, generator=generator)
        return functools.partial(next_value, generator)


def split_batch(answers: Any, count: int) -> list[Any]:
    """The answers to the single items of a batch.

    Raises:
        AnswerError: there is not one answer for each of the `count` items.
        UserCodeError: the answers are made while they are read, and that failed.
    """
    iterator = None
    if not isinstance(answers, (str, bytes, dict)):
        with contextlib.suppress(TypeError):
            iterator = iter(answers)
    if iterator is None:
        raise AnswerError(f"predict takes batches, so it must answer a list, not {type(answers).__name__}")
    found: list[Any] = user_code(list, iterator)
    if len(found) != count:
        raise AnswerError(f"predict answered {len(found)} items to a batch of {count}: one answer per item is needed")
    return found


class _Resolver:
    """Makes the dependencies of one call, or of one process.

    Each factory runs once, even if several parameters ask for it.
    """

    def __init__(
        self, fields: Fields, services: Services, scope: ProcessScope | None, exits: contextlib.ExitStack | None
    ) -> None:
        self.fields = fields
        self.services = services
        self.scope = scope
        self.exits = exits
        self.made: dict[_Function, object] = {}
        self._replacing: set[_Function] = set()

    def run(self, dependency: DependencyParameter) -> object:
        """What the factory, or its override, returns or yields."""
        wanted = dependency.depends.factory
        scope = self.scope
        if scope is not None and dependency.depends.scope == "process" and scope._resolver is not self:
            return scope.make(dependency)
        if wanted in self.made:
            return self.made[wanted]
        if scope is None or wanted not in scope.overrides or wanted in self._replacing:
            value = self._value(dependency.plan)
        else:
            # A fake may depend on the factory that it replaces: there it gets the real one.
            self._replacing.add(wanted)
            try:
                value = self._value(dependency.compile_override(scope.overrides[wanted]))
            finally:
                self._replacing.discard(wanted)
        self.made[wanted] = value
        return value

    def _value(self, plan: Plan) -> object:
        arguments = plan.decode(self.fields)
        for service in plan.services:
            arguments[service.name] = service.fill(self.services)
        for inner in plan.dependencies:
            arguments[inner.name] = self.run(inner)
        if not plan.is_generator:
            return user_code(plan.function, **arguments)
        assert self.exits is not None
        return user_code(self.exits.enter_context, contextlib.contextmanager(plan.function)(**arguments))


def compile_plan(function: _Function, hook: str, *, batch: bool = False) -> Plan:
    """The plan of a handler.

    Raises:
        DeclarationError: the signature cannot be filled; names the place, what is wrong, and what exists.
    """
    return _Compiler(hook, batch).compile(function)


class _Compiler:
    """Compiles one handler, and the factories that it depends on.

    `chain` has the functions that depend on it, outermost first.
    """

    def __init__(self, hook: str, batch: bool, chain: tuple[_Function, ...] = ()) -> None:
        self.hook = hook
        self.batch = batch
        self.chain = chain

    def compile(self, function: _Function) -> Plan:
        if function in self.chain:
            circle = (*self.chain[self.chain.index(function) :], function)
            names = " -> ".join(getattr(member, "__name__", repr(member)) for member in circle)
            raise DeclarationError(f"{where(function)}: the dependencies go round in a circle: {names}")
        function = _transparent(function, self.hook == "load" or bool(self.chain))
        fields: list[FieldParameter] = []
        services: list[ServiceParameter] = []
        dependencies: list[DependencyParameter] = []
        hints = _type_hints(function)
        for parameter in _parameters(function):
            annotation = hints.get(parameter.name, Any)
            depends = _depends_of(annotation)
            service_type, optional = _service_of(annotation)
            if depends is not None:
                dependencies.append(self._dependency(function, parameter.name, depends))
            elif service_type is not None:
                self._check_service(function, parameter.name, service_type)
                services.append(ServiceParameter(parameter.name, service_type, optional))
            else:
                fields.append(self._field(function, parameter, annotation))
        called = called_code(function)
        returns = called if inspect.isclass(called) else hints.get("return", Any)
        return Plan(function, self.hook, tuple(fields), tuple(services), tuple(dependencies), self.batch, returns)

    def compile_factory(self, factory: _Function, scope: str) -> Plan:
        plan = self.compile(factory)
        _check_factory(plan, scope)
        return plan

    def _dependency(self, function: _Function, name: str, depends: Depends) -> DependencyParameter:
        if not callable(depends.factory):
            raise DeclarationError(
                f"{where(function)}: Depends of parameter {name!r} needs a function, not {depends.factory!r}"
            )
        if depends.scope not in ("call", "process"):
            raise DeclarationError(
                f"{where(function)}: Depends of parameter {name!r} has scope={depends.scope!r}: 'call' and 'process' "
                f"exist{did_you_mean(str(depends.scope), ('call', 'process'))}"
            )
        inner = _Compiler(self.hook, self.batch, (*self.chain, function))
        plan = inner.compile_factory(depends.factory, depends.scope)
        compile_override = functools.partial(inner.compile_factory, scope=depends.scope)
        return DependencyParameter(name, depends, plan, compile_override)

    def _check_service(self, function: _Function, name: str, service_type: type) -> None:
        hooks = hooks_of_service(service_type) or frozenset()
        if self.hook not in hooks:
            raise DeclarationError(
                f"{where(function)}: parameter {name!r} asks for {service_type.__name__}, which @app.{self.hook} does "
                f"not have; it exists in: {', '.join(sorted(hooks))}\n"
                f"  services of @app.{self.hook}: {', '.join(services_of_hook(self.hook))}"
            )

    def _field(self, function: _Function, parameter: inspect.Parameter, annotation: Any) -> FieldParameter:
        name = parameter.name
        known = FIELDS[self.hook]
        field = OLD_NAMES[name] if OLD_NAMES.get(name) in known else name
        if field not in known:
            raise DeclarationError(self._unknown_field(function, parameter))
        batched = self.batch and field in BATCHED
        if batched:
            if self.chain:
                raise DeclarationError(
                    f"{where(function)}: a dependency cannot take {name!r} if max_batch_size is more than 1: "
                    "it would belong to one request of the batch"
                )
            annotation = _item_type(function, name, annotation)
        has_default = parameter.default is not parameter.empty and not batched
        if field in AS_THEY_ARE:
            return FieldParameter(name, field, annotation, has_default, batched, None)
        try:
            decode = make_decoder(annotation, WIRE_NAMES.get(field, field), numbers_as_text=field in NUMBERS_AS_TEXT)
        except TypeError as error:
            raise DeclarationError(f"{where(function)}: parameter {name!r} cannot be made from JSON: {error}") from None
        return FieldParameter(name, field, annotation, has_default, batched, decode)

    def _unknown_field(self, function: _Function, parameter: inspect.Parameter) -> str:
        name = parameter.name
        known = FIELDS[self.hook]
        if isinstance(parameter.default, Depends):
            return (
                f"{where(function)}: parameter {name!r} has Depends as its default value: write it in the "
                f"annotation: {name}: Annotated[T, Depends(factory)]"
            )
        owner = "a dependency of " if self.chain else ""
        hint = did_you_mean(name, known)
        if not hint:
            elsewhere = [hook for hook, fields in FIELDS.items() if OLD_NAMES.get(name, name) in fields]
            hint = f" (it exists in: {', '.join(elsewhere)})" if elsewhere else ""
        return (
            f"{where(function)}: {owner}@app.{self.hook} has no field {name!r}{hint}\n"
            f"  fields, by name: {', '.join(known) or 'none'}\n"
            f"  services, by annotation: {', '.join(services_of_hook(self.hook))}\n"
            "  your own: Annotated[T, Depends(factory)]"
        )


def _transparent(function: _Function, may_yield: bool) -> _Function:
    """The function itself, or the generator inside a `@contextmanager`.

    Raises:
        DeclarationError: it wraps a function of another sort, so it is unknown what a call returns.
    """
    if getattr(function, "__code__", None) in _CONTEXT_MANAGERS:
        generator: _Function = function.__wrapped__  # type: ignore[attr-defined]
        return generator
    inner = inspect.unwrap(function)
    if inspect.iscoroutinefunction(called_code(function)) or inner is function:
        return function
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        raise DeclarationError(
            f"{where(function)}: it is an `async def`, but a decorator (functools.wraps) has put a plain function "
            "around it, so its coroutine would never be awaited: make the decorator's function `async def` too, and "
            "await the function in it"
        )
    if may_yield and inspect.isgeneratorfunction(inner) and not inspect.isgeneratorfunction(function):
        raise DeclarationError(
            f"{where(function)}: it yields, but a decorator (functools.wraps) has put a plain function around it, so "
            "it would never be resumed: let the decorator's function `yield from` it"
        )
    return function


def _parameters(function: _Function) -> list[inspect.Parameter]:
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise DeclarationError(f"{where(function)}: its signature cannot be read: {error}") from error
    if isinstance(function, functools.partial):
        found = [parameter for parameter in found if parameter.name not in function.keywords]
    for parameter in found:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise DeclarationError(
                f"{where(function)}: parameter '{parameter}' cannot be filled: every parameter needs its own name "
                "(no *args, **kwargs or positional-only ones)"
            )
    return found


def _type_hints(function: _Function) -> dict[str, Any]:
    target: Any = called_code(function)
    if inspect.isclass(target):
        target = target.__init__
    try:
        return typing.get_type_hints(target, include_extras=True)
    except NameError as error:
        raise DeclarationError(
            f"{where(function)}: an annotation names {error.name!r}, which its module does not have when the app is "
            "built (imported only under TYPE_CHECKING, or misspelt?)"
        ) from error
    except Exception as error:
        raise DeclarationError(f"{where(function)}: its annotations cannot be read: {error}") from error


def _depends_of(annotation: Any) -> Depends | None:
    if typing.get_origin(annotation) is not Annotated:
        return None
    return next((item for item in annotation.__metadata__ if isinstance(item, Depends)), None)


def _service_of(annotation: Any) -> tuple[type | None, bool]:
    """The service that an annotation asks for, and whether None is allowed."""
    if typing.get_origin(annotation) is Annotated:
        return _service_of(annotation.__origin__)
    if typing.get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not types.NoneType]
        return (members[0], True) if len(members) == 1 and hooks_of_service(members[0]) else (None, False)
    return (annotation, False) if hooks_of_service(annotation) else (None, False)


def _item_type(function: _Function, name: str, annotation: Any) -> Any:
    if annotation is Any or annotation is list:
        return Any
    origin = typing.get_origin(annotation)
    if origin in (list, Sequence) and len(typing.get_args(annotation)) == 1:
        return typing.get_args(annotation)[0]
    shown = annotation.__name__ if inspect.isclass(annotation) and origin is None else str(annotation)
    raise DeclarationError(
        f"{where(function)}: max_batch_size is more than 1, so {name!r} is a list with one item a request: "
        f"annotate it as list[{shown}], not {shown}"
    )


def _check_factory(plan: Plan, scope: str) -> None:
    """Refuses a factory that cannot be a dependency of this scope.

    Raises:
        DeclarationError: it is async, or is made once per process but takes something of one call.
    """
    if plan.is_async:
        raise DeclarationError(
            f"{where(plan.function)}: a factory of a dependency must be a plain function or a generator, not async"
        )
    if scope != "process":
        return
    shorter = [field.name for field in plan.fields]
    shorter += [service.name for service in plan.services if len(hooks_of_service(service.type) or ()) < len(FIELDS)]
    shorter += [dependency.name for dependency in plan.dependencies if dependency.depends.scope == "call"]
    if shorter:
        raise DeclarationError(
            f"{where(plan.function)}: it is made once per process (scope='process'), so it cannot take what belongs "
            f"to one call: {', '.join(shorter)}"
        )
