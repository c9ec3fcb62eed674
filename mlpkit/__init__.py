"""mlpkit: one script of plain functions becomes a production ML algorithm service.

    from mlpkit import App
    app = App("sentiment", kind="text_classification")

Start with `App`; the README shows a whole script. Importing this package starts nothing and is cheap: what a name needs
is imported when the name is first used.
"""

from __future__ import annotations

import builtins
import importlib
import os
import sys
import threading
from types import SimpleNamespace
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "App",
    "Checkpoint",
    "Client",
    "Depends",
    "JobHandle",
    "Log",
    "ModelDir",
    "Progress",
    "Storage",
    "TrainData",
    "TrainJob",
    "__version__",
]


def working_directory() -> str:
    """The working directory, or `/` if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return os.sep


start_folder: str = working_directory()
"""The working directory when mlpkit was imported: what relative paths are relative to, whatever `os.chdir` does."""


class LazyImports:
    """Imports the names of a block when they are first used.

    The block is at the top of a package and holds `from ... import` lines only, which type checkers and editors read as
    usual. Python has `lazy from` for that since 3.15 (PEP 810). Here, the block only notes which module has which name;
    afterwards, the `__getattr__` of the package (PEP 562) imports a name. While the block runs, `__import__` is
    replaced for the code of this package alone, because other threads may import something at the same time.
    """

    _one_at_a_time = threading.Lock()

    def __init__(self, package: str) -> None:
        self._package = package
        self._namespace = vars(sys.modules[package])
        self._modules: dict[str, str] = {}

    def __enter__(self) -> None:
        self._one_at_a_time.acquire()
        self._import_now = builtins.__import__
        builtins.__import__ = self._note

    def __exit__(self, *error: object) -> None:
        builtins.__import__ = self._import_now
        self._one_at_a_time.release()
        for name in self._modules:
            del self._namespace[name]
        self._namespace["__getattr__"] = self._find
        self._namespace["__dir__"] = lambda: list(self._namespace["__all__"])

    def _note(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if globals is not self._namespace:
            return self._import_now(name, globals, locals, fromlist, level)
        self._modules.update(dict.fromkeys(fromlist, name))
        return SimpleNamespace(**dict.fromkeys(fromlist))

    def _find(self, name: str) -> Any:
        if name not in self._modules:
            raise AttributeError(f"module {self._package!r} has no attribute {name!r}")
        value = self._namespace[name] = getattr(importlib.import_module(self._modules[name]), name)
        return value


with LazyImports(__name__):
    from mlpkit.app import Algorithm, App
    from mlpkit.client import Client, JobHandle
    from mlpkit.handler_log import Log
    from mlpkit.injection import Depends
    from mlpkit.storage import ModelDir, Storage
    from mlpkit.training import Checkpoint, Progress, TrainData, TrainJob
