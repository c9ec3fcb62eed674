"""How long ended jobs and their logs are kept (`MLPKIT_JOBS_KEEP`)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mlpkit.settings import Settings
from mlpkit.training import Job
from mlpkit.training.joblog import file_name
from mlpkit.training.journal import Journal
from tests.servers import until
from tests.training.conftest import OpenQueue, end_of, job, reached, train

SCRIPT = """
import time
from pathlib import Path
from mlpkit import App

app = App("it")

@app.train
def train(parameters: dict):
    while not Path(parameters["go"]).exists():
        time.sleep(0.01)
"""
DAY = 86400.0

pytestmark = pytest.mark.anyio


async def test_ended_job_is_forgotten_with_its_log_after_its_time_and_others_are_not(
    open_queue: OpenQueue, tmp_path: Path
) -> None:
    (tmp_path / "now").touch()
    async with open_queue(SCRIPT, train_task_num=2, jobs_keep=1.0) as queue:
        await queue.submit(job("runs", go=str(tmp_path / "later")))
        await train(queue, job("ends", go=str(tmp_path / "now")))
        await queue.submit(job("ends-later", go=str(tmp_path / "go ends-later")))
        await queue.submit(job("waits", go=str(tmp_path / "never")))
        await queue.submit(job("waits-too", go=str(tmp_path / "never")))
        assert queue.log_path("ends").exists()
        (tmp_path / "go ends-later").touch()

        for model_id in ("ends", "ends-later"):
            await until(lambda model_id=model_id: queue.job(model_id) is None)  # type: ignore[misc]
            assert not queue.log_path(model_id).exists()
        assert [each.model_id for each in queue.jobs()] == ["waits-too", "waits", "runs"]
        assert queue.log_path("runs").exists()
        (tmp_path / "later").touch()
        assert (await end_of(queue, "runs")).state == "completed"


@pytest.mark.parametrize(("keep", "left"), [(30 * DAY, 2), (0.0, 1302)])
async def test_many_old_jobs_go_at_the_start_however_long_ago_they_ended(
    open_queue: OpenQueue, home: Path, tmp_path: Path, keep: float, left: int
) -> None:
    journal = Journal(home)
    journal._writer.execute("PRAGMA synchronous = OFF")
    (home / "jobs").mkdir()
    now = time.time()
    journal.add(Job("waits", "it", parameters=f'{{"go": "{tmp_path / "go"}"}}', created=now - 400 * DAY))
    for number in range(1300):
        journal.add(Job(f"m-{number}", "it", state="error", created=now - 90 * DAY, ended=now - 31 * DAY))
        (home / "jobs" / f"{file_name(f'm-{number}')}.log").touch()
    journal.add(Job("recent", "it", state="completed", created=now - 90 * DAY, ended=now - 29 * DAY))
    journal.close()

    async with open_queue(SCRIPT, jobs_keep=keep) as queue:
        await reached(queue, "waits", lambda each: each.state == "training")
        await until(lambda: len(queue.jobs()) <= left)
        assert len(queue.jobs()) == left
        assert [queue.jobs()[0].model_id, queue.jobs()[-1].model_id] == ["recent", "waits"]
        assert len(list((home / "jobs").glob("m-*.log"))) == left - 2


def test_jobs_are_kept_for_ninety_days_where_nothing_else_is_set() -> None:
    assert Settings().jobs_keep == 90 * DAY
