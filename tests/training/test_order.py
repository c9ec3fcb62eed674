"""Which job is next: by priority, in turn for each app, and otherwise first come, first served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlpkit.errors import ArgumentError
from mlpkit.training import Job, with_order
from mlpkit.training.job import EndedJobs
from mlpkit.training.order import estimated_start, in_order
from tests.training.conftest import OpenQueue, end_of, job, reached, until

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


def test_start_is_estimated_from_what_earlier_jobs_took() -> None:
    now = 5000.0
    first = Job("a", "it", state="training", created=1.0, started=now - 40.0)
    jobs = [first, *waiting("b1", "b2", "b3")]
    ended = EndedJobs()
    assert [estimated_start(each.model_id, jobs, 1, {"it": ended}, now) for each in jobs] == [None] * 4
    for seconds in (50.0, 150.0):
        ended.running.add(seconds)
    known = {"it": ended}
    assert [estimated_start(each.model_id, jobs, 1, known, now) for each in jobs] == [None, 5060.0, 5160.0, 5260.0]
    assert [estimated_start(each.model_id, jobs, 2, known, now) for each in jobs] == [None, 5000.0, 5060.0, 5100.0]
    # One that takes longer than usual may end at any moment.
    late = msgspec.structs.replace(first, started=now - 1000.0)
    assert estimated_start("b1", [late, *jobs[1:]], 1, known, now) == now
    # Of another algorithm nothing is known yet.
    assert estimated_start("b1", [msgspec.structs.replace(first, algorithm="new"), *jobs[1:]], 1, known, now) is None


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
        assert {name: queue.position(name) for name in ("a1", "a9", "a2", "b1", "c1", "a3")} == {
            "a1": None,
            "a9": 1,
            "a2": 2,
            "b1": 3,
            "c1": 4,
            "a3": 5,
        }
        await queue.cancel("a9")
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
