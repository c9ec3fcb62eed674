"""The options of the decorators: `@app.train(...)`, `@app.load(...)` and `@app.predict(...)`, read and checked.

A `...Options` object is what the rest of mlpkit works with; a `...Keywords` type tells editors and type checkers what
an author may write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict, TypeVar

from mlpkit.errors import did_you_mean
from mlpkit.values import size

O = TypeVar("O", bound="TrainOptions | LoadOptions | PredictOptions")  # noqa: E741 - a type variable


def _option(default: Any, read: Callable[[Any], object]) -> Any:
    return field(default=default, metadata={"read": read})


def _whole(least: int) -> Callable[[Any], object]:
    def read(value: Any) -> object:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"a whole number of at least {least}")
        return value

    return read


def _number(value: Any) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError("a number of at least 0")
    return value


def _seconds(value: Any) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError("a number of seconds above 0")
    return value


def _memory(value: Any) -> object:
    amount = size(value) if isinstance(value, str) else value
    if isinstance(amount, bool) or not isinstance(amount, int) or amount < 1:
        raise ValueError('a number of bytes, or a size such as "512MiB" or "2GiB"')
    return amount


def _flag(value: Any) -> object:
    if not isinstance(value, bool):
        raise ValueError("True or False")
    return value


def _ids(value: Any) -> object:
    if isinstance(value, str):
        raise ValueError(f"a list of model ids: [{value!r}]")
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) and each for each in value):
        raise ValueError("a list of model ids")
    return tuple(value)


@dataclass(frozen=True)
class TrainOptions:
    """What a training job may use. `memory` is in bytes, `timeout` in seconds; None is no limit."""

    cpus: int | None = _option(None, _whole(1))
    gpus: int = _option(0, _whole(0))
    memory: int | None = _option(None, _memory)
    timeout: float | None = _option(None, _seconds)
    max_attempts: int = _option(1, _whole(1))


@dataclass(frozen=True)
class LoadOptions:
    """Where models live: alone in a process (`isolated`), in how many workers (`replicas`), which from the start.

    `memory` is what one copy needs, in bytes; None is what it took the last time that it was loaded.
    """

    isolated: bool = _option(False, _flag)
    replicas: int = _option(1, _whole(1))
    preload: tuple[str, ...] = _option((), _ids)
    memory: int | None = _option(None, _memory)
    timeout: float | None = _option(None, _seconds)


@dataclass(frozen=True)
class PredictOptions:
    """How predictions run. `max_wait_ms` is the longest wait for company in a batch, `timeout` is in seconds."""

    max_batch_size: int = _option(1, _whole(1))
    max_wait_ms: float = _option(0.5, _number)
    threads: int = _option(1, _whole(1))
    timeout: float | None = _option(None, _seconds)


Options = TrainOptions | LoadOptions | PredictOptions


class TrainKeywords(TypedDict, total=False):
    """What `@app.train(...)` takes."""

    cpus: int | None
    gpus: int
    memory: int | str | None
    timeout: float | None
    max_attempts: int


class LoadKeywords(TypedDict, total=False):
    """What `@app.load(...)` takes."""

    isolated: bool
    replicas: int
    preload: list[str] | tuple[str, ...]
    memory: int | str | None
    timeout: float | None


class PredictKeywords(TypedDict, total=False):
    """What `@app.predict(...)` takes."""

    max_batch_size: int
    max_wait_ms: float
    threads: int
    timeout: float | None


def read_options(kind: type[O], given: Mapping[str, object]) -> tuple[O, list[str]]:
    """The options that an author gave, and what is wrong with them; a wrong one has its default."""
    known = {each.name: each for each in fields(kind)}
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for name, value in given.items():
        if name not in known:
            mistakes.append(f"no option {name!r}{did_you_mean(name, known)}\n  options: {', '.join(known)}")
            continue
        try:
            values[name] = value if value is known[name].default else known[name].metadata["read"](value)
        except ValueError as error:
            mistakes.append(f"{name}={value!r}: it must be {error}")
    return kind(**values), mistakes
