"""Models in worker processes: load, predict, unload. `Models` is the front door."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpkit import front_door

if TYPE_CHECKING:
    from mlpkit.serving.models import Models
    from mlpkit.serving.prediction import Outcome, Prediction, Settle
    from mlpkit.serving.view import ModelView

__all__ = ["ModelView", "Models", "Outcome", "Prediction", "Settle"]

# A worker, which is `python -m mlpkit.serving`, needs none of them.
__getattr__ = front_door(
    __name__,
    {
        "ModelView": "mlpkit.serving.view",
        "Models": "mlpkit.serving.models",
        **dict.fromkeys(("Outcome", "Prediction", "Settle"), "mlpkit.serving.prediction"),
    },
)
