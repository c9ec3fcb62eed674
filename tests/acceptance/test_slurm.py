"""Trainings on a real Slurm, with the settings that the documentation shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlpkit.client import Client
from tests.acceptance.conftest import Start
from tests.acceptance.service import gone
from tests.acceptance.test_launch import process_of, train
from tests.docs.pages import DOCS
from tests.impossible import impossible
from tests.servers import LONG, Unavailable, wait_until
from tests.servers.slurm import Slurm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    try:
        batch_system = Slurm()
    except Unavailable as reason:
        impossible(reason)
    with batch_system:
        yield batch_system


@pytest.fixture
def client(start: Start, slurm: Slurm, folder: Path) -> Client:
    page = (DOCS / "guide" / "ray.md").read_text()
    settings = dict(re.findall(r"^export (MLPKIT_\w+)='?(.*?)'?$", page, re.MULTILINE))
    assert settings["MLPKIT_ENGINE"] == "launch"
    assert settings["MLPKIT_LAUNCH"].startswith("sbatch")
    # The batch system keeps what its jobs print in the folder in which they were submitted.
    return start("far", {**settings, **slurm.environment, "SBATCH_OUTPUT": f"{folder}/slurm-%j.out"}).client


def test_slurm_runs_a_job_and_its_model_is_served(client: Client, slurm: Slurm, folder: Path) -> None:
    job = train(client, folder)
    process_of(folder, job)
    assert slurm.run("squeue", "--noheader", "--format=%T").split() == ["RUNNING"]

    (folder / "go").touch()
    job.wait(LONG)

    wait_until(lambda: not slurm.run("squeue", "--noheader"), "Slurm has no job any more")
    assert "a line of train" in client.log(job.model_id)
    client.load("far", job.model_id)
    assert client.predict(job.model_id, {}) == job.model_id


def test_a_cancel_ends_the_job_of_slurm(client: Client, slurm: Slurm, folder: Path) -> None:
    job = train(client, folder, "stuck")
    process = process_of(folder, job)

    job.cancel()

    wait_until(lambda: gone(process), "its process has ended")
    wait_until(lambda: not slurm.run("squeue", "--noheader"), "Slurm has no job any more")
    assert job.status().message == "cancelled"


def test_a_job_that_waits_in_slurm_says_so_and_can_be_cancelled(client: Client, slurm: Slurm, folder: Path) -> None:
    slurm.run("scontrol", "update", "PartitionName=all", "State=DOWN")
    try:
        job = train(client, folder)
        wait_until(lambda: "PENDING" in slurm.run("squeue", "--noheader", "--format=%T"), "Slurm has the job")
        wait_until(lambda: job.status().message == "waiting for the scheduler to start it", "the status says why")

        job.cancel()

        wait_until(lambda: not slurm.run("squeue", "--noheader"), "Slurm has no job any more")
    finally:
        slurm.run("scontrol", "update", "PartitionName=all", "State=UP")


def test_a_job_that_an_operator_ends_in_slurm_runs_again(client: Client, slurm: Slurm, folder: Path) -> None:
    job = train(client, folder)
    first = process_of(folder, job)

    slurm.run("scancel", *slurm.run("squeue", "--noheader", "--format=%A").split())

    wait_until(lambda: gone(first), "its process has ended")
    process_of(folder, job, runs=2)
    (folder / "go").touch()
    job.wait(LONG)
