"""A service that has run many jobs is as it was before them."""

from __future__ import annotations

import time

import psutil
import pytest

from tests.conftest import Report
from tests.training.conftest import OpenQueue, end_of, job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

JOBS = 200
SCRIPT = """
import os, subprocess
from mlpkit import App, ModelDir

app = App("it")

@app.train
def train(out: ModelDir, parameters: dict):
    subprocess.Popen(["sleep", "60"])
    (out / "model").write_text("x")
    if parameters["number"] % 3 == 0:
        os._exit(1)
"""


@pytest.mark.anyio
async def test_two_hundred_jobs_leave_no_process_and_no_descriptor(open_queue: OpenQueue, report: Report) -> None:
    me, began = psutil.Process(), time.monotonic()
    async with open_queue(SCRIPT, train_task_num=4, train_queue_size=JOBS) as queue:
        await queue.submit(job("first", number=1))
        await end_of(queue, "first")
        children = {each.pid for each in me.children(recursive=True)}
        descriptors, threads = me.num_fds(), me.num_threads()

        for number in range(JOBS):
            await queue.submit(job(f"m-{number}", number=number))
        for number in range(JOBS):
            ended = await end_of(queue, f"m-{number}")
            assert ended.state == ("error" if number % 3 == 0 else "completed")

        report(
            f"{JOBS} jobs in {time.monotonic() - began:.0f} s: descriptors {descriptors}, then {me.num_fds()}; "
            f"threads {threads}, then {me.num_threads()}"
        )
        assert {each.pid for each in me.children(recursive=True)} - children == set()
        assert me.num_fds() <= descriptors
        assert me.num_threads() <= threads + 2
