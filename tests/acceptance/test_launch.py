"""Trainings that a command starts: here it starts processes of this machine, as a batch system would elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest

from mlpkit.client import Client, JobHandle
from mlpkit.errors import TrainFailed
from mlpkit.storage import Storage
from tests.acceptance.conftest import Start
from tests.acceptance.service import gone
from tests.servers import LONG, S3Server, wait_until

pytestmark = pytest.mark.slow

LAUNCH = {
    "MLPKIT_ENGINE": "launch",
    "MLPKIT_LAUNCH": "sh -c 'setsid {command} >/dev/null 2>&1 & echo launched $!'",
    "MLPKIT_LAUNCH_CANCEL": "sh -c 'kill -9 {id}'",
}


def train(client: Client, folder: Path, algorithm: str = "far") -> JobHandle:
    return client.train(algorithm, parameters={"folder": str(folder)})


def process_of(folder: Path, job: JobHandle, runs: int = 1) -> psutil.Process:
    """The process of the job's last run, once there were so many."""
    file = folder / f"{job.model_id}.pids"
    wait_until(lambda: file.exists() and file.read_text().count("\n") >= runs, "the job runs")
    return psutil.Process(int(file.read_text().splitlines()[-1].split()[0]))


def test_a_launched_job_reports_and_its_model_is_served(
    start: Start, s3: S3Server, store: Storage, folder: Path
) -> None:
    service = start("far", LAUNCH)
    job = train(service.client, folder)
    process = process_of(folder, job)

    wait_until(lambda: "a line of train" in service.client.log(job.model_id), "its lines arrive")
    wait_until(
        lambda: (shown := job.status().progress) is not None and shown["fraction"] == 0.5, "its progress arrives"
    )
    notes = store.list("ml-platform-model/mlpkit-launch")
    assert {"order", "hello", "lease"} <= {note.path.rpartition("/")[2] for note in notes}
    for note in notes:
        assert s3.secret_key.encode() not in store.read(note.path, 1 << 30)[1]

    (folder / "go").touch()
    job.wait(LONG)
    wait_until(lambda: gone(process), "its process has ended")
    wait_until(lambda: not list(store.list("ml-platform-model/mlpkit-launch")), "the notes are removed")
    service.client.load("far", job.model_id)
    assert service.client.predict(job.model_id, {}) == job.model_id


def test_a_cancel_ends_a_launched_job_that_is_stuck_in_c_code(start: Start, folder: Path) -> None:
    client = start("far", LAUNCH).client
    job = train(client, folder, "stuck")
    process = process_of(folder, job)

    job.cancel()

    wait_until(lambda: gone(process), "its process has ended")
    assert job.status().message == "cancelled"


def test_a_cancel_without_a_command_ends_a_launched_job_too(start: Start, folder: Path) -> None:
    client = start("far", {**LAUNCH, "MLPKIT_LAUNCH_CANCEL": ""}).client
    job = train(client, folder, "stuck")
    process = process_of(folder, job)

    job.cancel()

    assert gone(process)
    assert job.status().message == "cancelled"


def test_a_restarted_service_ends_what_it_had_launched_and_runs_it_again(start: Start, folder: Path) -> None:
    service = start("far", LAUNCH)
    job = train(service.client, folder)
    first = process_of(folder, job)
    service.kill()

    client = start("far", LAUNCH).client
    process_of(folder, job, runs=2)

    assert gone(first)
    (folder / "go").touch()
    JobHandle(client, "far", job.model_id).wait(LONG)


def test_a_command_that_fails_is_the_error_of_the_job(start: Start, folder: Path) -> None:
    client = start("far", {**LAUNCH, "MLPKIT_LAUNCH": "sh -c 'echo no such partition >&2; exit 3' {command}"}).client
    job = train(client, folder)

    with pytest.raises(TrainFailed) as failed:
        job.wait(LONG)

    assert re.search(
        r"could not be launched \(MLPKIT_LAUNCH\): sh ended with code 3: no such partition", str(failed.value)
    )
