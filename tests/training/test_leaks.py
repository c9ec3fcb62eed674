"""A service that has run many jobs is as it was before them."""

from __future__ import annotations

import psutil
import pytest

from tests.training.conftest import OpenQueue, end_of, job

pytestmark = pytest.mark.slow

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
async def test_thirty_jobs_leave_no_process_and_no_descriptor(open_queue: OpenQueue) -> None:
    me = psutil.Process()
    async with open_queue(SCRIPT, train_task_num=2) as queue:
        await queue.submit(job("first", number=1))
        await end_of(queue, "first")
        children = {each.pid for each in me.children(recursive=True)}
        descriptors, threads = me.num_fds(), me.num_threads()

        for number in range(30):
            await queue.submit(job(f"m-{number}", number=number))
        for number in range(30):
            ended = await end_of(queue, f"m-{number}")
            assert ended.state == ("error" if number % 3 == 0 else "completed")

        assert {each.pid for each in me.children(recursive=True)} - children == set()
        assert me.num_fds() <= descriptors
        assert me.num_threads() <= threads + 2
