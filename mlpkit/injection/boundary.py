"""The boundary to the author's code: its exceptions become `UserCodeError`."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from mlpkit.errors import UserCodeError

T = TypeVar("T")


def user_code(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Calls the user's function; its exceptions become `UserCodeError`."""
    try:
        with ending_forked_copies():
            return function(*args, **kwargs)
    except BaseException as error:
        raise user_error(error) from error


async def async_user_code(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Awaits the author's function; its exceptions become `UserCodeError`.

    A cancellation from outside is not changed.
    """
    import asyncio

    try:
        with ending_forked_copies():
            return await function(*args, **kwargs)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        raise user_error(error) from error


@contextlib.contextmanager
def ending_forked_copies() -> Iterator[None]:
    """Ends copies of this process that are forked in the block.

    They end with the block; only this process does what comes after it.
    """
    process = os.getpid()
    try:
        yield
    except BaseException as error:
        if os.getpid() != process:
            _end_forked_copy(error)
        raise
    if os.getpid() != process:
        _end_forked_copy(None)


def _end_forked_copy(error: BaseException | None) -> NoReturn:
    code = 0 if error is None else 1
    try:
        if isinstance(error, SystemExit):
            # As Python ends: a number is the exit code, None is 0, anything else is printed.
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if not isinstance(error.code, int | None):
                print(error.code, file=sys.stderr)
        elif error is not None:
            traceback.print_exception(type(error), error, error.__traceback__)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    finally:
        os._exit(code & 0xFF)


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
