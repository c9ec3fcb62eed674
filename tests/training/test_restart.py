"""After the service was killed: no job is lost, none runs twice at a time, the journal is readable and true."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mlpkit.errors import SettingsError
from mlpkit.training.journal import Journal
from tests.acceptance.service import running_as
from tests.servers import LONG, until
from tests.training.conftest import OpenQueue, WriteScript, end_of, job

SCRIPT = """
import os, time
from pathlib import Path
from mlpkit import App

app = App("it")
again = app.algorithm("again")

def work(model_id, parameters):
    folder = Path(parameters["folder"])
    with open(folder / f"{model_id}.pids", "a") as pids:
        print(os.getpid(), file=pids)
    while not (folder / "go").exists():
        time.sleep(0.02)

@app.train
def train(model_id: str, parameters: dict):
    work(model_id, parameters)

@again.train(max_attempts=3)
def train_again(model_id: str, parameters: dict):
    work(model_id, parameters)
"""

SERVICE = """
import asyncio, sys
from pathlib import Path
from mlpkit.log import configure
from mlpkit.script import import_app
from mlpkit.settings import Settings
from mlpkit.training import Job, TrainingQueue

async def main(home, target, folder, ids):
    settings = Settings(home=Path(home), train_task_num=2)
    queue = TrainingQueue(import_app(target).build(), target, settings, configure())
    await queue.open()
    for each in ids:
        algorithm, _, model_id = each.partition("/")
        await queue.submit(Job(model_id, algorithm, parameters='{"folder": "%s"}' % folder))
        print("accepted", model_id, flush=True)
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:4], sys.argv[4:]))
"""

WRITER = """
import sys
from pathlib import Path
from mlpkit.training.job import Job
from mlpkit.training.journal import Journal

journal = Journal(Path(sys.argv[1]))
print("open", flush=True)
number = int(sys.argv[2])
while True:
    number += 1
    job = Job(f"m-{number}", "it", parameters='"%s"' % ("x" * 500))
    journal.add(job)
    print(number, "init", flush=True)
    job = job.moved("training", attempt=1)
    journal.update(job)
    print(number, "training", flush=True)
    journal.update(job.moved("completed"))
    print(number, "completed", flush=True)
"""
STATES = ["init", "training", "completed"]


@contextmanager
def service(home: Path, target: str, folder: Path, *ids: str) -> Iterator[subprocess.Popen[str]]:
    """A process that owns a queue, once it has accepted these jobs; killed at the end, if not before."""
    command = [sys.executable, "-c", SERVICE, str(home), target, str(folder), *ids]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            for each in ids:
                assert process.stdout.readline().split() == ["accepted", each.partition("/")[2]]
            yield process
        finally:
            process.kill()


def pids(folder: Path, *model_ids: str) -> list[list[int]]:
    """The processes that have run each job, once every job has run."""
    files = [folder / f"{model_id}.pids" for model_id in model_ids]
    deadline = time.monotonic() + LONG
    while not all(each.exists() and each.read_text().endswith("\n") for each in files):
        assert time.monotonic() < deadline, "the jobs did not start"
        time.sleep(0.02)
    return [[int(pid) for pid in each.read_text().split()] for each in files]


def gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


@pytest.mark.anyio
async def test_killed_service_loses_no_job(
    open_queue: OpenQueue, write_script: WriteScript, home: Path, tmp_path: Path
) -> None:
    target = write_script(SCRIPT)
    waiting = [f"w-{number}" for number in range(20)]
    with service(home, target, tmp_path, "it/once", "again/more", *(f"it/{each}" for each in waiting)) as process:
        (once,), (first,) = pids(tmp_path, "once", "more")
        process.kill()
        process.wait()
        await until(lambda: gone(once) and gone(first), seconds=2)

    async with open_queue(target, train_task_num=2) as queue:
        lost = queue.job("once")
        assert lost is not None
        expected = "the service ended while it ran (attempt 1 of 1, max_attempts=)"
        assert (lost.state, lost.message) == ("error", expected)
        # Two may have begun already; the others wait in the order in which they came.
        positions = [queue.position(each) for each in ["more", *waiting]]
        begun = positions.count(None)
        assert begun <= 2
        assert positions == [None] * begun + list(range(1, 22 - begun))

        (tmp_path / "go").touch()
        again = await end_of(queue, "more")
        assert (again.state, again.attempt) == ("completed", 2)
        for each in waiting[:4]:
            assert (await end_of(queue, each)).state == "completed"
    assert len(pids(tmp_path, "more")[0]) == 2


@pytest.mark.anyio
async def test_job_is_given_up_when_its_attempts_are_used_up(
    open_queue: OpenQueue, write_script: WriteScript, home: Path, tmp_path: Path
) -> None:
    target = write_script(SCRIPT)
    for attempt in range(1, 4):
        with service(home, target, tmp_path, *(["again/m"] if attempt == 1 else [])):
            await until(lambda at_least=attempt: len(pids(tmp_path, "m")[0]) >= at_least)  # type: ignore[misc]

    async with open_queue(target) as queue:
        ended = await end_of(queue, "m")
    expected = "the service ended while it ran (attempt 3 of 3, max_attempts=)"
    assert (ended.state, ended.message) == ("error", expected)
    assert len(pids(tmp_path, "m")[0]) == 3


@pytest.mark.anyio
async def test_job_does_not_run_while_an_older_process_still_runs_it(open_queue: OpenQueue, tmp_path: Path) -> None:
    async with open_queue(SCRIPT, train_task_num=1) as queue:
        await queue.submit(job("first", folder=str(tmp_path)))
        await queue.submit(job("m", folder=str(tmp_path)))
        await until(queue.log_path("first").exists)
        with queue.log_path("m").open("w") as held_elsewhere:
            fcntl.flock(held_elsewhere, fcntl.LOCK_EX)
            (tmp_path / "go").touch()
            ended = await end_of(queue, "m")

    assert ended.message == "another process still runs this job, so it was not run again"
    assert not (tmp_path / "m.pids").exists()


@pytest.mark.anyio
async def test_home_belongs_to_one_service_at_a_time(
    open_queue: OpenQueue, write_script: WriteScript, home: Path, tmp_path: Path
) -> None:
    target = write_script(SCRIPT)
    expected = f"the home {home} is in use by another service"
    with service(home, target, tmp_path, "it/m"), pytest.raises(SettingsError, match=expected):
        async with open_queue(target):
            pass
    async with open_queue(target) as queue:
        assert queue.job("m") is not None


@pytest.mark.slow
def test_journal_killed_at_any_moment_is_readable_and_true(tmp_path: Path) -> None:
    home = tmp_path / "home"
    chance = random.Random(2026)
    said: dict[int, str] = {}
    for _ in range(50):
        command = [sys.executable, "-c", WRITER, str(home), str(max(said, default=0))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "open\n"
            time.sleep(chance.uniform(0, 0.1))
            writer.send_signal(signal.SIGKILL)
            for line in writer.stdout:
                # Killed in the middle of a line, it has not said anything yet.
                if line.endswith("\n"):
                    name, _, word = line.strip().partition(" ")
                    said[int(name)] = word

        journal = Journal(home)
        found = {int(each.model_id[2:]): each.state for each in journal.jobs()}
        journal.close()
        newest = max(found, default=0)
        assert set(said) - set(found) == set()
        for number, state in found.items():
            ahead = STATES.index(state) - (STATES.index(said[number]) if number in said else -1)
            assert ahead in ((0, 1) if number == newest else (0,)), (number, state, said.get(number))
        said.update(found)
    assert max(said) > 50
    assert os.stat(home / "jobs.db").st_mode & 0o077 == 0


@pytest.mark.anyio
async def test_job_whose_process_was_lost_with_the_fork_server_runs_again_while_attempts_are_left(
    open_queue: OpenQueue, tmp_path: Path
) -> None:
    def starts(model_id: str) -> int:
        file = tmp_path / f"{model_id}.pids"
        return file.read_text().count("\n") if file.exists() else 0

    async with open_queue(SCRIPT, train_task_num=2) as queue:
        await queue.submit(job("once", "it", folder=str(tmp_path)))
        await queue.submit(job("more", "again", folder=str(tmp_path)))
        await until(lambda: starts("once") == starts("more") == 1)
        (fork_server,) = running_as("mlpkit.forksrv", psutil.Process().children())
        fork_server.kill()

        once = await end_of(queue, "once")
        expected = "the training process was killed: the process that had started it has ended"
        assert (once.state, once.attempt, once.message) == ("error", 1, expected)
        await until(lambda: starts("more") == 2)
        (tmp_path / "go").touch()
        more = await end_of(queue, "more")
        assert (more.state, more.attempt) == ("completed", 2)
