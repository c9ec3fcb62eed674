"""Checkpoints in the test kit: with the fakes, and with a whole service."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpkit import App, Checkpoint, ModelDir, Progress
from mlpkit.errors import ArgumentError, TrainFailed, TrainingStopped
from mlpkit.testing import FakeCheckpoint, RecordedProgress, TestService, fake_model_dir
from tests.servers import wait_until

app = App("count")
guarded = app.algorithm("guarded")


@app.train(max_attempts=2)
def train(parameters: dict[str, int], checkpoint: Checkpoint, out: ModelDir, progress: Progress) -> None:
    file = checkpoint / "count"
    count = int(file.read_text()) if checkpoint.resumed else 0
    for number in progress.track(range(count, 10), "count", total=10, done=count):
        while number == parameters.get("wait") and not progress.stopping:
            pass
        file.write_text(str(number + 1))
        checkpoint.save()
    (out / "count").write_text(file.read_text())


guarded.train(train)


@guarded.delete
def delete(model_id: str) -> None:
    pass


def test_a_train_function_is_interrupted_and_continues_by_hand(tmp_path: Path) -> None:
    progress = RecordedProgress()
    first = FakeCheckpoint(tmp_path / "checkpoint", stop_at=3, progress=progress)
    assert not first.resumed
    with pytest.raises(TrainingStopped):
        train({}, first, fake_model_dir(tmp_path / "model"), progress)
    assert (first / "count").read_text() == "3"
    assert progress.stopping

    second = FakeCheckpoint(tmp_path / "checkpoint")
    assert second.resumed
    train({}, second, fake_model_dir(tmp_path / "model"), RecordedProgress())
    assert second.saves == 7
    assert (tmp_path / "model" / "count").read_text() == "10"


def test_a_save_shows_how_far_the_training_is(tmp_path: Path) -> None:
    progress = RecordedProgress()
    checkpoint = FakeCheckpoint(tmp_path / "checkpoint", progress=progress)
    (checkpoint / "state").touch()
    shown = []
    checkpoint._upload = lambda fraction: shown.append(progress.snapshot())
    for step in progress.track(range(4), "add"):
        if step == 2:
            checkpoint.save()
    assert [(snapshot.stage, snapshot.fraction) for snapshot in shown] == [("save checkpoint", 0.5)]


def test_saving_nothing_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"the checkpoint is empty: write your state into .* before you call save"):
        FakeCheckpoint(tmp_path / "checkpoint").save()


def test_a_service_is_asked_to_end_a_job_softly_and_another_continues_it() -> None:
    with TestService(app) as service:
        job = service.client.train("count", parameters={"wait": 6})
        wait_until(lambda: (job.status().progress or {}).get("done") == 6, "the job waits")
        job.cancel(soft=True)
        with pytest.raises(TrainFailed, match="cancelled; its checkpoint is kept"):
            job.wait()
        again = service.client.train("count", extend={"resume_from": job.model_id}, parameters={"wait": 8})
        wait_until(lambda: (again.status().progress or {}).get("done") == 8, "the job waits")
        status = again.status()
        assert (status.attempt, status.message) == (1, f"attempt 1, resumed at 60 % of model [{job.model_id}]")
        assert service.client.job_view(again.model_id).message == status.message
        again.cancel()
        assert _left(service, again.model_id) == []
        assert _left(service, job.model_id) != []
        service.client.delete("count", job.model_id)
        assert _left(service, job.model_id) == []


def test_a_delete_hook_need_not_know_of_the_checkpoint() -> None:
    with TestService(app) as service:
        job = service.client.train("guarded", parameters={"wait": 6})
        wait_until(lambda: (job.status().progress or {}).get("done") == 6, "the job waits")
        job.cancel(soft=True)
        with pytest.raises(TrainFailed):
            job.wait()
        assert _left(service, job.model_id) != []
        service.client.delete("guarded", job.model_id)
        assert _left(service, job.model_id) == []


def _left(service: TestService, model_id: str) -> list[str]:
    return [found.key for found in service.storage.list(f"ml-platform-model/{model_id}")]
