"""Models in worker processes: load, predict, unload. `Models` is the front door."""

from mlpkit.serving.models import Models
from mlpkit.serving.view import ModelView

__all__ = ["ModelView", "Models"]
