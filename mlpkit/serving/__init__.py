"""Models in worker processes: load, predict, unload. `Models` is the front door."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpkit import lazy_names

# A worker, which is `python -m mlpkit.serving`, needs none of them.
if TYPE_CHECKING:
    from mlpkit.serving.aliases import Alias as Alias
    from mlpkit.serving.aliases import Aliases as Aliases
    from mlpkit.serving.aliases import alias_name as alias_name
    from mlpkit.serving.dispatch import Counts as Counts
    from mlpkit.serving.dispatch import OnOutcome as OnOutcome
    from mlpkit.serving.dispatch import OnPart as OnPart
    from mlpkit.serving.dispatch import Outcome as Outcome
    from mlpkit.serving.dispatch import PendingPrediction as PendingPrediction
    from mlpkit.serving.model import EvictedModel as EvictedModel
    from mlpkit.serving.model import MissingModel as MissingModel
    from mlpkit.serving.model import ModelWord as ModelWord
    from mlpkit.serving.model import WorkerInfo as WorkerInfo
    from mlpkit.serving.models import Models as Models
    from mlpkit.serving.pool import pause_after as pause_after
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "mlpkit.serving.aliases": "Alias Aliases alias_name",
            "mlpkit.serving.dispatch": "Counts OnOutcome OnPart Outcome PendingPrediction",
            "mlpkit.serving.model": "EvictedModel MissingModel ModelWord WorkerInfo",
            "mlpkit.serving.models": "Models",
            "mlpkit.serving.pool": "pause_after",
        },
    )
