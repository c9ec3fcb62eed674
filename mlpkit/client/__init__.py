"""The client of a service: `Client`, `JobHandle` and their answers.

It speaks to any service that keeps the platform's protocol; the routes beyond it (`jobs`, `models`, `cancel`,
`ready`) need mlpkit.
"""

from mlpkit.client.answers import (
    AliasView,
    JobStatus,
    JobView,
    MissingModelView,
    ModelsView,
    ModelView,
    Monitor,
    NodeInfo,
    Readiness,
    StoredModelsView,
    StoredModelView,
    UploadedFile,
    data_of,
)
from mlpkit.client.client import Client, JobHandle
from mlpkit.client.events import JobEvent, LogEvent, ModelEvent, ProgressEvent, ResetEvent, ServiceEvent
from mlpkit.client.files import LocalFiles, TrainRequest, upload
from mlpkit.client.transport import Answer, StreamedAnswer, Transport

__all__ = [
    "AliasView",
    "Answer",
    "Client",
    "JobEvent",
    "JobHandle",
    "JobStatus",
    "JobView",
    "LocalFiles",
    "LogEvent",
    "MissingModelView",
    "ModelEvent",
    "ModelView",
    "ModelsView",
    "Monitor",
    "NodeInfo",
    "ProgressEvent",
    "Readiness",
    "ResetEvent",
    "ServiceEvent",
    "StoredModelView",
    "StoredModelsView",
    "StreamedAnswer",
    "TrainRequest",
    "Transport",
    "UploadedFile",
    "data_of",
    "upload",
]
