"""The stack of a running job: what somebody asks for when it does not move any more."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import anyio
import pytest

from mlpkit.errors import JobConflict, JobNotFound, TimeLimitExceeded
from mlpkit.training import TrainingQueue
from mlpkit.training.progress import Curves, Snapshot, read_curves
from tests.servers import LONG, until
from tests.training.conftest import OpenQueue, end_of, job, reached, train

pytestmark = pytest.mark.anyio

SCRIPT = """
import threading, time
from mlpkit import App, Progress

app = App("it")

def waits_for_a_lock_that_nobody_releases():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def computes_without_end():
    while True:
        pass

@app.train
def train(parameters: dict, progress: Progress):
    for step in range(parameters.get("steps", 0)):
        progress.update(loss=1 / (step + 1), name="text")
        time.sleep(0.12)
    print("it begins", flush=True)
    if parameters.get("stuck") == "lock":
        waits_for_a_lock_that_nobody_releases()
    if parameters.get("stuck") == "loop":
        computes_without_end()
"""


@pytest.mark.parametrize(
    ("stuck", "function"), [("lock", "waits_for_a_lock_that_nobody_releases"), ("loop", "computes_without_end")]
)
async def test_stack_of_a_stuck_job_names_the_function_again_and_again(
    open_queue: OpenQueue, stuck: str, function: str
) -> None:
    async with open_queue(SCRIPT) as queue:
        await queue.submit(job("m", stuck=stuck))
        await until(lambda: "it begins" in _log(queue, "m"))
        # The line is on its way before the function is called.
        with anyio.fail_after(LONG):
            while f"in {function}\n" not in await queue.stack("m"):  # noqa: ASYNC110 - there is no event to wait for
                await anyio.sleep(0.05)
        for _ in range(3):
            stack = await queue.stack("m")
            assert f"in {function}\n" in stack
            assert stack.count(f"in {function}\n") == 1
        usage = await queue.usage("m")
        assert usage is not None
        assert usage.memory > 1 << 20
        await queue.cancel("m")
        assert await queue.usage("m") is None


async def test_only_a_running_job_has_a_stack(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        await train(queue, job("m"))
        with pytest.raises(JobConflict, match="'completed'"):
            await queue.stack("m")
        with pytest.raises(JobNotFound):
            await queue.stack("nobody")


async def test_a_process_that_cannot_answer_is_not_waited_for(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        await queue.submit(job("m", stuck="loop"))
        await until(lambda: "it begins" in _log(queue, "m"))
        usage = await queue.usage("m")
        assert usage is not None
        os.kill(usage.pid, signal.SIGSTOP)
        with pytest.raises(TimeLimitExceeded, match="may be stopped"):
            await queue.stack("m")
        await queue.cancel("m")


async def test_last_report_of_a_running_job_is_known(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        before = time.time()
        await queue.submit(job("m", stuck="lock", steps=2))
        await until(lambda: "it begins" in _log(queue, "m"))
        reported = queue.reported("m")
        assert reported is not None
        assert before <= reported <= time.time()
        await queue.cancel("m")
        assert queue.reported("m") is None


async def test_curves_are_there_while_the_job_runs_and_after_its_end(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        await queue.submit(job("m", steps=6))
        await reached(queue, "m", lambda each: each.progress is not None and "loss" in each.progress.metrics)
        assert "loss" in queue.curves("m")
        await end_of(queue, "m")
        await until(lambda: queue.position("m") is None)
        curves = queue.curves("m")
        assert list(curves) == ["loss"]
        assert curves["loss"][-1][1] == pytest.approx(1 / 6)
        await train(queue, job("m"))
        assert queue.curves("m") == {}


@pytest.mark.parametrize("content", [b"{", b'{"\xff": [[0, 1]]}'])
async def test_damaged_file_of_curves_has_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.curves").write_bytes(content)
    assert read_curves(tmp_path / "m.curves") == {}


async def test_curves_of_a_long_job_stay_short_and_keep_the_last_value() -> None:
    curves = Curves()
    for step in range(20_000):
        curves.add(Snapshot(metrics={"loss": 1 / (step + 1), "flag": True, "text": "x"}, seconds=step / 10))
    points = curves.points()
    assert list(points) == ["loss"]
    assert 100 < len(points["loss"]) <= 400
    assert points["loss"][-1] == (1999.9, 1 / 20_000)
    seconds = [second for second, _ in points["loss"]]
    assert seconds == sorted(seconds)


def _log(queue: TrainingQueue, model_id: str) -> str:
    path = queue.log_path(model_id)
    return path.read_text() if path.exists() else ""
