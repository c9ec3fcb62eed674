"""From the end of `train` to a whole model in the store: checked before, tried again, kept over a restart."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mlpkit.errors import JobConflict
from mlpkit.settings import Settings
from mlpkit.storage import open_model, open_storage
from mlpkit.training import Job
from mlpkit.training.journal import Journal
from tests.servers import until
from tests.training.conftest import OpenQueue, end_of, job, reached, train

SCRIPT = """
import threading, time
from pathlib import Path
from mlpkit import App, ModelDir, Progress

app = App("it")

@app.train
def train(model_id: str, parameters: dict, out: ModelDir, progress: Progress):
    with open(parameters["folder"] + "/started", "a") as started:
        print(model_id, file=started)
    progress.update(0.1, "half asleep", f1=0.5)
    (out / "weights").write_bytes(b"whole")
    do = parameters.get("do")
    if do == "break store":
        bucket = Path(parameters["bucket"])
        bucket.rename(bucket.with_name("away"))
        bucket.write_text("a file where the bucket should be")
    if do == "large":
        with (out / "large").open("wb") as file:
            file.truncate(1500 << 20)
    if do == "grow":
        file = open(out / "events", "ab", buffering=0)
        def grow():
            while True:
                file.write(b"x" * 100)
                time.sleep(0.0005)
        threading.Thread(target=grow, daemon=True).start()
        with (out / "large").open("wb") as file2:
            file2.truncate(100 << 20)
"""

pytestmark = pytest.mark.anyio


@pytest.fixture
def bucket(home: Path) -> Path:
    """Where the folder store has the models."""
    made = home / "storage" / "ml-platform-model"
    made.mkdir(parents=True)
    return made


def replace_by_file(bucket: Path) -> None:
    bucket.rmdir()
    bucket.write_text("a file where the bucket should be")


def repair(bucket: Path) -> None:
    bucket.unlink()
    bucket.with_name("away").rename(bucket)


def is_storing(each: Job) -> bool:
    return each.progress is not None and "the next try is in" in each.progress.message


def names_in(folder: Path) -> list[str]:
    return [found.name for found in folder.iterdir()]


def stored(home: Path, model_id: str) -> str:
    settings = Settings(home=home)
    return (open_model(open_storage(settings), settings, model_id, None) / "weights").read_text()


async def test_job_that_could_not_store_its_model_fails_before_the_training(
    open_queue: OpenQueue, bucket: Path, tmp_path: Path
) -> None:
    replace_by_file(bucket)
    async with open_queue(SCRIPT, store_retry=3600.0) as queue:
        ended = await train(queue, job("m", folder=str(tmp_path)))

    assert ended.state == "error"
    assert "ml-platform-model" in ended.message
    assert not (tmp_path / "started").exists()


async def test_storing_is_tried_again_and_the_job_is_completed_when_the_store_can_be_used(
    open_queue: OpenQueue, bucket: Path, home: Path, tmp_path: Path
) -> None:
    parameters = {"folder": str(tmp_path), "do": "break store", "bucket": str(bucket)}
    async with open_queue(SCRIPT, store_retry=3600.0) as queue:
        await queue.submit(job("m", **parameters))
        waiting = await reached(queue, "m", is_storing)
        assert waiting.progress is not None
        assert waiting.progress.stage == "storing"
        with pytest.raises(JobConflict, match=r"the model of job \[m\] is being stored"):
            queue.check_deletable("m")
        repair(bucket)
        ended = await end_of(queue, "m")
        queue.check_deletable("m")
        text = queue.log_path("m").read_text()

    assert (ended.state, ended.message) == ("completed", "")
    assert stored(home, "m") == "whole"
    assert ended.progress is not None
    assert (ended.progress.fraction, ended.progress.message, ended.progress.metrics) == (1.0, "", {"f1": 0.5})
    assert "the model could not be stored" in text
    assert names_in(home / "work") == []


async def test_job_fails_when_its_time_for_storing_is_over(open_queue: OpenQueue, bucket: Path, tmp_path: Path) -> None:
    parameters = {"folder": str(tmp_path), "do": "break store", "bucket": str(bucket)}
    async with open_queue(SCRIPT, store_retry=1.5) as queue:
        ended = await train(queue, job("m", **parameters))
    assert ended.state == "error"
    assert "ml-platform-model" in ended.message


@pytest.mark.parametrize("killed", [False, True])
async def test_trained_model_is_stored_after_a_restart_and_not_trained_again(
    open_queue: OpenQueue, bucket: Path, home: Path, tmp_path: Path, killed: bool
) -> None:
    parameters = {"folder": str(tmp_path), "do": "break store", "bucket": str(bucket)}
    async with open_queue(SCRIPT, store_retry=3600.0) as queue:
        await queue.submit(job("m", **parameters))
        running = await reached(queue, "m", is_storing)
    if killed:
        # As a killed service leaves it: it had no time to put the job back.
        journal = Journal(home)
        journal.update(msgspec.structs.replace(running, progress=None))
        journal.close()

    async with open_queue(SCRIPT, store_retry=3600.0) as queue:
        await reached(queue, "m", is_storing)
        repair(bucket)
        ended = await end_of(queue, "m")
    assert (ended.state, ended.message) == ("completed", "")
    assert stored(home, "m") == "whole"
    assert (tmp_path / "started").read_text().split() == ["m"]
    assert names_in(home / "work") == []


@pytest.mark.parametrize("restarted", [False, True])
async def test_job_that_waits_for_the_store_can_be_cancelled(
    open_queue: OpenQueue, bucket: Path, home: Path, tmp_path: Path, restarted: bool
) -> None:
    parameters = {"folder": str(tmp_path), "do": "break store", "bucket": str(bucket)}
    async with open_queue(SCRIPT, store_retry=3600.0) as queue:
        await queue.submit(job("m", **parameters))
        await reached(queue, "m", is_storing)
        if not restarted:
            cancelled = await queue.cancel("m")
    if restarted:
        async with open_queue(SCRIPT, store_retry=3600.0) as queue:
            cancelled = await queue.cancel("m")

    assert (cancelled.state, cancelled.message) == ("error", "cancelled")
    assert names_in(home / "work") == []


async def test_cancel_while_a_file_is_stored_leaves_nothing(
    open_queue: OpenQueue, bucket: Path, home: Path, tmp_path: Path
) -> None:
    writing = home / "storage" / ".writing"
    async with open_queue(SCRIPT) as queue:
        await queue.submit(job("m", folder=str(tmp_path), do="large"))
        await until(lambda: writing.exists() and any(each.stat().st_size > 1 << 20 for each in writing.iterdir()))
        cancelled = await queue.cancel("m")

    assert (cancelled.state, cancelled.message) == ("error", "cancelled")
    assert names_in(writing) == names_in(bucket) == []


async def test_file_that_grows_while_it_is_stored_fails_the_job_and_is_named(
    open_queue: OpenQueue, bucket: Path, tmp_path: Path
) -> None:
    async with open_queue(SCRIPT, store_retry=3600.0) as queue:
        ended = await train(queue, job("m", folder=str(tmp_path), do="grow"))

    assert ended.state == "error"
    assert "its file events changed" in ended.message
    assert names_in(bucket) == []
