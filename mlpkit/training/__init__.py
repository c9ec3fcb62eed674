"""Training jobs: the queue, the engines, and the services of `train`.

The front door of this folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpkit import front_door

if TYPE_CHECKING:
    from mlpkit.training.checkpoint import Checkpoint
    from mlpkit.training.data import TrainData, takes
    from mlpkit.training.evaluation import Evaluation, ModelUnderTest
    from mlpkit.training.events import Event, Listener, job_data, progress_data
    from mlpkit.training.job import LONGEST_ID, STATES, Job, JobOutcome, State, TrainJob, new_model_id
    from mlpkit.training.journal import JobFilter
    from mlpkit.training.local import LocalEngine
    from mlpkit.training.order import with_order
    from mlpkit.training.progress import BarLines, BarState, Progress, Snapshot, read_bar
    from mlpkit.training.queue import TrainingQueue
    from mlpkit.training.run import check_job, destination, read_evaluation, run_train, takes_checkpoint
    from mlpkit.training.webhook import Webhook

__all__ = [
    "LONGEST_ID",
    "STATES",
    "BarLines",
    "BarState",
    "Checkpoint",
    "Evaluation",
    "Event",
    "Job",
    "JobFilter",
    "JobOutcome",
    "Listener",
    "LocalEngine",
    "ModelUnderTest",
    "Progress",
    "Snapshot",
    "State",
    "TrainData",
    "TrainJob",
    "TrainingQueue",
    "Webhook",
    "check_job",
    "destination",
    "job_data",
    "new_model_id",
    "progress_data",
    "read_bar",
    "read_evaluation",
    "run_train",
    "takes",
    "takes_checkpoint",
    "with_order",
]

# A script that names `TrainData` is imported by every worker, which needs neither the queue nor its journal.
__getattr__ = front_door(
    __name__,
    {
        "Checkpoint": "mlpkit.training.checkpoint",
        **dict.fromkeys(("TrainData", "takes"), "mlpkit.training.data"),
        **dict.fromkeys(("Event", "Listener", "job_data", "progress_data"), "mlpkit.training.events"),
        **dict.fromkeys(
            ("LONGEST_ID", "STATES", "Job", "JobOutcome", "State", "TrainJob", "new_model_id"),
            "mlpkit.training.job",
        ),
        **dict.fromkeys(("BarLines", "BarState", "Progress", "Snapshot", "read_bar"), "mlpkit.training.progress"),
        "JobFilter": "mlpkit.training.journal",
        "LocalEngine": "mlpkit.training.local",
        "TrainingQueue": "mlpkit.training.queue",
        "Webhook": "mlpkit.training.webhook",
        "with_order": "mlpkit.training.order",
        **dict.fromkeys(("Evaluation", "ModelUnderTest"), "mlpkit.training.evaluation"),
        **dict.fromkeys(
            ("check_job", "destination", "read_evaluation", "run_train", "takes_checkpoint"), "mlpkit.training.run"
        ),
    },
)
