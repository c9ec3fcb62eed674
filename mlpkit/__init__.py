"""mlpkit: one script of plain functions becomes a production ML algorithm service.

    from mlpkit import App
    app = App("sentiment", kind="text_classification")

Start with `App`; the README shows a whole script. Importing this package starts nothing and is cheap: what a name needs
is imported when the name is first used.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlpkit.app import Algorithm, App
    from mlpkit.client import Client, JobHandle
    from mlpkit.handler_log import Log
    from mlpkit.injection import Depends
    from mlpkit.storage import ModelDir, Storage
    from mlpkit.training import Checkpoint, Progress, TrainData, TrainJob

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


start_folder = working_directory()
"""The working directory when mlpkit was imported: what relative paths are relative to, whatever `os.chdir` does."""


def front_door(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that imports its names on first use.

    PEP 562 describes it. `modules` says which module has which of its names.
    """

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return find


__getattr__ = front_door(
    __name__,
    {
        "Algorithm": "mlpkit.app",
        "App": "mlpkit.app",
        "Checkpoint": "mlpkit.training",
        "Client": "mlpkit.client",
        "Depends": "mlpkit.injection",
        "JobHandle": "mlpkit.client",
        "Log": "mlpkit.handler_log",
        "ModelDir": "mlpkit.storage",
        "Progress": "mlpkit.training",
        "Storage": "mlpkit.storage",
        "TrainData": "mlpkit.training",
        "TrainJob": "mlpkit.training",
    },
)


def __dir__() -> list[str]:
    return list(__all__)
