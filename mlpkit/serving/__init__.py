"""Models in worker processes: load, predict, unload. `Models` is the front door."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpkit import front_door

if TYPE_CHECKING:
    from mlpkit.serving.aliases import Alias, Aliases, alias_name
    from mlpkit.serving.dispatch import Counts, OnOutcome, OnPart, Outcome, PendingPrediction
    from mlpkit.serving.model import EvictedModel, MissingModel, WorkerInfo
    from mlpkit.serving.models import Models

__all__ = [
    "Alias",
    "Aliases",
    "Counts",
    "EvictedModel",
    "MissingModel",
    "Models",
    "OnOutcome",
    "OnPart",
    "Outcome",
    "PendingPrediction",
    "WorkerInfo",
    "alias_name",
]

# A worker, which is `python -m mlpkit.serving`, needs none of them.
__getattr__ = front_door(
    __name__,
    {
        "Models": "mlpkit.serving.models",
        **dict.fromkeys(("EvictedModel", "MissingModel", "WorkerInfo"), "mlpkit.serving.model"),
        **dict.fromkeys(("Alias", "Aliases", "alias_name"), "mlpkit.serving.aliases"),
        **dict.fromkeys(("Counts", "Outcome", "PendingPrediction", "OnOutcome", "OnPart"), "mlpkit.serving.dispatch"),
    },
)
