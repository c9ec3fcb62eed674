"""mlpkit: one script of plain functions becomes a production ML algorithm service.

    from mlpkit import App
    app = App("sentiment", kind="text_classification")

Start with `App`; the README shows a whole script. Importing this package starts nothing and is cheap: what a name needs
is imported when the name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpkit.app import Algorithm, App
from mlpkit.injection import Depends
from mlpkit.lazy import front_door

if TYPE_CHECKING:
    from mlpkit.client import Client, JobHandle
    from mlpkit.services import Log
    from mlpkit.storage import ModelDir, Storage
    from mlpkit.training import Progress, TrainData, TrainJob

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "App",
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

__getattr__ = front_door(
    __name__,
    {
        "Client": "mlpkit.client",
        "JobHandle": "mlpkit.client",
        "Log": "mlpkit.services",
        "ModelDir": "mlpkit.storage",
        "Progress": "mlpkit.training",
        "Storage": "mlpkit.storage",
        "TrainData": "mlpkit.training",
        "TrainJob": "mlpkit.training",
    },
)


def __dir__() -> list[str]:
    return list(__all__)
