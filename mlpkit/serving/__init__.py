"""Models in worker processes: load, predict, unload. `Models` is the front door."""

from __future__ import annotations

from mlpkit import LazyImports

# A worker, which is `python -m mlpkit.serving`, needs none of them.
with LazyImports(__name__):
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
