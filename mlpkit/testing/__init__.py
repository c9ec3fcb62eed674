"""For your tests: a whole service in the test's process, and fakes.

    def test_it_learns() -> None:
        with TestService(app) as service:
            model_id = service.trained("sentiment", data="reviews.tsv")
            service.client.load("sentiment", model_id)
            assert service.client.predict(model_id, {"sentence": "lovely"})[0]["label"] == "good"

A handler is a plain function, so `train(data=FakeTrainData(rows), out=fake_model_dir(tmp_path), ...)` is a test too.
The pytest plugin (installed with mlpkit) has the same as fixtures; `pytest --fixtures` lists them under
`mlpkit.testing.plugin`.
"""

from mlpkit.testing.fakes import (
    FakeCheckpoint,
    FakeTrainData,
    RecordedLog,
    RecordedProgress,
    fake_model_dir,
    fake_storage,
    fake_train_job,
)
from mlpkit.testing.service import TestService

__all__ = [
    "FakeCheckpoint",
    "FakeTrainData",
    "RecordedLog",
    "RecordedProgress",
    "TestService",
    "fake_model_dir",
    "fake_storage",
    "fake_train_job",
]
