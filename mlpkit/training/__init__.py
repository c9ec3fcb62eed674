"""Training jobs: the queue, the engines, and the services of `train`.

The front door of this folder.
"""

from __future__ import annotations

from mlpkit import LazyImports

# A script that names `TrainData` is imported by every worker, which needs neither the queue nor its journal.
with LazyImports(__name__):
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
