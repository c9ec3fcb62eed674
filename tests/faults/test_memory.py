"""Memory: a model that is gone leaves none behind, and one that is too large is refused before it is loaded.

Where memory runs out all the same, it is an error of whoever asked for it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil
import pytest

from mlpkit import Client
from mlpkit.errors import LoadFailed, MlpkitError, ModelNotLoaded, PredictFailed, TrainFailed, WorkerLost
from tests.acceptance.service import RunningService
from tests.conftest import Report
from tests.faults.conftest import Start, notes, order, pid_of, wait_in_flight
from tests.faults.machine import MemoryGroup, limit_addresses, memory_group
from tests.servers import LONG, SOON, wait_until

ROUNDS = 20
MODEL = 500_000_000
BIG = 200_000_000


def used(service: RunningService) -> int:
    """Bytes that the server and its workers have for themselves."""
    total = 0
    for process in service.family():
        # The keeper of an ended worker ends a moment after it.
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().uss
    return total


def limit(group: MemoryGroup, service: RunningService, room: int) -> None:
    """Lets the whole service have so many bytes more than now."""
    group.add(*(each.pid for each in service.family()))
    group.leave(room)


def time_until_back(client: Client, model_id: str) -> float:
    began = time.monotonic()

    def is_back() -> bool:
        try:
            client.predict(model_id, order())
        except MlpkitError:
            return False
        return True

    wait_until(is_back, f"{model_id} is back")
    return time.monotonic() - began


@pytest.mark.slow
def test_isolated_model_leaves_neither_memory_nor_descriptors_behind(start: Start, report: Report) -> None:
    service = start()
    client = service.client
    client.load("alone", "small")
    client.unload("alone", "small")
    server = psutil.Process(service.pid)
    before = used(service)
    descriptors = server.num_fds()
    figures = []
    for number in range(ROUNDS):
        client.load("alone", f"huge-{number}")
        pid = pid_of(client, f"huge-{number}")
        assert used(service) - before > MODEL
        client.unload("alone", f"huge-{number}")
        wait_until(lambda pid=pid: not psutil.pid_exists(pid), "its process is gone")  # type: ignore[misc]
        figures.append((used(service) - before) / 2**20)
    report(f"MiB above the beginning after each round: {', '.join(f'{each:.1f}' for each in figures)}")
    assert figures[-1] < 10
    wait_until(lambda: server.num_fds() <= descriptors, "no descriptor is left behind")


@pytest.mark.slow
def test_shared_worker_gives_back_the_memory_of_a_model_that_is_unloaded(start: Start, report: Report) -> None:
    service = start()
    client = service.client
    client.load("faulty", "small")
    before, figures = used(service), []
    for number in range(5):
        client.load("faulty", f"huge-{number}")
        with pytest.raises(PredictFailed):
            client.predict(f"huge-{number}", order("raise"))
        assert used(service) - before > MODEL
        client.unload("faulty", f"huge-{number}")
        figures.append((used(service) - before) / 2**20)
    report(f"shared worker, MiB above the beginning after each round: {', '.join(f'{each:.1f}' for each in figures)}")
    assert figures[-1] < 10


def test_model_that_needs_more_memory_than_is_free_is_refused_with_figures(start: Start) -> None:
    client = start().client
    with pytest.raises(LoadFailed, match=r"needs 524,288,000 MiB of memory \(memory=\), [\d,]+ MiB are free"):
        client.load("greedy", "m")
    assert client.models() == []


def test_what_a_model_took_is_remembered_and_refused_where_it_is_not_free(start: Start, folder: Path) -> None:
    service = start()
    service.client.load("alone", "big-model")
    service.client.load("alone", "small")
    service.client.unload("alone", "big-model")
    service.terminate()
    remembered = msgspec.json.decode((service.home / "memory.json").read_bytes(), type=dict[str, int])
    # The process of an isolated model counts too.
    assert 0 < remembered["small"] < (64 << 20)
    assert BIG < remembered["big-model"] < BIG + (64 << 20)

    service = start()
    client = service.client
    loads = notes(folder / "loads")
    with memory_group() as group:
        limit(group, service, BIG // 2)
        with pytest.raises(LoadFailed, match=r"needed 2\d\d MiB of memory when it was loaded last, \d{2,3} MiB are fr"):
            client.load("alone", "big-model")
        assert notes(folder / "loads") == loads
        assert [each.model_id for each in client.models()] == ["small"]
        limit(group, service, BIG + (140 << 20))
        with pytest.raises(LoadFailed, match=r"needed 2 x 2\d\d MiB"):
            client.load("twins", "big-model")
        client.load("alone", "big-model")
        assert client.predict("big-model", order())["model_id"] == "big-model"
        service.terminate()


def test_loads_that_have_no_room_beside_each_other_follow_each_other(
    start: Start, folder: Path, callers: ThreadPoolExecutor
) -> None:
    client = start({"FAULTS_MEMORY": str(int(psutil.virtual_memory().available * 0.6))}).client
    loads = [callers.submit(client.load, "careful", f"m-{number}") for number in range(3)]
    for each in loads:
        each.result(LONG)
    begun = [float(line.split()[1]) for line in notes(folder / "careful")]
    assert [later - sooner > 0.3 for sooner, later in itertools.pairwise(begun)] == [True, True]


@pytest.mark.slow
def test_model_of_a_worker_that_died_comes_back_once_there_is_room_again(start: Start) -> None:
    service = start({"FAULTS_MEMORY": str(BIG)})
    client = service.client
    client.load("careful", "m")
    client.load("faulty", "bystander")
    with memory_group() as group:
        limit(group, service, BIG // 2)
        os.kill(pid_of(client, "bystander"), signal.SIGKILL)
        time_until_back(client, "bystander")
        problem = r"could not be loaded again: .* needs 191 MiB of memory \(memory=\), \d+ MiB are free"
        wait_until(lambda: any(re.search(problem, each.problem) for each in client.models()), "it is refused")
        limit(group, service, 2 * BIG)
        wait_until(lambda: all(not each.problem for each in client.models()), "it is back")
        assert client.predict("m", order())["model_id"] == "m"
        service.terminate()


def test_predict_that_gets_no_more_memory_fails_alone(start: Start) -> None:
    service = start()
    client = service.client
    for model_id in ("m", "bystander"):
        client.load("faulty", model_id)
    worker = psutil.Process(pid_of(client, "bystander"))
    limit_addresses(worker, 300 << 20)
    with pytest.raises(PredictFailed, match="MemoryError: the process could not get more memory"):
        client.predict("m", order("allocate"))
    assert {pid_of(client, model_id) for model_id in ("m", "bystander")} == {worker.pid}
    assert client.ready().ready


def test_load_that_gets_no_more_memory_fails_alone_and_leaves_nothing(start: Start, folder: Path) -> None:
    service = start()
    client = service.client
    client.load("faulty", "bystander")
    (folder / "load m").write_text("allocate")
    worker = psutil.Process(pid_of(client, "bystander"))
    limit_addresses(worker, 300 << 20)
    with pytest.raises(LoadFailed, match="load fail MemoryError: the process could not get more memory"):
        client.load("faulty", "m")
    assert pid_of(client, "bystander") == worker.pid
    with pytest.raises(ModelNotLoaded):
        client.predict("m", order())
    (folder / "load m").unlink()
    client.load("faulty", "m")
    assert pid_of(client, "m") == worker.pid


def test_worker_that_the_kernel_kills_for_its_memory_is_replaced_and_its_callers_are_told(
    start: Start, callers: ThreadPoolExecutor, report: Report
) -> None:
    service = start()
    client = service.client
    for model_id in ("m", "bystander"):
        client.load("faulty", model_id)
    words = r"worker-0 was killed by SIGKILL \(most likely because the machine ran out of memory\)"
    with memory_group() as group:
        group.add(pid_of(client, "m"))
        group.leave(100 << 20)
        beside = callers.submit(client.predict, "bystander", order(seconds=LONG))
        wait_in_flight(client, "bystander")
        began = time.monotonic()
        with pytest.raises(WorkerLost, match=words):
            client.predict("m", order("allocate"))
        with pytest.raises(WorkerLost, match=words):
            beside.result(SOON)
        told = time.monotonic() - began
        back = max(time_until_back(client, model_id) for model_id in ("m", "bystander"))
        report(f"killed by the kernel for its memory: callers told after {told:.2f} s, models back after {back:.2f} s")
        assert told < SOON


def test_load_that_the_kernel_kills_for_its_memory_fails_alone(start: Start, folder: Path, report: Report) -> None:
    service = start()
    client = service.client
    client.load("faulty", "old")
    (folder / "load m").write_text("allocate")
    with memory_group() as group:
        group.add(pid_of(client, "old"))
        group.leave(100 << 20)
        began = time.monotonic()
        with pytest.raises(LoadFailed, match=r"worker-0 was killed by SIGKILL .*out of memory"):
            client.load("faulty", "m")
        told = time.monotonic() - began
        back = time_until_back(client, "old")
    report(f"killed by the kernel in a load: told after {told:.2f} s, the other model back after {back:.2f} s")
    assert told < SOON
    assert [each.model_id for each in client.models()] == ["old"]


def test_training_that_the_kernel_kills_for_its_memory_says_so_and_nobody_else_notices(start: Start) -> None:
    service = start()
    client = service.client
    client.load("faulty", "m")
    fork_server = service.fork_servers()[0]
    with memory_group() as group:
        # What it forks is in its group: the jobs, and no worker that is there already.
        group.add(fork_server.pid)
        group.leave(100 << 20)
        job = client.train("faulty", parameters={"do": "allocate"})
        reason = r"the training process was killed by SIGKILL \(most likely because the machine ran out of memory\)"
        with pytest.raises(TrainFailed, match=reason):
            job.wait(LONG)
    assert fork_server.is_running()
    assert client.predict("m", order())["model_id"] == "m"
    client.train("faulty", parameters={"do": "nothing"}).wait(LONG)
