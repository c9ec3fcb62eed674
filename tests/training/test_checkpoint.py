"""A training that is interrupted continues: what is saved, when, and what becomes of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from mlpkit.errors import ArgumentError
from mlpkit.script import import_app
from mlpkit.settings import Settings
from mlpkit.storage import CheckpointManifest
from mlpkit.training import Job, TrainingQueue, check_job
from tests.servers import until
from tests.training.conftest import OpenQueue, WriteScript, end_of, job, reached

pytestmark = pytest.mark.anyio

SCRIPT = '''
import json, os, time
from pathlib import Path
from mlpkit import App, Checkpoint, ModelDir, Progress

app = App("it")
keeps = app.algorithm("keeps")
other = app.algorithm("other")
plain = app.algorithm("plain")

@app.train(max_attempts=3)
def train(parameters: dict, checkpoint: Checkpoint, progress: Progress, out: ModelDir):
    """Adds up the steps; stops where the test wants to look."""
    folder = Path(parameters["folder"])
    state = {"step": 0, "sum": 0}
    if checkpoint.resumed:
        state = json.loads((checkpoint / "state.json").read_text())
    with open(folder / "begun", "a") as begun:
        print(os.getpid(), state["step"], file=begun)
    steps = range(state["step"], parameters["steps"])
    for step in progress.track(steps, "add", total=parameters["steps"], done=state["step"]):
        while (folder / f"wait {step}").exists() and not (parameters.get("looks") and progress.stopping):
            if (folder / "stop").exists() and progress.stop_reason:
                break
            time.sleep(0.01)
        if (folder / f"fail {step}").exists():
            raise ValueError(f"step {step} failed")
        if parameters.get("looks") and progress.stopping:
            break
        state = {"step": step + 1, "sum": state["sum"] + step}
        (checkpoint / "state.json").write_text(json.dumps(state))
        checkpoint.save()
    (out / "sum").write_text(str(state["sum"]))

keeps.train(keep_checkpoint=True)(train)
other.train(train)

@plain.train
def train_plain(parameters: dict):
    pass
'''


def submitted(model_id: str, folder: Path, algorithm: str = "it", /, extend: Any = None, **parameters: Any) -> Job:
    return job(model_id, algorithm, extend=extend, folder=str(folder), **{"steps": 10, **parameters})


def begun(folder: Path) -> list[tuple[int, int]]:
    """The process and the first step of each attempt so far."""
    file = folder / "begun"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(int(pid), int(step)) for pid, step in map(str.split, lines)]


def stored(home: Path) -> list[str]:
    bucket = home / "storage" / "ml-platform-model"
    return sorted(file.relative_to(bucket).as_posix() for file in bucket.rglob("*") if file.is_file())


def checkpoint_of(home: Path, model_id: str) -> tuple[Path, CheckpointManifest]:
    folder = home / "storage" / "ml-platform-model" / model_id / "mlpkit.checkpoint"
    return folder, msgspec.json.decode((folder / "mlpkit.json").read_bytes(), type=CheckpointManifest)


async def saved(queue: TrainingQueue, model_id: str) -> Job:
    """The job, once it has saved a checkpoint."""
    return await reached(queue, model_id, lambda found: found.has_checkpoint)


async def test_job_whose_process_is_killed_continues_from_its_checkpoint(
    open_queue: OpenQueue, tmp_path: Path, home: Path
) -> None:
    (tmp_path / "wait 7").touch()
    async with open_queue(SCRIPT, checkpoint_period=0) as queue:
        await queue.submit(submitted("m", tmp_path))
        await until(lambda: (home / "storage/ml-platform-model/m/mlpkit.checkpoint/mlpkit.json").exists())
        await until(lambda: checkpoint_of(home, "m")[1].fraction == 0.6)
        os.kill(begun(tmp_path)[0][0], signal.SIGKILL)
        await until(lambda: len(begun(tmp_path)) == 2)

        again = await reached(queue, "m", lambda found: "resumed" in found.note)
        assert (again.state, again.attempt, again.note) == ("training", 2, "attempt 2, resumed at 60 %")
        (tmp_path / "wait 7").unlink()
        ended = await end_of(queue, "m")

    assert (ended.state, ended.message) == ("completed", "")
    assert [step for _, step in begun(tmp_path)] == [0, 7]
    assert (home / "storage/ml-platform-model/m/sum").read_text() == "45"
    assert stored(home) == ["m/mlpkit.json", "m/sum"]


async def test_drain_lets_the_job_save_and_the_next_service_continues_it(
    open_queue: OpenQueue, tmp_path: Path, home: Path
) -> None:
    (tmp_path / "wait 5").touch()
    (tmp_path / "stop").touch()
    async with open_queue(SCRIPT, checkpoint_period=3600) as queue:
        await queue.submit(submitted("m", tmp_path))
        await reached(queue, "m", lambda found: found.progress is not None and found.progress.done == 5)
        assert not (home / "storage/ml-platform-model/m/mlpkit.checkpoint").exists()
        with anyio.fail_after(60):
            await queue.drain(3600)
        put_back = queue.job("m")
        assert put_back is not None
        assert (put_back.state, put_back.attempt) == ("init", 1)
        assert put_back.note == "attempt 1 was interrupted at 50 %, the job continues from there"

    (tmp_path / "wait 5").unlink()
    async with open_queue(SCRIPT, checkpoint_period=3600) as queue:
        ended = await end_of(queue, "m")
    # The drain has used up none of its three attempts, but it is the second.
    assert (ended.state, ended.attempt, ended.counted_attempts) == ("completed", 2, 1)
    assert [step for _, step in begun(tmp_path)] == [0, 6]
    assert stored(home) == ["m/mlpkit.json", "m/sum"]


async def test_job_that_returns_because_of_a_drain_stores_no_half_of_a_model(
    open_queue: OpenQueue, tmp_path: Path, home: Path
) -> None:
    (tmp_path / "wait 5").touch()
    async with open_queue(SCRIPT, checkpoint_period=0) as queue:
        await queue.submit(submitted("m", tmp_path, looks=True))
        await reached(queue, "m", lambda found: found.progress is not None and found.progress.done == 5)
        await queue.drain(3600)
        assert [name for name in stored(home) if not name.startswith("m/mlpkit.checkpoint/")] == []

    (tmp_path / "wait 5").unlink()
    async with open_queue(SCRIPT, checkpoint_period=0) as queue:
        assert (await end_of(queue, "m")).state == "completed"
    assert [step for _, step in begun(tmp_path)] == [0, 5]
    assert (home / "storage/ml-platform-model/m/sum").read_text() == "45"


async def test_soft_cancel_lets_the_job_save_and_another_one_continues_it(
    open_queue: OpenQueue, tmp_path: Path, home: Path
) -> None:
    (tmp_path / "wait 5").touch()
    (tmp_path / "stop").touch()
    async with open_queue(SCRIPT, checkpoint_period=3600) as queue:
        await queue.submit(submitted("m", tmp_path))
        await reached(queue, "m", lambda found: found.progress is not None and found.progress.done == 5)
        asked = await queue.cancel("m", soft=True)
        assert (asked.state, asked.cancelling) == ("training", True)
        ended = await end_of(queue, "m")
        expected = "cancelled; its checkpoint is kept, and extend.resume_from continues from it"
        assert (ended.state, ended.message) == ("error", expected)
        assert await queue.cancel("m", soft=True) == ended

        await queue.submit(submitted("n", tmp_path, "it", {"resume_from": "m"}, steps=20))
        ended = await end_of(queue, "n")
        log = queue.log_path("n").read_text()
    assert ended.state == "completed"
    assert ended.progress is not None
    assert ended.progress.checkpoint is not None
    assert (ended.progress.checkpoint.resumed_from, ended.progress.checkpoint.resumed_at) == ("m", 0.5)
    assert "continues from a checkpoint with other parameters: steps was 10 and is 20" in log
    assert (home / "storage/ml-platform-model/n/sum").read_text() == "190"
    assert [step for _, step in begun(tmp_path)] == [0, 6]


async def test_soft_cancel_of_a_train_that_returns_early_makes_a_model(open_queue: OpenQueue, tmp_path: Path) -> None:
    (tmp_path / "wait 5").touch()
    async with open_queue(SCRIPT, checkpoint_period=3600) as queue:
        await queue.submit(submitted("m", tmp_path, looks=True))
        await reached(queue, "m", lambda found: found.progress is not None and found.progress.done == 5)
        await queue.cancel("m", soft=True)
        ended = await end_of(queue, "m")
    expected = "a soft cancel asked it to end; the model is what train had made by then"
    assert (ended.state, ended.message) == ("completed", expected)


async def test_soft_cancel_kills_a_job_that_does_not_end_within_the_grace(
    open_queue: OpenQueue, tmp_path: Path, home: Path
) -> None:
    (tmp_path / "wait 5").touch()
    async with open_queue(SCRIPT, checkpoint_period=0, shutdown_grace=0.1) as queue:
        await queue.submit(submitted("m", tmp_path))
        await reached(queue, "m", lambda found: found.progress is not None and found.progress.done == 5)
        await queue.cancel("m", soft=True)
        ended = await end_of(queue, "m")
    assert (ended.state, ended.message[:9]) == ("error", "cancelled")
    assert checkpoint_of(home, "m")[1].fraction == 0.4


async def test_soft_cancel_holds_if_the_service_is_stopped_meanwhile(open_queue: OpenQueue, tmp_path: Path) -> None:
    (tmp_path / "wait 5").touch()
    async with open_queue(SCRIPT, checkpoint_period=3600, shutdown_grace=3600) as queue:
        await queue.submit(submitted("m", tmp_path))
        await reached(queue, "m", lambda found: found.progress is not None and found.progress.done == 5)
        await queue.cancel("m", soft=True)
    (tmp_path / "wait 5").unlink()
    async with open_queue(SCRIPT) as queue:
        ended = await end_of(queue, "m")
    assert (ended.state, ended.message) == ("error", "cancelled")
    assert len(begun(tmp_path)) == 1


async def test_cancel_removes_the_checkpoint(open_queue: OpenQueue, tmp_path: Path, home: Path) -> None:
    (tmp_path / "wait 5").touch()
    async with open_queue(SCRIPT, checkpoint_period=0) as queue:
        await queue.submit(submitted("m", tmp_path))
        await saved(queue, "m")
        await queue.cancel("m")
        assert stored(home) == []


async def test_checkpoint_of_a_failed_job_is_removed_with_the_job(
    open_queue: OpenQueue, tmp_path: Path, home: Path
) -> None:
    (tmp_path / "fail 5").touch()
    async with open_queue(SCRIPT, checkpoint_period=0) as queue:
        await queue.submit(submitted("m", tmp_path))
        ended = await end_of(queue, "m")
    assert (ended.state, ended.message) == ("error", "ValueError: step 5 failed")
    assert checkpoint_of(home, "m")[1].files == {"state.json": 22}

    async with open_queue(SCRIPT, jobs_keep=0.1) as queue:
        await until(lambda: queue.job("m") is None)
    assert stored(home) == []


async def test_completed_job_keeps_its_checkpoint_if_its_train_says_so(
    open_queue: OpenQueue, tmp_path: Path, home: Path
) -> None:
    async with open_queue(SCRIPT, checkpoint_period=0) as queue:
        await queue.submit(submitted("m", tmp_path, "keeps"))
        assert (await end_of(queue, "m")).state == "completed"
        manifest = checkpoint_of(home, "m")[1]
        assert (manifest.algorithm, manifest.fraction, manifest.parameters["steps"]) == ("keeps", 0.9, 10)
        await queue.submit(submitted("n", tmp_path, "keeps", {"resume_from": "m"}, steps=12))
        assert (await end_of(queue, "n")).state == "completed"
    assert [step for _, step in begun(tmp_path)] == [0, 10]
    assert (home / "storage/ml-platform-model/n/sum").read_text() == "66"
    assert "m/mlpkit.checkpoint/mlpkit.json" in stored(home)


@pytest.mark.parametrize("broken", ["shorter", "missing", "manifest"])
async def test_broken_checkpoint_of_the_job_is_not_used_and_it_begins_anew(
    open_queue: OpenQueue, tmp_path: Path, home: Path, broken: str
) -> None:
    (tmp_path / "wait 5").touch()
    (tmp_path / "stop").touch()
    async with open_queue(SCRIPT, checkpoint_period=0) as queue:
        await queue.submit(submitted("m", tmp_path))
        await saved(queue, "m")
        await queue.drain(3600)
    _break(home, "m", broken)
    (tmp_path / "wait 5").unlink()
    async with open_queue(SCRIPT, checkpoint_period=0) as queue:
        assert (await end_of(queue, "m")).state == "completed"
        log = queue.log_path("m").read_text()
    assert [step for _, step in begun(tmp_path)] == [0, 0]
    assert "WARNING" in log
    assert "m/mlpkit.checkpoint is " + ("broken" if broken == "manifest" else "incomplete") in log
    assert (home / "storage/ml-platform-model/m/sum").read_text() == "45"
    assert stored(home) == ["m/mlpkit.json", "m/sum"]


@pytest.mark.parametrize("broken", ["shorter", "missing", "manifest", "bytes", "absent", "of another algorithm"])
async def test_resume_from_a_checkpoint_that_cannot_be_used_fails_clearly(
    open_queue: OpenQueue, tmp_path: Path, home: Path, broken: str
) -> None:
    (tmp_path / "fail 5").touch()
    async with open_queue(SCRIPT, checkpoint_period=0) as queue:
        await queue.submit(submitted("m", tmp_path))
        await end_of(queue, "m")
        if broken in ("shorter", "missing", "manifest", "bytes"):
            _break(home, "m", broken)
        source = "nobody" if broken == "absent" else "m"
        algorithm = "other" if broken == "of another algorithm" else "it"
        await queue.submit(submitted("n", tmp_path, algorithm, {"resume_from": source}))
        ended = await end_of(queue, "n")
    assert ended.state == "error"
    assert {
        "shorter": "is incomplete: state.json has 5 bytes and should have 22",
        "missing": "is incomplete: ",
        "manifest": "m/mlpkit.checkpoint is broken: its mlpkit.json is not a manifest of mlpkit",
        "bytes": "m/mlpkit.checkpoint is broken: its mlpkit.json is not a manifest of mlpkit",
        "absent": "model [nobody] has no checkpoint",
        "of another algorithm": "the checkpoint of model [m] is of algorithm 'it', not of 'other'",
    }[broken] in ended.message
    assert len(begun(tmp_path)) == 1


def _break(home: Path, model_id: str, how: str) -> None:
    folder, manifest = checkpoint_of(home, model_id)
    file = folder / str(manifest.number) / "state.json"
    if how == "shorter":
        file.write_text("{}   ")
    elif how == "missing":
        file.unlink()
    else:
        (folder / "mlpkit.json").write_bytes(b"[1" if how == "manifest" else b'{"algorithm": "\xff"}')


async def test_job_with_an_earlier_jobs_id_and_other_parameters_begins_anew(
    open_queue: OpenQueue, tmp_path: Path
) -> None:
    (tmp_path / "fail 5").touch()
    async with open_queue(SCRIPT, checkpoint_period=0) as queue:
        await queue.submit(submitted("m", tmp_path))
        await end_of(queue, "m")
        (tmp_path / "fail 5").unlink()
        await queue.submit(submitted("m", tmp_path, steps=8))
        assert (await end_of(queue, "m")).state == "completed"
        log = queue.log_path("m").read_text()
    assert "is of an earlier job with this id, with other parameters: steps was 10 and is 8" in log
    assert [step for _, step in begun(tmp_path)] == [0, 0]


async def test_same_job_continues_in_another_service_with_the_same_store(
    write_script: WriteScript, open_queue: OpenQueue, tmp_path: Path, home: Path
) -> None:
    target = write_script(SCRIPT)
    store = f"folder://{tmp_path}/store"
    (tmp_path / "fail 5").touch()
    async with open_queue(target, checkpoint_period=0, store_url=store) as queue:
        await queue.submit(submitted("m", tmp_path))
        await end_of(queue, "m")
    os.rename(home, tmp_path / "another home")
    (tmp_path / "fail 5").unlink()
    async with open_queue(target, checkpoint_period=0, store_url=store) as queue:
        await queue.submit(submitted("m", tmp_path))
        assert (await end_of(queue, "m")).state == "completed"
    assert [step for _, step in begun(tmp_path)] == [0, 5]
    assert (tmp_path / "store/ml-platform-model/m/sum").read_text() == "45"


@pytest.mark.parametrize(
    ("algorithm", "resume_from", "expected"),
    [
        ("it", 7, r"\[extend.resume_from\] must be the id of a model"),
        ("it", "../m", "is not a model id"),
        ("plain", "m", "algorithm 'plain' cannot continue a training: its train has no Checkpoint"),
    ],
)
def test_resume_from_is_checked_before_a_job_is_accepted(
    write_script: WriteScript, home: Path, algorithm: str, resume_from: Any, expected: str
) -> None:
    app = import_app(write_script(SCRIPT))
    with pytest.raises(ArgumentError, match=expected):
        check_job(app.build()[algorithm], job("n", algorithm, extend={"resume_from": resume_from}), Settings(home=home))
