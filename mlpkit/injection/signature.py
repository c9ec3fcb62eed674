"""Compiles a function's signature into its call plan, or names its mistake."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Union

from mlpkit.errors import DeclarationError, did_you_mean
from mlpkit.injection.declarations import (
    AS_THEY_ARE,
    BATCHED,
    FIELDS,
    NUMBERS_AS_TEXT,
    OLD_NAMES,
    WIRE_NAMES,
    Depends,
    hooks_of_service,
    services_of_hook,
)
from mlpkit.injection.decoding import make_decoder
from mlpkit.injection.plan import DependencyParameter, FieldParameter, Plan, ServiceParameter, check_factory
from mlpkit.injection.source import called_code, where

Function = Callable[..., Any]

_CONTEXT_MANAGERS = tuple(
    manager(lambda: None).__code__  # type: ignore[arg-type,return-value]
    for manager in (contextlib.contextmanager, contextlib.asynccontextmanager)
)
"""The code of what these decorators return: the same for every function that they decorate."""


def compile_plan(function: Function, hook: str, *, batch: bool = False) -> Plan:
    """The plan of a handler.

    Raises:
        DeclarationError: the signature cannot be filled; names the place, what is wrong, and what exists.
    """
    return _Compiler(hook, batch).compile(function)


class _Compiler:
    """Compiles one handler, and the factories that it depends on.

    `chain` has the functions that depend on it, outermost first.
    """

    def __init__(self, hook: str, batch: bool, chain: tuple[Function, ...] = ()) -> None:
        self.hook = hook
        self.batch = batch
        self.chain = chain

    def compile(self, function: Function) -> Plan:
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
        return Plan(function, self.hook, tuple(fields), tuple(services), tuple(dependencies), self.batch)

    def compile_factory(self, factory: Function, scope: str) -> Plan:
        plan = self.compile(factory)
        check_factory(plan, scope)
        return plan

    def _dependency(self, function: Function, name: str, depends: Depends) -> DependencyParameter:
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

    def _check_service(self, function: Function, name: str, service_type: type) -> None:
        hooks = hooks_of_service(service_type) or frozenset()
        if self.hook not in hooks:
            raise DeclarationError(
                f"{where(function)}: parameter {name!r} asks for {service_type.__name__}, which @app.{self.hook} does "
                f"not have; it exists in: {', '.join(sorted(hooks))}\n"
                f"  services of @app.{self.hook}: {', '.join(services_of_hook(self.hook))}"
            )

    def _field(self, function: Function, parameter: inspect.Parameter, annotation: Any) -> FieldParameter:
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

    def _unknown_field(self, function: Function, parameter: inspect.Parameter) -> str:
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


def _transparent(function: Function, may_yield: bool) -> Function:
    """The function itself, or the generator inside a `@contextmanager`.

    Raises:
        DeclarationError: it wraps a function of another sort, so it is unknown what a call returns.
    """
    if getattr(function, "__code__", None) in _CONTEXT_MANAGERS:
        generator: Function = function.__wrapped__  # type: ignore[attr-defined]
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


def _parameters(function: Function) -> list[inspect.Parameter]:
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


def _type_hints(function: Function) -> dict[str, Any]:
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


def _item_type(function: Function, name: str, annotation: Any) -> Any:
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
