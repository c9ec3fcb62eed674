"""Training jobs: a queue that loses nothing, a process for every job, and the services of `train` handlers.

The front door of this folder.
"""

from mlpkit.training.data import TrainData
from mlpkit.training.job import LONGEST_ID, STATES, Job, State, TrainJob, new_model_id
from mlpkit.training.progress import Progress, Snapshot
from mlpkit.training.queue import TrainingQueue
from mlpkit.training.run import Outcome, check_job, destination, run_train

__all__ = [
    "LONGEST_ID",
    "STATES",
    "Job",
    "Outcome",
    "Progress",
    "Snapshot",
    "State",
    "TrainData",
    "TrainJob",
    "TrainingQueue",
    "check_job",
    "destination",
    "new_model_id",
    "run_train",
]
