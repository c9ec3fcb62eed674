"""The server is killed with SIGKILL while everything is going on: nothing is lost, nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from mlpkit import Client
from mlpkit.client import JobHandle
from mlpkit.errors import MlpkitError, TrainFailed
from tests.acceptance.service import gone
from tests.conftest import Report
from tests.faults.conftest import Start, notes, order, pid_of, warnings
from tests.servers import LONG, wait_until

WAITING = 20
ORPHANS_GONE = 2.0
KILLS = 20


def pids(folder: Path, model_id: str) -> list[int]:
    """The training processes of a job and what they have started, in the order of its attempts."""
    return [int(pid) for line in notes(folder / f"train {model_id}") for pid in line.split()]


def train(client: Client, algorithm: str, do: str = "") -> str:
    return client.train(algorithm, parameters={"do": do}).model_id


def test_killed_server_leaves_no_process_and_loses_no_job_and_no_model(
    start: Start, folder: Path, report: Report
) -> None:
    service = start({"MLP_TRAIN_TASK_NUM": "3"})
    client = service.client
    models = {"shared": "faulty", "isolated": "alone"}
    for model_id, algorithm in models.items():
        client.load(algorithm, model_id)
    once, twice, stuck = train(client, "faulty"), train(client, "again"), train(client, "again", "hold")
    wait_until(lambda: all(len(pids(folder, each)) == 2 for each in (once, twice, stuck)), "three jobs run")
    waiting = [train(client, "faulty", "nothing") for _ in range(WAITING)]
    family = service.family()[1:]
    assert {pid for each in (once, twice, stuck) for pid in pids(folder, each)} < {each.pid for each in family}

    service.kill()
    began = time.monotonic()
    wait_until(lambda: all(gone(each) for each in family), "no process is left", ORPHANS_GONE)
    report(f"{len(family)} processes, one stuck in C code, were gone {time.monotonic() - began:.2f} s after kill -9")

    service = start({"MLP_TRAIN_TASK_NUM": "3"})
    client = service.client
    jobs = {each.model_id: each for each in client.jobs()}
    assert set(jobs) == {once, twice, stuck, *waiting}
    assert (jobs[once].state, jobs[once].message) == (
        "error",
        "the service ended while it ran (attempt 1 of 1, max_attempts=)",
    )
    wait_until(lambda: all(len(pids(folder, each)) == 4 for each in (twice, stuck)), "two jobs run again")
    assert all(gone_pid(pid) for each in (twice, stuck) for pid in pids(folder, each)[:2])
    assert [client.job_view(each).attempt for each in (twice, stuck)] == [2, 2]
    assert {model_id: client.predict(model_id, order())["model_id"] for model_id in models} == {
        "shared": "shared",
        "isolated": "isolated",
    }

    (folder / "go").touch()
    JobHandle(client, "again", twice).wait(LONG)
    for each in waiting[:4]:
        JobHandle(client, "faulty", each).wait(LONG)
        assert client.job_view(each).attempt == 1
    os.kill(pids(folder, stuck)[2], signal.SIGKILL)
    with pytest.raises(TrainFailed, match="SIGKILL"):
        JobHandle(client, "again", stuck).wait(LONG)


def test_service_starts_although_its_small_files_are_damaged(start: Start, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name, damaged in {
        "models.json": b'[{"algorithm": "\xff", "model_id": "m"}]',
        "aliases.json": b'[{"algorithm": "\xff"}]',
        "memory.json": b'{"\xff": 1}',
    }.items():
        (home / name).write_bytes(damaged)
    service = start()
    for name in ("models.json", "aliases.json", "memory.json"):
        (line,) = [line for line in service.log.splitlines() if name in line]
        assert "cannot be read" in line
        assert "byte 0xff is not valid UTF-8" in line
    assert "aliases.json cannot be read" in str(warnings(service.client))
    service.client.load("faulty", "m")
    assert pid_of(service.client, "m")


@pytest.mark.slow
def test_server_killed_again_and_again_under_load_keeps_every_accepted_job_and_runs_none_twice_at_a_time(
    start: Start, folder: Path, callers: ThreadPoolExecutor, report: Report
) -> None:
    chance = random.Random(2026)
    accepted: list[str] = []

    def submit(client: Client, algorithm: str) -> None:
        """Submits a job whenever the last one has begun, until the service is gone."""
        with contextlib.suppress(MlpkitError):
            while True:
                model_id = train(client, algorithm, "count")
                accepted.append(model_id)
                while client.status(algorithm, model_id).status == "init":
                    time.sleep(0.01)

    for _ in range(KILLS):
        service = start({"MLP_TRAIN_TASK_NUM": "3"})
        submitting = [callers.submit(submit, service.client, each) for each in ("faulty", "again")]
        before = len(accepted)
        wait_until(lambda before=before: len(accepted) > before, "jobs are accepted")  # type: ignore[misc]
        time.sleep(chance.uniform(0, 1.0))
        service.kill()
        for each in submitting:
            each.result(LONG)

    client = start({"MLP_TRAIN_TASK_NUM": "3"}).client
    wait_until(lambda: all(each.ended is not None for each in client.jobs()), "all have ended")
    jobs = {each.model_id: each for each in client.jobs()}
    lost = [each for each in jobs.values() if each.state == "error"]
    report(f"{KILLS} kills: {len(accepted)} jobs accepted, {len(jobs)} known, {len(lost)} ran when the service ended")
    assert set(accepted) <= set(jobs)
    assert notes(folder / "twice") == []
    assert lost
    for job in jobs.values():
        runs = len(notes(folder / f"runs {job.model_id}"))
        most = {"faulty": 1, "again": 2}[job.algorithm]
        assert runs <= job.attempt <= most, job
        if job.state == "error":
            assert job.message == f"the service ended while it ran (attempt {most} of {most}, max_attempts=)"
        else:
            assert (job.state, runs > 0) == ("completed", True), job


def gone_pid(pid: int) -> bool:
    return not psutil.pid_exists(pid) or gone(psutil.Process(pid))
