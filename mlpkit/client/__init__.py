"""The client of a service: `Client`, `JobHandle` and their answers.

It speaks to any service that keeps the platform's protocol; the routes beyond it (`jobs`, `models`, `cancel`,
`ready`) need mlpkit.
"""

from mlpkit.client.answers import (
    AliasView,
    JobStatus,
    JobView,
    ModelView,
    Monitor,
    NodeInfo,
    Readiness,
    StoredModelsView,
    StoredModelView,
    data_of,
)
from mlpkit.client.client import Client, JobHandle
from mlpkit.client.files import LocalFiles, TrainRequest, upload
from mlpkit.client.transport import Answer, Transport

__all__ = [
    "AliasView",
    "Answer",
    "Client",
    "JobHandle",
    "JobStatus",
    "JobView",
    "LocalFiles",
    "ModelView",
    "Monitor",
    "NodeInfo",
    "Readiness",
    "StoredModelView",
    "StoredModelsView",
    "TrainRequest",
    "Transport",
    "data_of",
    "upload",
]
