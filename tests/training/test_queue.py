"""The queue: order, capacity, cancel in every state, shutdown, devices."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
import pytest

from mlpkit.errors import AlgorithmNotFound, ArgumentError, JobConflict, JobNotFound, Overloaded, ServiceStopping
from mlpkit.training import Job, JobFilter
from tests.servers import SOON, until
from tests.training.conftest import OpenQueue, end_of, job, reached, train

SCRIPT = """
import json, os, signal, time
from pathlib import Path
from mlpkit import App

app = App("it")
one_gpu = app.algorithm("one-gpu")
two_gpus = app.algorithm("two-gpus")
two_cpus = app.algorithm("two-cpus")

def hold(model_id, parameters):
    folder = Path(parameters["folder"])
    with open(folder / "started", "a") as started:
        print(model_id, file=started)
    names = ["CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]
    written = folder / f"{model_id}.part"
    written.write_text(json.dumps({name: os.environ.get(name) for name in names}))
    written.rename(folder / f"{model_id}.env")
    while not (folder / "go").exists() and not (folder / f"go {model_id}").exists():
        time.sleep(0.01)

@app.train
def train(model_id: str, parameters: dict):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hold(model_id, parameters)

@one_gpu.train(gpus=1)
def train_on_one(model_id: str, parameters: dict):
    hold(model_id, parameters)

@two_gpus.train(gpus=2)
def train_on_two(model_id: str, parameters: dict):
    hold(model_id, parameters)

@two_cpus.train(cpus=2)
def train_with_two(model_id: str, parameters: dict):
    hold(model_id, parameters)
"""

pytestmark = pytest.mark.anyio


def running(each: Job) -> bool:
    return each.state == "training"


def environment(folder: Path, model_id: str) -> dict[str, str | None]:
    found: dict[str, str | None] = json.loads((folder / f"{model_id}.env").read_text())
    return found


async def exists(path: Path) -> None:
    await until(path.exists)


async def test_jobs_start_in_the_order_of_their_submission(open_queue: OpenQueue, tmp_path: Path) -> None:
    ended: list[str] = []
    async with open_queue(SCRIPT, train_task_num=1) as queue:
        queue.on_end = lambda each: ended.append(each.model_id)
        ids = [f"m-{number}" for number in range(4)]
        for model_id in ids:
            await queue.submit(job(model_id, folder=str(tmp_path)))
        await reached(queue, "m-0", running)

        assert [queue.position(model_id) for model_id in ids] == [None, 1, 2, 3]
        assert queue.counts() == {"init": 3, "training": 1}
        assert [each.model_id for each in queue.jobs()] == ids[::-1]
        assert [each.model_id for each in queue.jobs(2, 1)] == ["m-2", "m-1"]
        assert [each.model_id for each in queue.jobs(chosen=JobFilter(state="training"))] == ["m-0"]
        assert queue.jobs(chosen=JobFilter(algorithm="one-gpu")) == []

        (tmp_path / "go").touch()
        await end_of(queue, "m-3")

    assert (tmp_path / "started").read_text().split() == ids
    assert ended == ids


async def test_job_is_on_disk_when_it_has_been_submitted(open_queue: OpenQueue, tmp_path: Path, home: Path) -> None:
    async with open_queue(SCRIPT) as queue:
        for number in range(5):
            await queue.submit(job(f"m-{number}", folder=str(tmp_path)))
            with sqlite3.connect(home / "jobs.db") as connection:
                assert connection.execute("SELECT count(*) FROM job").fetchone() == (number + 1,)


@pytest.mark.parametrize("waiting", [0, 1, 3])
async def test_as_many_jobs_wait_as_the_setting_says_and_one_more_is_refused_immediately(
    open_queue: OpenQueue, tmp_path: Path, waiting: int
) -> None:
    async with open_queue(SCRIPT, train_task_num=2, train_queue_size=waiting) as queue:
        for number in range(2 + waiting):
            await queue.submit(job(f"m-{number}", folder=str(tmp_path)))

        with pytest.raises(Overloaded, match=f"queue is full: {2 + waiting} jobs run or wait"):
            queue.submit(job("more", folder=str(tmp_path))).send(None)
        assert queue.job("more") is None
        await reached(queue, "m-0", running)
        await reached(queue, "m-1", running)
        assert queue.counts() == {"init": waiting, "training": 2}

        await queue.cancel("m-1")
        await queue.submit(job("more", folder=str(tmp_path)))


async def test_job_that_is_submitted_again_with_the_same_content_is_accepted_and_starts_once(
    open_queue: OpenQueue, tmp_path: Path
) -> None:
    def submitted(peer: str) -> Job:
        return job("m", folder=str(tmp_path), extend={"b": 1, "remote_ip": peer, "a": 2})

    ended: list[Job] = []
    async with open_queue(SCRIPT, train_task_num=1, train_queue_size=0) as queue:
        queue.on_end = ended.append
        await asyncio.gather(*(queue.submit(submitted(f"10.0.0.{number}")) for number in range(3)))
        await reached(queue, "m", running)
        await queue.submit(job("m", folder=str(tmp_path), extend={"a": 2, "b": 1}))
        assert queue.counts() == {"init": 0, "training": 1}

        (tmp_path / "go").touch()
        await end_of(queue, "m")
    assert (tmp_path / "started").read_text().split() == ["m"]
    assert [each.attempt for each in ended] == [1]


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "two-cpus"},
        {"model_path": "bucket/m"},
        {"data": '{"location": "x"}'},
        {"parameters": "{}"},
        {"extend": '{"a": 1}'},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_job_of_the_same_id_with_other_content_is_a_conflict_until_the_first_has_ended(
    open_queue: OpenQueue, tmp_path: Path, changes: dict[str, str]
) -> None:
    async with open_queue(SCRIPT) as queue:
        first = job("m", folder=str(tmp_path))
        await queue.submit(first)
        with pytest.raises(JobConflict, match=r"job \[m\] exists already"):
            await queue.submit(msgspec.structs.replace(first, **changes))

        (tmp_path / "go").touch()
        await end_of(queue, "m")
        assert (await train(queue, job("m", folder=str(tmp_path)))).state == "completed"
        assert len(queue.jobs()) == 1


async def test_unknown_algorithm_is_refused(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        with pytest.raises(AlgorithmNotFound):
            await queue.submit(job("m", "nope"))


async def test_cancel_of_a_waiting_job_ends_it_at_once(open_queue: OpenQueue, tmp_path: Path) -> None:
    async with open_queue(SCRIPT, train_task_num=1) as queue:
        for number in range(3):
            await queue.submit(job(f"m-{number}", folder=str(tmp_path)))

        cancelled = await queue.cancel("m-1")

        assert (cancelled.state, cancelled.message, cancelled.started) == ("error", "cancelled", None)
        assert queue.job("m-1") == cancelled
        assert queue.position("m-2") == 1
        (tmp_path / "go").touch()
        assert (await end_of(queue, "m-2")).state == "completed"
    assert (tmp_path / "started").read_text().split() == ["m-0", "m-2"]


async def test_cancel_of_a_running_job_kills_its_process(open_queue: OpenQueue, tmp_path: Path, home: Path) -> None:
    async with open_queue(SCRIPT) as queue:
        await queue.submit(job("m", folder=str(tmp_path)))
        await exists(tmp_path / "m.env")

        started = time.monotonic()
        cancelled = await queue.cancel("m")

        assert time.monotonic() - started < SOON
        assert (cancelled.state, cancelled.message) == ("error", "cancelled")
        assert list((home / "work").iterdir()) == []


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.05, 0.2, 0.3])
async def test_cancel_at_any_moment_ends_the_job_once(open_queue: OpenQueue, tmp_path: Path, delay: float) -> None:
    ended: list[Job] = []
    (tmp_path / "go").touch()
    async with open_queue(SCRIPT) as queue:
        queue.on_end = ended.append
        await queue.submit(job("m", folder=str(tmp_path)))
        await anyio.sleep(delay)
        first, second = await asyncio.gather(queue.cancel("m"), queue.cancel("m"))

        assert first == second == queue.job("m")
        assert ended == [first]
        assert first.has_ended


@pytest.mark.parametrize("moment", ["put back", "being put back", "running"])
async def test_cancel_while_the_service_stops_holds_after_the_restart(
    open_queue: OpenQueue, tmp_path: Path, moment: str
) -> None:
    ended: list[Job] = []
    async with open_queue(SCRIPT, train_task_num=1) as queue:
        queue.on_end = ended.append
        for model_id in ("runs", "waits"):
            await queue.submit(job(model_id, folder=str(tmp_path)))
        await exists(tmp_path / "runs.env")
        wanted = "runs" if moment == "running" else "waits"
        closing = asyncio.create_task(queue.drain(60))
        if moment == "put back":
            await until(lambda: queue.position("waits") is None)
        else:
            await anyio.lowlevel.checkpoint()
        cancelled = await asyncio.gather(queue.cancel(wanted), queue.cancel(wanted))

        assert cancelled[0] == cancelled[1] == queue.job(wanted)
        assert (cancelled[0].state, cancelled[0].message) == ("error", "cancelled")
        assert [each.model_id for each in ended] == [wanted]
        closing.cancel()

    (tmp_path / "go").touch()
    async with open_queue(SCRIPT) as queue:
        other = "waits" if moment == "running" else "runs"
        assert (await end_of(queue, other)).state == "completed"
        assert queue.job(wanted) == cancelled[0]
    assert wanted not in (tmp_path / "started").read_text().split()[1:]


async def test_cancel_of_an_ended_job_changes_nothing(open_queue: OpenQueue, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    async with open_queue(SCRIPT) as queue:
        ended = await train(queue, job("m", folder=str(tmp_path)))
        assert await queue.cancel("m") == ended
        with pytest.raises(JobNotFound, match="nope"):
            await queue.cancel("nope")


async def test_close_puts_unfinished_jobs_back_without_using_up_an_attempt(
    open_queue: OpenQueue, tmp_path: Path
) -> None:
    async with open_queue(SCRIPT, train_task_num=2) as queue:
        for number in range(4):
            await queue.submit(job(f"m-{number}", folder=str(tmp_path)))
        await exists(tmp_path / "m-0.env")
        await exists(tmp_path / "m-1.env")
        (tmp_path / "go m-1").touch()
        closing = asyncio.create_task(queue.close(60))
        await anyio.lowlevel.checkpoint()
        with pytest.raises(ServiceStopping):
            await queue.submit(job("late"))
        await end_of(queue, "m-1")
        await queue.close(0)
        await closing

    (tmp_path / "go").touch()
    async with open_queue(SCRIPT, train_task_num=1) as queue:
        assert [each.model_id for each in queue.jobs(chosen=JobFilter(state="completed"))] == ["m-1"]
        assert [queue.position(f"m-{number}") for number in (0, 2, 3)] == [1, 2, 3]
        for number in (0, 2, 3):
            ended = await end_of(queue, f"m-{number}")
            assert (ended.state, ended.attempt) == ("completed", 1)


async def test_jobs_share_the_devices_and_wait_for_free_ones(open_queue: OpenQueue, tmp_path: Path) -> None:
    async with open_queue(SCRIPT, gpus=("3", "5")) as queue:
        for model_id, algorithm in [("a", "one-gpu"), ("b", "two-gpus"), ("c", "one-gpu"), ("d", "it")]:
            await queue.submit(job(model_id, algorithm, folder=str(tmp_path)))
        await exists(tmp_path / "a.env")
        await exists(tmp_path / "d.env")

        assert environment(tmp_path, "a")["CUDA_VISIBLE_DEVICES"] == "3"
        assert environment(tmp_path, "d")["CUDA_VISIBLE_DEVICES"] is None
        assert [queue.position("b"), queue.position("c")] == [1, 2]

        (tmp_path / "go a").touch()
        await exists(tmp_path / "b.env")
        assert environment(tmp_path, "b")["CUDA_VISIBLE_DEVICES"] == "3,5"
        assert queue.position("c") == 1
        (tmp_path / "go").touch()
        assert (await end_of(queue, "c")).state == "completed"


async def test_more_devices_than_there_are_is_refused_at_submission(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT, gpus=("0",)) as queue:
        with pytest.raises(ArgumentError, match="asks for 2 GPUs, this service has 1: MLPKIT_GPUS"):
            await queue.submit(job("m", "two-gpus"))


async def test_job_that_waits_for_devices_that_are_gone_is_an_error_and_holds_up_nobody(
    open_queue: OpenQueue, tmp_path: Path
) -> None:
    async with open_queue(SCRIPT, gpus=("0", "1")) as queue:
        await queue.submit(job("before", "two-gpus", folder=str(tmp_path)))
        await exists(tmp_path / "before.env")
        await queue.submit(job("m", "two-gpus", folder=str(tmp_path)))

    (tmp_path / "go").touch()
    async with open_queue(SCRIPT, gpus=("0",)) as queue:
        ended = queue.job("m")
        assert ended is not None
        assert (ended.state, ended.message.partition(":")[0]) == (
            "error",
            "the algorithm asks for 2 GPUs, this service has 1",
        )
        await queue.submit(job("after", "one-gpu", folder=str(tmp_path)))
        assert (await end_of(queue, "after")).state == "completed"


async def test_cpus_set_the_threads_of_numerical_libraries(open_queue: OpenQueue, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    async with open_queue(SCRIPT) as queue:
        await train(queue, job("m", "two-cpus", folder=str(tmp_path)))

    assert environment(tmp_path, "m")["OMP_NUM_THREADS"] == "2"
    assert environment(tmp_path, "m")["MKL_NUM_THREADS"] == "2"


async def test_id_that_is_no_file_name_gets_a_log_in_its_place(open_queue: OpenQueue, home: Path) -> None:
    (home.parent / "go").touch()
    async with open_queue(SCRIPT) as queue:
        for model_id in ["../../escape", "a/b", "模型" * 32, "..", "nul\0"]:
            path = queue.log_path(model_id)
            assert path.parent == home / "jobs"
        await queue.submit(job("../../escape", folder=str(home.parent / "missing")))
        await end_of(queue, "../../escape")
        assert queue.log_path("../../escape").exists()
        assert sorted(each.name for each in home.parent.iterdir() if "escape" in each.name) == []
