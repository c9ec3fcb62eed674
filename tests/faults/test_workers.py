"""Workers that die, in whatever way and at whatever moment, hang, or never start."""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from mlpkit import Client
from mlpkit.errors import LoadFailed, MlpkitError, ModelNotLoaded, TimeLimitExceeded, WorkerLost
from tests.acceptance.service import RunningService
from tests.conftest import Report
from tests.faults.conftest import Start, notes, order, pid_of, wait_in_flight, warnings
from tests.servers import LONG, SOON, wait_until

WORDS = {
    "kill": "was killed by SIGKILL",
    "segfault": "was killed by SIGSEGV",
    "exit": "exited with code 3",
}


class Bystander:
    """Somebody who asks another model all the time. `longest` is the longest answer in seconds."""

    def __init__(self, client: Client, model_id: str) -> None:
        self._client, self._model_id = client, model_id
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.failures: list[MlpkitError] = []
        self.answers, self.longest = 0, 0.0

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join(LONG)

    def _ask(self) -> None:
        while not self._over.wait(0.02):
            began = time.monotonic()
            try:
                self._client.predict(self._model_id, order())
            except MlpkitError as error:
                self.failures.append(error)
            self.answers += 1
            self.longest = max(self.longest, time.monotonic() - began)


def time_until_back(service: RunningService, model_id: str) -> float:
    """Seconds until the model answers and the service is ready again."""
    began = time.monotonic()

    def is_back() -> bool:
        try:
            service.client.predict(model_id, order())
        except MlpkitError:
            return False
        return service.client.ready().ready

    wait_until(is_back, "the model is back")
    return time.monotonic() - began


def take_time_to_come_back(folder: Path, model_id: str) -> None:
    """Lets further loads of the model take a moment, so that a test can see what readiness says until then."""
    (folder / f"load {model_id}").write_text(" 0.5")


def test_worker_that_dies_in_a_predict_fails_what_it_held_and_nothing_else(
    start: Start, folder: Path, callers: ThreadPoolExecutor, report: Report
) -> None:
    service = start({"MLP_CLIENT_WORKER": "2"})
    client = service.client
    for model_id in ("victim", "bystander"):
        client.load("faulty", model_id)
    take_time_to_come_back(folder, "victim")
    with Bystander(client, "bystander") as bystander:
        for do, words in WORDS.items():
            beside = callers.submit(client.predict, "victim", order(seconds=LONG))
            wait_in_flight(client, "victim")
            began = time.monotonic()
            with pytest.raises(WorkerLost, match=f"worker-0 {words}.* while it held the request"):
                client.predict("victim", order(do))
            with pytest.raises(WorkerLost, match=words):
                beside.result(SOON)
            told = time.monotonic() - began
            wait_until(lambda words=words: words in str(client.ready().reasons), "readiness tells")  # type: ignore[misc]
            back = time_until_back(service, "victim")
            report(f"{do} in a predict: callers told after {told:.2f} s, model back after {back:.2f} s")
            assert told < SOON
    assert bystander.failures == []
    report(f"the bystander got {bystander.answers} answers, the slowest after {bystander.longest * 1e3:.0f} ms")


def test_worker_that_is_killed_when_idle_is_back_and_keeps_whoever_asks_meanwhile(
    start: Start, folder: Path, report: Report
) -> None:
    service = start()
    service.client.load("faulty", "m")
    service.client.load("faulty", "n")
    take_time_to_come_back(folder, "m")
    killed = pid_of(service.client, "m")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not service.client.ready().ready, "readiness tells")
    assert pid_of(service.client, "m") != killed
    assert pid_of(service.client, "n") != killed
    report(f"killed when idle: ready again after {time_until_back(service, 'm'):.2f} s more")


def test_worker_that_dies_in_a_load_fails_that_load_and_keeps_its_other_models(start: Start, folder: Path) -> None:
    service = start()
    client = service.client
    client.load("faulty", "old")
    for number, (do, words) in enumerate(WORDS.items()):
        (folder / "load new").write_text(do)
        # The first death makes it a suspect: from then on it is loaded in a process of its own.
        with pytest.raises(LoadFailed, match=f"worker-{min(number, 1)} {words}"):
            client.load("faulty", "new", timeout=LONG)
        with pytest.raises(ModelNotLoaded):
            client.predict("new", order())
        assert [each.model_id for each in client.models()] == ["old"]
        time_until_back(service, "old")
    (folder / "load new").unlink()
    client.load("faulty", "new")
    assert client.predict("new", order())["model_id"] == "new"


def test_worker_that_dies_in_a_batch_fails_the_batch_and_not_what_waits(
    start: Start, folder: Path, callers: ThreadPoolExecutor
) -> None:
    client = start().client
    client.load("batches", "m")
    first = callers.submit(client.predict, "m", order(seconds=1.0, say="first"))
    wait_in_flight(client, "m")
    others = {"killer": callers.submit(client.predict, "m", order("kill", say="killer"))}
    for number in range(7):
        others[f"n{number}"] = callers.submit(client.predict, "m", order(say=f"n{number}"))
    assert first.result(LONG)["say"] == "first"
    lost = {say for say, each in others.items() if isinstance(each.exception(LONG), WorkerLost)}
    (batch,) = (line.split() for line in notes(folder / "batches") if "killer" in line)
    assert lost == set(batch)
    assert 0 < len(lost) <= 4
    assert all(each.result()["say"] == say for say, each in others.items() if say not in lost)


def test_callers_of_a_killed_replica_are_told_and_all_others_get_the_answer_of_the_other_one(
    start: Start, folder: Path, callers: ThreadPoolExecutor
) -> None:
    client = start().client
    client.load("twins", "m")
    (folder / "load m").write_text(f" {SOON}")

    def both(seconds: float) -> list[Future[dict[str, Any]]]:
        asked = [callers.submit(client.predict, "m", order(seconds=seconds)) for _ in range(2)]
        wait_in_flight(client, "m", 2)
        return asked

    killed, other = (each.result(LONG)["pid"] for each in both(0.5))
    assert killed != other
    held = both(2.0)
    began = time.monotonic()
    os.kill(killed, signal.SIGKILL)
    (first,) = wait(held, SOON, FIRST_COMPLETED).done
    assert isinstance(first.exception(), WorkerLost)
    after = [callers.submit(client.predict, "m", order()) for _ in range(8)]
    assert {each.result(LONG)["pid"] for each in after} == {other}
    assert [each.result(LONG)["pid"] for each in held if each is not first] == [other]
    assert time.monotonic() - began < SOON, "the killed one is not back yet"


def test_worker_that_dies_at_every_start_is_given_up_with_a_reason_and_without_a_busy_loop(
    start: Start, folder: Path
) -> None:
    service = start()
    client = service.client
    client.load("faulty", "m")
    (folder / "start").touch()
    os.kill(pid_of(client, "m"), signal.SIGKILL)
    wait_until(lambda: "exited with code 7, 4 times in a row" in str(client.ready().reasons), "it is given up")
    with pytest.raises(LoadFailed, match=r"worker 0 .*exited with code 7"):
        client.load("faulty", "new", timeout=LONG)
    wait_until(lambda: len(notes(folder / "starts")) == 6, "it was started again and again")
    starts = [float(each) for each in notes(folder / "starts")]
    pauses = [later - sooner for sooner, later in itertools.pairwise(starts)]
    # Beside what a start takes: nothing after the first death in a row, 0.1 s after the second, and then the double.
    assert all(pause >= least for pause, least in zip(pauses[1:], (0.1, 0.2, 0.4, 0.8), strict=True)), pauses
    assert client.live()

    (folder / "start").unlink()
    wait_until(lambda: client.ready().ready, "the service is ready again")
    assert client.predict("m", order())["model_id"] == "m"


def test_predict_stuck_in_c_code_is_ended_by_its_time_out(start: Start, report: Report) -> None:
    service = start({"MLP_CLIENT_WORKER": "2"})
    client = service.client
    client.load("hasty", "stuck")
    client.load("faulty", "bystander")
    with Bystander(client, "bystander") as bystander:
        began = time.monotonic()
        with pytest.raises(TimeLimitExceeded, match="predict took longer than 1 s: worker-0 was ended"):
            client.predict("stuck", order("hold"))
        told = time.monotonic() - began
        back = time_until_back(service, "stuck")
    report(f"stuck in C code: ended after {told:.2f} s (timeout=1), model back after {back:.2f} s")
    assert 1.0 <= told < SOON
    assert bystander.failures == []


def test_time_limit_of_a_predict_does_not_count_the_wait_for_others(start: Start, callers: ThreadPoolExecutor) -> None:
    client = start().client
    client.load("hasty", "m")
    client.predict("m", order(seconds=0.1))
    pid = pid_of(client, "m")
    asked = [callers.submit(client.predict, "m", order(seconds=0.7)) for _ in range(4)]
    assert {each.result(LONG)["pid"] for each in asked} == {pid}


def test_load_that_kills_its_worker_fails_alone_however_many_models_are_loaded_beside_it(
    start: Start, folder: Path, callers: ThreadPoolExecutor, report: Report
) -> None:
    service = start()
    client = service.client
    client.load("faulty", "old")
    (folder / "load killer").write_text("kill 0.2")
    innocent = [f"innocent-{number}" for number in range(20)]
    for model_id in innocent:
        (folder / f"load {model_id}").write_text(" 0.1")
    began = time.monotonic()
    killer = callers.submit(client.load, "faulty", "killer")
    asked = [callers.submit(client.load, "faulty", model_id) for model_id in innocent]
    for each in asked:
        each.result(LONG)
    took = time.monotonic() - began
    for model_id in innocent:
        assert client.predict(model_id, order())["model_id"] == model_id
    assert isinstance(killer.exception(60), LoadFailed)
    report(f"20 models beside one whose load kills its worker: all answer after {took:.1f} s")
    assert service.log.count("worker 0 was killed by SIGKILL") == 1

    wait_until(lambda: client.ready().ready, "the service is ready again")
    # Those that were suspects return to the shared worker, and the next try harms nobody.
    wait_until(lambda: set(map(tuple, client.monitor().load.values())) == {(0,)}, "all are in worker 0")
    with Bystander(client, "old") as bystander, pytest.raises(LoadFailed, match=r"worker-[1-9]"):
        client.load("faulty", "killer")
    assert bystander.failures == []
    assert bystander.longest < SOON


@pytest.mark.slow
def test_worker_that_hangs_up_and_lives_on_is_killed_and_replaced(start: Start) -> None:
    service = start()
    service.client.load("faulty", "m")
    with pytest.raises(WorkerLost, match="worker-0 closed its channel"):
        service.client.predict("m", order("leave"), timeout=LONG)
    time_until_back(service, "m")


@pytest.mark.slow
def test_model_that_kills_every_worker_that_loads_it_again_is_given_up_alone(start: Start, folder: Path) -> None:
    service = start()
    client = service.client
    innocent = [f"innocent-{number}" for number in range(4)]
    for model_id in ("killer", *innocent):
        client.load("faulty", model_id)
        (folder / f"load {model_id}").write_text(" 0.3")
    (folder / "load killer").write_text("kill 0.1")
    os.kill(pid_of(client, "killer"), signal.SIGKILL)

    wait_until(lambda: "model 'killer' is given up" in service.log, "it is given up")
    for model_id in innocent:
        assert client.predict(model_id, order())["model_id"] == model_id
    with pytest.raises(ModelNotLoaded):
        client.predict("killer", order())
    wait_until(lambda: client.ready().ready, "the service is ready again")
    warning = r"model \[killer\] was given up \(worker-\d+ was killed by SIGKILL .*: load it again, or unload it"
    assert re.search(warning, str(warnings(client)))

    service.kill()
    client = start().client
    assert sorted(client.monitor().load) == innocent
    assert re.search(warning, str(warnings(client)))
    (folder / "load killer").unlink()
    client.load("faulty", "killer")
    assert warnings(client) == []


@pytest.mark.slow
def test_model_that_kills_its_worker_at_every_start_of_the_service_is_given_up_alone(
    start: Start, folder: Path, report: Report
) -> None:
    service = start()
    innocent = [f"innocent-{number}" for number in range(10)]
    for model_id in (*innocent[:5], "killer", *innocent[5:]):
        service.client.load("faulty", model_id)
        (folder / f"load {model_id}").write_text(" 0.2")
    service.kill()
    (folder / "load killer").write_text("kill 0.1")
    began = time.monotonic()
    service = start(ready=False)
    client = service.client
    wait_until(lambda: "model 'killer' is given up" in service.log, "it is given up")
    report(f"a model that kills its worker at every start was given up after {time.monotonic() - began:.1f} s")
    wait_until(lambda: client.ready().ready and sorted(client.monitor().load) == innocent, "the others are back")
    assert "model [killer] was given up" in str(warnings(client))
    assert notes(folder / "loads").count("killer") == 4


@pytest.mark.slow
def test_models_are_not_given_up_where_no_worker_can_start(start: Start, folder: Path) -> None:
    service = start()
    service.client.load("faulty", "m")
    service.kill()
    (folder / "start").touch()
    service = start({"MLPKIT_START_TIMEOUT": "5", "MLPKIT_LOG_LEVEL": "debug"}, ready=False)
    wait_until(lambda: "could not be loaded at the start, 4 times" in service.log, "four tries failed")
    (folder / "start").unlink()
    wait_until(lambda: service.client.monitor().load == {"m": [0]}, "it is loaded")


@pytest.mark.slow
def test_model_that_cannot_be_loaded_at_the_start_is_tried_again(start: Start, folder: Path) -> None:
    service = start()
    for model_id in ("late", "dropped"):
        service.client.load("faulty", model_id)
        (folder / f"load {model_id}").write_text("raise")
    service.kill()
    client = start().client
    assert client.monitor().load == {}
    client.unload("faulty", "dropped")
    for model_id in ("late", "dropped"):
        (folder / f"load {model_id}").unlink()
    wait_until(lambda: client.monitor().load == {"late": [0]}, "it is loaded")
    loads = notes(folder / "loads")
    time.sleep(2)
    assert notes(folder / "loads") == loads
