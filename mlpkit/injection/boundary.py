"""The boundary to the author's code: its exceptions become `UserCodeError`."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from mlpkit.errors import UserCodeError

T = TypeVar("T")


def user_code(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Calls the user's function; its exceptions become `UserCodeError`."""
    process = os.getpid()
    try:
        value = function(*args, **kwargs)
    except BaseException as error:
        if os.getpid() != process:
            _end_forked_process(error)
        raise user_error(error) from error
    if os.getpid() != process:
        _end_forked_process(None)
    return value


async def async_user_code(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Awaits the author's function; its exceptions become `UserCodeError`.

    A cancellation from outside is not changed.
    """
    import asyncio

    process = os.getpid()
    try:
        value = await function(*args, **kwargs)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        if os.getpid() != process:
            _end_forked_process(error)
        raise user_error(error) from error
    if os.getpid() != process:
        _end_forked_process(None)
    return value


def _end_forked_process(error: BaseException | None) -> NoReturn:
    """Ends a process that the user's code has forked.

    Its function has ended; only the parent does the rest.
    """
    code: object = 0
    if isinstance(error, SystemExit):
        code = error.code
    elif error is not None:
        traceback.print_exception(type(error), error, error.__traceback__)
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit((code or 0) & 0xFF)


def user_error(error: BaseException) -> UserCodeError:
    """The `UserCodeError` of an exception, with its traceback.

    The traceback begins with the first frame that is not of mlpkit.

    The text is the exception's own, as the original's answers have it; SystemExit and its like also get their names,
    and so does an exception without a text.
    """
    if isinstance(error, UserCodeError):
        return error
    try:
        text = _text(error)
    except Exception:
        text = f"{type(error).__name__}, whose text cannot be read"
    lines = traceback.format_exception(type(error), error, _from_first_own_frame(error.__traceback__))
    return UserCodeError(_printable(text), kind=type(error).__name__, trace=_printable("".join(lines)))


def original(error: BaseException) -> BaseException:
    """The user's exception that a `UserCodeError` holds."""
    return error.__cause__ if isinstance(error, UserCodeError) and error.__cause__ is not None else error


def _text(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"MemoryError: {error}" if str(error) else "MemoryError: the process could not get more memory"
    text = str(error)
    if not text.strip():
        return type(error).__name__
    return text if isinstance(error, Exception) else f"{type(error).__name__}: {text}"


def _from_first_own_frame(frames: TracebackType | None) -> TracebackType | None:
    first = frames
    while first is not None:
        if first.tb_frame.f_globals.get("__name__", "").partition(".")[0] not in ("mlpkit", "contextlib"):
            return first
        first = first.tb_next
    return frames


def _printable(text: str) -> str:
    """The text without lone surrogates, which JSON cannot carry."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
