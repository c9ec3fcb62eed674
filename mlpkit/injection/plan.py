"""The call plan of a handler: its arguments and its clean-up."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from mlpkit.errors import DeclarationError, NotInRequest
from mlpkit.injection.boundary import async_user_code, original, user_code, user_error
from mlpkit.injection.declarations import FIELDS, NULL, Depends, Fields, Services, hooks_of_service
from mlpkit.injection.source import called_code, where

Factory = Callable[..., Any]
Overrides = Mapping[Factory, Factory]


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
    compile_override: Callable[[Factory], Plan]


class ProcessScope:
    """The dependencies with `scope="process"` of one process."""

    def __init__(self, services: Services, overrides: Overrides) -> None:
        self.services = services
        self.overrides = overrides
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

        It must not be a generator. An `async def` runs in an event loop of its own.

        Raises:
            ArgumentError: a field does not fit its type, or the request lacks what a service is made from.
            UserCodeError: the handler, a factory or a clean-up raised.
        """
        with self.complete(self.decode(fields), fields, services, scope) as call:
            if self.is_async:
                import asyncio

                return asyncio.run(async_user_code(self.function, **call.arguments))
            return user_code(self.function, **call.arguments)


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
        self.made: dict[Factory, object] = {}
        self._replacing: set[Factory] = set()

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


def check_factory(plan: Plan, scope: str) -> None:
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
