"""Training jobs: a queue that loses nothing, a process for every job, and the services of `train` handlers.

The front door of this folder.
"""

from mlpkit.training.data import TrainData
from mlpkit.training.job import Job, State, TrainJob
from mlpkit.training.progress import Progress, Snapshot
from mlpkit.training.queue import TrainingQueue
from mlpkit.training.run import Outcome, check_job, run_train

__all__ = [
    "Job",
    "Outcome",
    "Progress",
    "Snapshot",
    "State",
    "TrainData",
    "TrainJob",
    "TrainingQueue",
    "check_job",
    "run_train",
]
