"""Which job is next: by priority, in turn for each app, and otherwise first come, first served; and when it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlpkit.errors import ArgumentError
from mlpkit.training import Job, Snapshot, with_order
from mlpkit.training.job import RECALLED, EndedJobs
from mlpkit.training.journal import Journal
from mlpkit.training.order import estimated_starts, in_order
from mlpkit.training.progress import CheckpointState
from tests.servers import until
from tests.training.conftest import OpenQueue, end_of, job, reached, train

SCRIPT = """
import time
from pathlib import Path
from mlpkit import App

app = App("it")
gpu = app.algorithm("gpu")
other = app.algorithm("other")

@app.train
def train(model_id: str, parameters: dict):
    folder = Path(parameters["folder"])
    with open(folder / "started", "a") as started:
        print(model_id, file=started)
    while not (folder / "go").exists():
        time.sleep(0.01)

other.train(cpus=2)(train)
gpu.train(gpus=1)(train)
"""
SCRIPT_WITH_DATA = """
import time
from pathlib import Path
from mlpkit import App, TrainData

app = App("it", kind="text_classification")

@app.train
def train(data: TrainData, parameters: dict):
    while not (Path(parameters["folder"]) / "go").exists():
        time.sleep(0.01)
"""


def waiting(*names: str) -> list[Job]:
    """Jobs such as `a1`: of app `a`, in the order of arrival; `a1+3` has the priority 3."""
    jobs = []
    for number, name in enumerate(names):
        model_id, _, priority = name.partition("+")
        jobs.append(Job(model_id, "it", app_id=model_id[0], priority=int(priority or 0), created=1000.0 + number))
    return jobs


def ids(jobs: Sequence[Job]) -> list[str]:
    return [each.model_id for each in jobs]


def test_without_the_setting_jobs_start_in_the_order_of_their_arrival() -> None:
    assert ids(in_order(waiting("a1", "a2", "b1", "a3"), None, 2000.0)) == ["a1", "a2", "b1", "a3"]


NOW = 5000.0


def completed(seconds: float, rows: int | None = None, location: str = "") -> Job:
    """A job of the algorithm `it` that took so long."""
    progress = Snapshot(fraction=1.0, rows=rows)
    ended = 100.0 + seconds
    return Job("done", "it", state="completed", location=location, progress=progress, started=100.0, ended=ended)


def known(*jobs: Job) -> dict[str, EndedJobs]:
    ended = EndedJobs()
    ended.recall(jobs)
    return {"it": ended}


def running(seconds: float, progress: Snapshot | None = None) -> Job:
    """A job that has run so long."""
    return Job("runs", "it", state="training", started=NOW - seconds, progress=progress)


def starts_in(waiting: Sequence[Job], running: Sequence[Job], places: int, ended: dict[str, EndedJobs]) -> list[float]:
    """The seconds until each job probably starts."""
    return [start - NOW for start in estimated_starts(waiting, running, places, ended, NOW).values()]


def test_start_is_unknown_until_a_job_of_the_algorithm_has_completed() -> None:
    jobs = waiting("b1", "b2")
    assert starts_in(jobs, [running(40.0)], 1, known()) == []
    assert starts_in(jobs, [running(40.0)], 1, {}) == []
    # How long the first will take is not known, so nothing is said of the second.
    other = msgspec.structs.replace(jobs[0], algorithm="new")
    assert starts_in([other, jobs[1]], [running(40.0)], 1, known(completed(100.0))) == [60.0]


def test_start_follows_from_what_earlier_jobs_took_and_how_long_the_running_ones_have_run() -> None:
    jobs = waiting("b1", "b2", "b3")
    ended = known(completed(50.0), completed(150.0))
    assert starts_in(jobs, [running(40.0)], 1, ended) == [60.0, 160.0, 260.0]
    assert starts_in(jobs, [running(40.0), running(70.0)], 2, ended) == [30.0, 60.0, 130.0]
    # With a free place the next one starts now.
    assert starts_in(jobs, [running(40.0)], 2, ended) == [0.0, 60.0, 100.0]


def test_job_that_takes_longer_than_expected_may_end_at_any_moment() -> None:
    assert starts_in(waiting("b1", "b2"), [running(1000.0)], 1, known(completed(100.0))) == [0.0, 100.0]


def test_expected_time_grows_with_the_rows() -> None:
    ended = known(completed(10.0, rows=100), completed(20.0, rows=200))
    large = running(30.0, Snapshot("fit", rows=1000))
    assert starts_in(waiting("b1"), [large], 1, ended) == [70.0]
    # Of a file that an earlier job had, the rows are known before the job starts; of another one, the mean is expected.
    first = msgspec.structs.replace(waiting("b1")[0], location="large.tsv")
    ended = known(completed(10.0, rows=100), completed(90.0, rows=900, location="large.tsv"))
    assert starts_in([first, *waiting("b2", "b3")], [running(50.0)], 1, ended) == [0.0, 90.0, 140.0]


def test_progress_of_a_long_stage_says_when_a_job_ends() -> None:
    ended = known(completed(100.0))
    fit = Snapshot("fit", fraction=0.25, remaining=60.0, seconds=30.0)
    assert starts_in(waiting("b1"), [running(30.0, fit)], 1, ended) == [60.0]
    assert starts_in(waiting("b1"), [running(30.0, fit)], 1, known()) == [60.0]
    # The report is 50 seconds old, and then older than the rest that it told.
    assert starts_in(waiting("b1"), [running(80.0, fit)], 1, ended) == [10.0]
    assert starts_in(waiting("b1"), [running(300.0, fit)], 1, ended) == [0.0]


def test_end_of_a_short_stage_is_not_the_end_of_the_job() -> None:
    ended = known(completed(100.0))
    read = Snapshot("read", fraction=0.9, remaining=1.0, seconds=10.0)
    assert starts_in(waiting("b1"), [running(10.0, read)], 1, ended) == [90.0]
    assert starts_in(waiting("b1"), [running(100.0, read)], 1, ended) == [0.0]
    over = Snapshot("read", fraction=1.0, remaining=0.0, seconds=10.0)
    assert starts_in(waiting("b1"), [running(10.0, over)], 1, ended) == [90.0]
    assert starts_in(waiting("b1"), [running(10.0, over)], 1, known()) == []
    evaluate = Snapshot("evaluate", fraction=0.5, remaining=5.0, seconds=98.0)
    assert starts_in(waiting("b1"), [running(98.0, evaluate)], 1, ended) == [5.0]


def test_nothing_is_said_of_a_job_that_waits_for_something_else() -> None:
    jobs = waiting("b1", "b2")
    for_gpu = msgspec.structs.replace(jobs[0], message="waits for 1 GPU: 0 of 1 are free now")
    found = estimated_starts([for_gpu, jobs[1]], [running(40.0)], 1, known(completed(100.0)), NOW)
    assert found == {"b2": NOW + 60.0}


def test_only_the_last_whole_and_completed_trainings_count() -> None:
    ended = EndedJobs()
    ended.count_end(completed(100.0), "completed")
    ended.count_end(completed(1.0), "error")
    ended.count_end(completed(1.0), "cancelled")
    resumed = Snapshot(checkpoint=CheckpointState(resumed_from="other"))
    ended.count_end(msgspec.structs.replace(completed(1.0), progress=resumed), "completed")
    ended.count_end(msgspec.structs.replace(completed(1.0), started=None), "completed")
    # It stored the model that an earlier attempt had trained.
    ended.count_end(msgspec.structs.replace(completed(1.0), attempt=2), "completed")
    assert ended.expected_seconds(running(0.0)) == 100.0
    ended.recall([completed(20.0)] * RECALLED)
    assert ended.expected_seconds(running(0.0)) == 20.0


def test_apps_start_in_turn_and_first_come_first_served_within_one() -> None:
    jobs = waiting("a1", "a2", "a3", "b1", "c1", "b2")
    assert ids(in_order(jobs, {}, 2000.0)) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_next_is_the_app_whose_last_start_is_longest_ago() -> None:
    jobs = waiting("a1", "b1", "c1")
    assert ids(in_order(jobs, {"a": 1500.0, "b": 1400.0}, 2000.0)) == ["c1", "b1", "a1"]
    # A start before its first waiting job is no advantage over one who has waited since before that.
    assert ids(in_order(jobs, {"c": 5.0}, 2000.0)) == ["a1", "b1", "c1"]


def test_priority_comes_before_the_turn_of_the_apps() -> None:
    jobs = waiting("a1", "b1+3", "b2+3", "a2+3", "c1+-10")
    assert ids(in_order(jobs, {}, 2000.0)) == ["b1", "a2", "b2", "a1", "c1"]
    assert ids(in_order(jobs, None, 2000.0)) == ["b1", "b2", "a2", "a1", "c1"]


def test_start_with_a_higher_priority_is_the_turn_of_its_app_too() -> None:
    jobs = waiting("a1", "b1", "c1", "a2+5", "c2+3")
    assert ids(in_order(jobs, {}, 2000.0)) == ["a2", "c2", "b1", "a1", "c1"]
    assert ids(in_order(jobs, {"b": 1900.0}, 2000.0)) == ["a2", "c2", "b1", "a1", "c1"]


@pytest.mark.parametrize("priority", [11, -11, 1.5, "3", True, [1]])
def test_priority_out_of_bounds_is_refused(priority: Any) -> None:
    with pytest.raises(ArgumentError, match=r"\[extend.priority\] must be a whole number from -10 to 10"):
        with_order(job("m", extend={"priority": priority}))


def test_app_id_may_be_any_json_and_may_be_missing() -> None:
    apps = [None, "shop", 7, {"a": 1}, "x" * 500]
    found = [with_order(job("m", extend={"app_id": app_id, "priority": -10})) for app_id in apps]
    assert [each.app_id for each in found] == ["", "shop", "7", '{"a":1}', "x" * 200]
    assert {each.priority for each in found} == {-10}
    assert with_order(job("m")).app_id == ""
    assert with_order(msgspec.structs.replace(job("m"), extend="null")).priority == 0


def started(folder: Path) -> list[str]:
    file = folder / "started"
    return file.read_text().split() if file.exists() else []


@pytest.mark.anyio
async def test_fair_queue_starts_apps_in_turn_and_goes_on_after_a_restart(
    open_queue: OpenQueue, tmp_path: Path
) -> None:
    def submitted(model_id: str, algorithm: str = "it", priority: int = 0) -> Job:
        extend = {"app_id": model_id[0], "priority": priority}
        return with_order(job(model_id, algorithm, extend=extend, folder=str(tmp_path)))

    settings = {"train_task_num": 1, "train_fair": "app_id"}
    async with open_queue(SCRIPT, **settings) as queue:
        await queue.submit(submitted("a1"))
        await reached(queue, "a1", lambda found: found.state == "training")
        for model_id in ("a2", "a3", "b1", "c1"):
            await queue.submit(submitted(model_id, "other" if model_id == "b1" else "it"))
        await queue.submit(submitted("a9", priority=5))
        # The start of a9 will be the turn of its app.
        assert {name: queue.position(name) for name in ("a1", "a9", "a2", "b1", "c1", "a3")} == {
            "a1": None,
            "a9": 1,
            "b1": 2,
            "c1": 3,
            "a2": 4,
            "a3": 5,
        }
        await queue.cancel("a9")
        await until(lambda: [queue.position(name) for name in ("a2", "b1", "c1", "a3")] == [1, 2, 3, 4])
        await until(lambda: started(tmp_path) == ["a1"])
        await queue.cancel("a1")
        await until(lambda: started(tmp_path) == ["a1", "a2"])
        assert {name: queue.position(name) for name in ("b1", "c1", "a3")} == {"b1": 1, "c1": 2, "a3": 3}

    (tmp_path / "go").touch()
    async with open_queue(SCRIPT, **settings) as queue:
        for model_id in ("a2", "b1", "c1", "a3"):
            assert (await end_of(queue, model_id)).state == "completed"
    # The one that was interrupted has had its turn and not used it.
    assert started(tmp_path) == ["a1", "a2", "a2", "b1", "c1", "a3"]


@pytest.mark.anyio
async def test_positions_of_a_fair_queue_with_priorities_are_the_order_of_the_starts(
    open_queue: OpenQueue, tmp_path: Path
) -> None:
    async with open_queue(SCRIPT, train_task_num=1, train_fair="app_id") as queue:
        for model_id, priority in (("a1", 0), ("a2", 0), ("a3", 0), ("b1", 0), ("a4", 5), ("c1", -5), ("b2", -5)):
            extend = {"app_id": model_id[0], "priority": priority}
            await queue.submit(with_order(job(model_id, extend=extend, folder=str(tmp_path))))
            if model_id == "a1":
                await reached(queue, "a1", lambda found: found.state == "training")
        waiting = ["a2", "a3", "b1", "a4", "c1", "b2"]
        expected = sorted(waiting, key=lambda name: queue.position(name) or 0)
        (tmp_path / "go").touch()
        for model_id in waiting:
            await end_of(queue, model_id)
        assert started(tmp_path) == ["a1", *expected]


@pytest.mark.anyio
async def test_job_with_a_higher_priority_gets_the_next_place_and_the_others_keep_their_order(
    open_queue: OpenQueue, tmp_path: Path
) -> None:
    async with open_queue(SCRIPT, train_task_num=1) as queue:
        for model_id, priority in (("m1", 0), ("m2", 0), ("m3", -1), ("m4", 10), ("m5", 0)):
            extend = {"priority": priority}
            await queue.submit(with_order(job(model_id, extend=extend, folder=str(tmp_path))))
            if model_id == "m1":
                await reached(queue, "m1", lambda found: found.state == "training")
        assert [queue.position(f"m{number}") for number in range(1, 6)] == [None, 2, 4, 1, 3]
        await queue.cancel("m2")
        (tmp_path / "go").touch()
        for number in (1, 3, 4, 5):
            await end_of(queue, f"m{number}")
    assert started(tmp_path) == ["m1", "m4", "m5", "m3"]


@pytest.mark.anyio
async def test_start_is_estimated_from_the_jobs_of_an_earlier_service(
    open_queue: OpenQueue, tmp_path: Path, home: Path
) -> None:
    journal = Journal(home)
    for number in range(2 * RECALLED):
        # Only the newest count, and no failures.
        journal.add(msgspec.structs.replace(completed(60.0 if number < RECALLED else 3600.0), model_id=f"old{number}"))
        journal.add(msgspec.structs.replace(completed(1.0), model_id=f"bad{number}", state="error"))
    journal.close()

    async with open_queue(SCRIPT, train_task_num=1) as queue:
        for model_id in ("m1", "m2", "m3"):
            await queue.submit(with_order(job(model_id, folder=str(tmp_path))))
        runs = await reached(queue, "m1", lambda found: found.state == "training")
        assert runs.started is not None
        assert queue.estimated_start("m1") is None
        assert queue.estimated_start("m2") == pytest.approx(runs.started + 3600.0)
        assert queue.estimated_start("m3") == pytest.approx(runs.started + 7200.0)
        (tmp_path / "go").touch()
        await end_of(queue, "m3")
        assert queue.estimated_start("m3") is None


@pytest.mark.anyio
async def test_start_is_estimated_from_the_rows_that_the_data_checks_have_counted(
    open_queue: OpenQueue, tmp_path: Path, home: Path
) -> None:
    bucket = home / "storage" / "ml-platform-data"
    bucket.mkdir(parents=True)
    for name, count in {"small": 4, "large": 4000}.items():
        lines = (f"row {number}\t{number % 2}\t1\n" for number in range(count))
        (bucket / name).write_text("".join(lines), encoding="utf-8")

    def submitted(model_id: str, location: str) -> Job:
        return with_order(job(model_id, data={"location": location}, folder=str(tmp_path)))

    def rows(found: Job) -> int | None:
        return found.progress.rows if found.progress is not None else None

    (tmp_path / "go").touch()
    async with open_queue(SCRIPT_WITH_DATA, train_task_num=1) as queue:
        first = await train(queue, submitted("first", "small"))
        assert (first.state, first.location, rows(first)) == ("completed", "small", 4)
        assert first.started is not None
        assert first.ended is not None
        (tmp_path / "go").unlink()
        for model_id in ("runs", "again", "last"):
            await queue.submit(submitted(model_id, "large" if model_id == "runs" else "small"))
        runs = await reached(queue, "runs", lambda found: rows(found) == 4000)
        assert runs.started is not None
        seconds = first.ended - first.started
        expected = pytest.approx(runs.started + 1000 * seconds)
        await until(lambda: queue.estimated_start("again") == expected)
        assert queue.estimated_start("last") == pytest.approx(runs.started + 1001 * seconds)
