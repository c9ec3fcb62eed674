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
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


def working_directory() -> str:
    """The working directory, or `/` if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return os.sep


start_folder: str = working_directory()
"""The working directory when mlpkit was imported: what relative paths are relative to, whatever `os.chdir` does."""


def lazy_names(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package (PEP 562).

    Its names are imported when they are first used. `names` has those of each module, separated by spaces. Type
    checkers and editors do not follow this: they read the same names as imports under `TYPE_CHECKING`.
    """
    namespace = vars(sys.modules[package])
    modules = {name: module for module, given in names.items() for name in given.split()}

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = namespace[name] = getattr(importlib.import_module(modules[name]), name)
        return value

    public = sorted(modules)
    return find, lambda: public, public


if TYPE_CHECKING:
    from mlpkit.app import Algorithm as Algorithm
    from mlpkit.app import App as App
    from mlpkit.client import Client as Client
    from mlpkit.client import JobHandle as JobHandle
    from mlpkit.handler_log import Log as Log
    from mlpkit.injection import Depends as Depends
    from mlpkit.storage import ModelDir as ModelDir
    from mlpkit.storage import Storage as Storage
    from mlpkit.training import Checkpoint as Checkpoint
    from mlpkit.training import Progress as Progress
    from mlpkit.training import TrainData as TrainData
    from mlpkit.training import TrainJob as TrainJob
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "mlpkit.app": "Algorithm App",
            "mlpkit.client": "Client JobHandle",
            "mlpkit.handler_log": "Log",
            "mlpkit.injection": "Depends",
            "mlpkit.storage": "ModelDir Storage",
            "mlpkit.training": "Checkpoint Progress TrainData TrainJob",
        },
    )
    __all__ += ["__version__"]
