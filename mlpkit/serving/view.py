"""What `/models` shows of a model."""

from __future__ import annotations

import msgspec

from mlpkit.serving.model import Model, State


class ModelView(msgspec.Struct):
    """A model at one moment. `since` is in seconds since the epoch, `seconds` is the time in the user's code."""

    model_id: str
    algorithm: str
    model_path: str | None
    state: State
    workers: list[int]
    since: float
    waiting: int
    in_flight: int
    predictions: int
    failures: int
    seconds: float
    problem: str = ""


def view_of(model: Model) -> ModelView:
    """The model as it stands now."""
    counts = model.counts
    return ModelView(
        model.model_id,
        model.algorithm.name,
        model.model_path,
        model.state,
        [replica.slot.index for replica in model.replicas],
        model.since,
        len(model.waiting),
        sum(replica.busy for replica in model.replicas),
        counts.predictions,
        counts.failures,
        counts.seconds,
        model.problem,
    )
