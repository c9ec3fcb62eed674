"""What outlives the service: waiting jobs and loaded models do, processes do not."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from mlpkit.client import JobHandle
from mlpkit.errors import MlpkitError, TrainFailed
from tests.acceptance.conftest import Start
from tests.acceptance.service import gone
from tests.servers import LONG, wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_restarted_service_has_its_models_and_its_jobs(how: signal.Signals, start: Start, folder: Path) -> None:
    service = start("patient", {"MLP_TRAIN_TASK_NUM": "1", "MLPKIT_SHUTDOWN_GRACE": "1"})
    client = service.client
    for name in ("go-train", "go-load"):
        (folder / name).touch()
    model = client.train("patient", parameters={"folder": str(folder)})
    model.wait(LONG)
    client.load("patient", model.model_id)
    (folder / "go-train").unlink()
    jobs = [client.train("patient", parameters={"folder": str(folder)}) for _ in range(4)]
    pids = folder / f"{jobs[0].model_id}.pids"
    wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"), "the first job runs")
    if how is signal.SIGTERM:
        code, children = service.terminate()
        assert code == 0
        assert all(gone(each) for each in children)
    else:
        children = service.kill()
        wait_until(lambda: all(gone(each) for each in children), "no process is left")
    assert {int(pid) for pid in pids.read_text().split()} < {each.pid for each in children}

    again = start("patient", {"MLP_TRAIN_TASK_NUM": "1"})
    assert again.client.monitor().load == {model.model_id: [0]}
    assert again.client.predict(model.model_id, {"word": "yes"}) == "YES"
    assert (folder / "loads").read_text().split() == [model.model_id] * 2
    handles = [JobHandle(again.client, "patient", each.model_id) for each in jobs]
    assert [each.status().status for each in handles[1:]] == ["init"] * 3
    assert [each.status().queue_position for each in handles[1:]] == [1, 2, 3]

    wait_until(lambda: len(pids.read_text().split()) == 4, "the first job runs again")
    assert handles[0].status().status == "training"
    (folder / "go-train").touch()
    for each in handles:
        each.wait(LONG)
    assert [again.client.job_view(each.model_id).attempt for each in handles] == [
        2 if how is signal.SIGKILL else 1,
        1,
        1,
        1,
    ]


def test_job_that_runs_at_sigterm_may_end_and_nothing_new_begins(start: Start, folder: Path) -> None:
    service = start("patient", {"MLPKIT_SHUTDOWN_GRACE": "30"})
    job = service.client.train("patient", parameters={"folder": str(folder)})
    wait_until((folder / f"{job.model_id}.pids").exists, "the job runs")

    service.process.terminate()
    wait_until(lambda: service.client.ready().reasons == ["draining"], "the service drains")
    with pytest.raises(MlpkitError, match="the service is stopping"):
        service.client.train("patient", parameters={"folder": str(folder)})
    assert job.status().status == "training"
    (folder / "go-train").touch()

    assert service.process.wait(LONG) == 0
    again = start("patient").client
    assert [(each.model_id, each.state) for each in again.jobs()] == [(job.model_id, "completed")]


def test_job_that_may_not_run_again_says_so_after_a_crash(start: Start, folder: Path) -> None:
    service = start("patient")
    job = service.client.train("hasty", parameters={"folder": str(folder)})
    wait_until((folder / f"{job.model_id}.pids").exists, "the job runs")
    service.kill()

    again = JobHandle(start("patient").client, "hasty", job.model_id)
    with pytest.raises(TrainFailed, match=r"the service ended while it ran \(attempt 1 of 1, max_attempts=\)"):
        again.wait(LONG)


def test_killed_worker_is_replaced_with_its_models(start: Start, folder: Path) -> None:
    service = start("patient")
    for name in ("go-train", "go-load"):
        (folder / name).touch()
    job = service.client.train("patient", parameters={"folder": str(folder)})
    job.wait(LONG)
    service.client.load("patient", job.model_id)
    worker: psutil.Process = service.worker()

    worker.kill()

    wait_until(lambda: (folder / "loads").read_text().split() == [job.model_id] * 2, "the model is loaded again")
    service.wait_ready()
    assert service.client.predict(job.model_id, {"word": "yes"}) == "YES"
