"""How trainings end that do not end by themselves: killed, cancelled, too slow. The service goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from mlpkit.client import Client, JobHandle
from mlpkit.errors import TrainFailed
from tests.acceptance.conftest import Start
from tests.acceptance.service import gone
from tests.servers import LONG, wait_until

pytestmark = pytest.mark.slow


def processes_of(folder: Path, job: JobHandle) -> list[psutil.Process]:
    """The training process and what it has started, once it runs."""
    file = folder / f"{job.model_id}.pids"
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "the job runs")
    return [psutil.Process(int(pid)) for pid in file.read_text().split()]


def end_of(job: JobHandle) -> str:
    """The message of a job that ends with an error."""
    with pytest.raises(TrainFailed) as failed:
        job.wait(LONG)
    return str(failed.value)


def assert_works(client: Client, folder: Path) -> None:
    """The service still trains, loads and predicts."""
    for name in ("go-train", "go-load"):
        (folder / name).touch()
    job = client.train("patient", parameters={"folder": str(folder)})
    job.wait(LONG)
    client.load("patient", job.model_id)
    assert client.predict(job.model_id, {"word": "yes"}) == "YES"


def test_killed_training_is_an_error_that_a_person_understands(start: Start, folder: Path) -> None:
    service = start("patient")
    job = service.client.train("patient", parameters={"folder": str(folder)})
    training, grandchild = processes_of(folder, job)

    os.kill(training.pid, signal.SIGKILL)

    message = end_of(job)
    assert "the training process was killed by SIGKILL" in message
    assert "out of memory" in message
    wait_until(lambda: gone(grandchild), "what the training had started is gone")
    assert f"job [{job.model_id}] of patient ended: error: {message}" in service.log
    assert service.client.job_view(job.model_id).message == message
    assert_works(service.client, folder)


def test_cancelled_training_is_gone_running_or_waiting(start: Start, folder: Path) -> None:
    client = start("patient", {"MLP_TRAIN_TASK_NUM": "1"}).client
    running, first, second = (client.train("patient", parameters={"folder": str(folder)}) for _ in range(3))
    processes = processes_of(folder, running)
    assert (first.status().status, first.status().queue_position) == ("init", 1)
    assert (second.status().status, second.status().queue_position) == ("init", 2)

    first.cancel()
    assert end_of(first) == "cancelled"
    assert second.status().queue_position == 1
    running.cancel()
    assert end_of(running) == "cancelled"
    assert all(gone(each) for each in processes)

    processes_of(folder, second)
    (folder / "go-train").touch()
    second.wait(LONG)
    assert not (folder / f"{first.model_id}.pids").exists()
    assert_works(client, folder)


def test_start_of_a_waiting_training_is_estimated_also_after_a_restart(start: Start, folder: Path) -> None:
    service = start("patient", {"MLP_TRAIN_TASK_NUM": "1"})

    def waiting_job() -> JobHandle:
        """A job that waits for another one."""
        processes_of(folder, service.client.train("patient", parameters={"folder": str(folder)}))
        return service.client.train("patient", parameters={"folder": str(folder)})

    job = waiting_job()
    assert (job.status().queue_position, job.status().estimated_start) == (1, None)
    (folder / "go-train").touch()
    job.wait(LONG)
    (folder / "go-train").unlink()

    job = waiting_job()
    before = time.time()
    start_of_job = job.status().estimated_start
    assert start_of_job is not None
    assert start_of_job >= before
    assert service.client.job_view(job.model_id).estimated_start is not None
    service.stop()

    client = start("patient", {"MLP_TRAIN_TASK_NUM": "1"}).client
    wait_until(lambda: client.job_view(job.model_id).estimated_start is not None, "it is estimated")


def test_training_past_its_time_limit_is_killed(start: Start, folder: Path) -> None:
    client = start("patient").client
    job = client.train("hasty", parameters={"folder": str(folder)})
    processes = processes_of(folder, job)

    assert "longer than its time limit of 1 s (timeout=)" in end_of(job)

    assert all(gone(each) for each in processes)
    assert_works(client, folder)
