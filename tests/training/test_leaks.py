"""A service that has run many jobs is as it was before them."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import anyio.to_thread
import psutil
import pytest

from tests.acceptance.service import gone
from tests.conftest import Report
from tests.servers import LONG
from tests.training.conftest import OpenQueue, end_of, job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JOBS = 200
SCRIPT = """
import os, subprocess
from pathlib import Path
from mlpkit import App, ModelDir

app = App("it")

@app.train
def train(out: ModelDir, parameters: dict):
    left = subprocess.Popen(["sleep", "300"])
    (Path(parameters["folder"]) / str(left.pid)).touch()
    (out / "model").write_text("x")
    if parameters["number"] % 3 == 0:
        os._exit(1)
"""


@pytest.mark.anyio
async def test_two_hundred_jobs_leave_no_process_and_no_descriptor(
    open_queue: OpenQueue, tmp_path: Path, report: Report
) -> None:
    me, began, folder = psutil.Process(), time.monotonic(), tmp_path / "left"
    folder.mkdir()
    async with open_queue(SCRIPT, train_task_num=4, train_queue_size=JOBS) as queue:
        await queue.submit(job("first", number=1, folder=str(folder)))
        await end_of(queue, "first")
        children = {each.pid for each in me.children(recursive=True)}
        descriptors, threads = me.num_fds(), me.num_threads()

        for number in range(JOBS):
            await queue.submit(job(f"m-{number}", number=number, folder=str(folder)))
        for number in range(JOBS):
            ended = await end_of(queue, f"m-{number}")
            assert ended.state == ("error" if number % 3 == 0 else "completed")

        report(
            f"{JOBS} jobs in {time.monotonic() - began:.0f} s: descriptors {descriptors}, then {me.num_fds()}; "
            f"threads {threads}, then {me.num_threads()}"
        )
        left = [int(each.name) for each in folder.iterdir()]
        assert len(left) == JOBS + 1
        assert not any(psutil.pid_exists(pid) and not gone(psutil.Process(pid)) for pid in left)
        assert {each.pid for each in me.children(recursive=True)} - children == set()
        assert me.num_fds() <= descriptors
        with anyio.fail_after(LONG):
            while me.num_threads() > threads + 2:
                # anyio ends threads of its pool that were idle for ten seconds, when another one is used.
                await anyio.to_thread.run_sync(time.sleep, 1)
