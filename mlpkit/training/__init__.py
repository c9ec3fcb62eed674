"""Training jobs: the queue, the engines, and the services of `train`.

The front door of this folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpkit import lazy_names

# A script that names `TrainData` is imported by every worker, which needs neither the queue nor its journal.
if TYPE_CHECKING:
    from mlpkit.training.checkpoint import Checkpoint as Checkpoint
    from mlpkit.training.data import TrainData as TrainData
    from mlpkit.training.data import takes as takes
    from mlpkit.training.evaluation import Evaluation as Evaluation
    from mlpkit.training.evaluation import ModelUnderTest as ModelUnderTest
    from mlpkit.training.events import Event as Event
    from mlpkit.training.events import Listener as Listener
    from mlpkit.training.events import job_data as job_data
    from mlpkit.training.events import progress_data as progress_data
    from mlpkit.training.job import LONGEST_ID as LONGEST_ID
    from mlpkit.training.job import STATES as STATES
    from mlpkit.training.job import Job as Job
    from mlpkit.training.job import JobOutcome as JobOutcome
    from mlpkit.training.job import State as State
    from mlpkit.training.job import TrainJob as TrainJob
    from mlpkit.training.job import new_model_id as new_model_id
    from mlpkit.training.journal import JobFilter as JobFilter
    from mlpkit.training.local import LocalEngine as LocalEngine
    from mlpkit.training.order import with_order as with_order
    from mlpkit.training.progress import BarLines as BarLines
    from mlpkit.training.progress import BarState as BarState
    from mlpkit.training.progress import Progress as Progress
    from mlpkit.training.progress import Snapshot as Snapshot
    from mlpkit.training.progress import read_bar as read_bar
    from mlpkit.training.queue import TrainingQueue as TrainingQueue
    from mlpkit.training.run import check_job as check_job
    from mlpkit.training.run import destination as destination
    from mlpkit.training.run import read_evaluation as read_evaluation
    from mlpkit.training.run import report_in as report_in
    from mlpkit.training.run import run_train as run_train
    from mlpkit.training.run import takes_checkpoint as takes_checkpoint
    from mlpkit.training.webhook import Webhook as Webhook
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "mlpkit.training.checkpoint": "Checkpoint",
            "mlpkit.training.data": "TrainData takes",
            "mlpkit.training.evaluation": "Evaluation ModelUnderTest",
            "mlpkit.training.events": "Event Listener job_data progress_data",
            "mlpkit.training.job": "LONGEST_ID STATES Job JobOutcome State TrainJob new_model_id",
            "mlpkit.training.journal": "JobFilter",
            "mlpkit.training.local": "LocalEngine",
            "mlpkit.training.order": "with_order",
            "mlpkit.training.progress": "BarLines BarState Progress Snapshot read_bar",
            "mlpkit.training.queue": "TrainingQueue",
            "mlpkit.training.run": "check_job destination read_evaluation report_in run_train takes_checkpoint",
            "mlpkit.training.webhook": "Webhook",
        },
    )
