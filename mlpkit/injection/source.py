"""Places in the author's source: functions, calls and errors."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from mlpkit import start_folder, working_directory


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
