"""The boundary to the author's code: exceptions, and places in it.

Exceptions become `UserCodeError`. Messages name the author's own file and line.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from types import CodeType, FrameType, TracebackType
from typing import Any, NoReturn, TypeVar

from mlpkit import start_folder, working_directory
from mlpkit.errors import UserCodeError

T = TypeVar("T")

_MAIN_THREAD = "If this is load or predict: signals work there with @app.load(isolated=True)\n"
"""Python's own words on `signal.signal` do not say what to do."""

END = object()
"""What a generator of the author's gives when it has ended."""


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


def next_value(generator: Iterator[Any]) -> Any:
    """The next value of the author's generator, or `END`."""
    return user_code(next, generator, END)


async def next_async_value(generator: AsyncIterator[Any]) -> Any:
    """The same for an `async` generator; call it as the author's code."""
    return await anext(generator, END)


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
    if "only works in main thread" in text:
        lines.append(_MAIN_THREAD)
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


def place(file: str, line: int) -> str:
    """`sentiment.py, line 23`, relative to the working directory if it is below."""
    for folder in (working_directory(), start_folder):
        file = file.removeprefix(os.path.join(folder, ""))
    return f"{file}, line {line}"


def where(function: Callable[..., Any]) -> str:
    """`train (sentiment.py, line 23)`: how messages name a function or a class."""
    function = inspect.unwrap(function)
    if not inspect.isclass(function):
        function = called_code(function)
    name = (getattr(function, "__qualname__", None) or repr(function)).rpartition("<locals>.")[2]
    code = getattr(function.__init__ if inspect.isclass(function) else function, "__code__", None)
    if not isinstance(code, CodeType) or code.co_filename.startswith("<"):
        module = getattr(function, "__module__", None)
        return f"{name} (module {module})" if module else name
    return f"{name} ({place(code.co_filename, code.co_firstlineno)})"


def called_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The code that runs: the function of a partial, an object's `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    method: Callable[..., Any] = type(function).__call__
    return method


def calling_frame() -> FrameType:
    """The line of the script that called mlpkit."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "mlpkit":
        frame = frame.f_back
    return frame


def calling_place() -> str:
    """`sentiment.py, line 23`: where the script called mlpkit."""
    frame = calling_frame()
    return place(frame.f_code.co_filename, frame.f_lineno)


def is_importing(module: str) -> bool:
    """Whether this call happens during an import.

    The main script counts as one if it is `module`.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        # The main program of mlpkit, of pytest or of an ASGI server is always running.
        if frame.f_code.co_name == "<module>" and (name == module or (name != "__main__" and name in sys.modules)):
            return True
        frame = frame.f_back
    return False


def place_of_error(error: BaseException) -> str:
    """The deepest place of a traceback in the author's code, or nothing."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return place(error.filename, error.lineno)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_foreign_folders()) and frame.lineno:
            return place(frame.filename, frame.lineno)
    return ""


def _foreign_folders() -> tuple[str, ...]:
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return ("<", package + os.sep, *(folder + os.sep for folder in installed if folder))
