"""Models on a Ray cluster of three nodes: no answer is wrong, none hangs, and replicas of a dead node come back."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlpkit.client import Client
from mlpkit.errors import LoadFailed, MlpkitError, PredictFailed, TimeLimitExceeded, WorkerLost
from tests.acceptance.conftest import Start
from tests.acceptance.service import gone
from tests.acceptance.test_ray import cluster, own_cluster
from tests.conftest import Report
from tests.servers import LONG, wait_until
from tests.servers.raycluster import RayCluster
from tests.web.browser import opened

__all__ = ["cluster", "own_cluster"]

pytestmark = pytest.mark.slow

PREDICTIONS = 10_000
CALLERS = 16


def nodes_of(client: Client, model_id: str) -> list[str]:
    """The nodes of a model's replicas; an empty text for one that is starting."""
    return next((model.nodes for model in client.models() if model.model_id == model_id), [])


def workers_of(client: Client, model_id: str) -> list[dict[str, Any]]:
    """The workers of a model, as `/workers` tells of them."""
    content = json.loads(client.request("GET", "/workers").body)
    return [worker for worker in content["data"]["workers"] if model_id in worker["models"]]


def shown_models(client: Client) -> str:
    """What `mlpkit models` prints."""
    command = [sys.executable, "-m", "mlpkit", "models", "--url", client.url]
    done = subprocess.run(command, env={**os.environ, "COLUMNS": "300"}, capture_output=True, text=True, timeout=LONG)
    return done.stdout


def node_workers() -> set[psutil.Process]:
    """The processes on the nodes that hold models: those below an actor."""
    found = set()
    for each in psutil.process_iter():
        try:
            if "WorkerActor" in " ".join(each.cmdline()):
                found |= {child for child in each.children(recursive=True) if child.name() == "mlpkit.serving"}
        except psutil.Error:
            continue
    return found


class Crowd:
    """Callers that predict squares, and what they got."""

    def __init__(self, client: Client, model_id: str) -> None:
        self.client = client
        self.model_id = model_id
        self.right = 0
        self.wrong: list[object] = []
        self.errors: Counter[str] = Counter()
        self._next = iter(range(PREDICTIONS))
        self._lock = threading.Lock()

    def call_all(self, count: int = PREDICTIONS) -> float:
        """Makes this many predictions; the seconds that it took."""
        self._next = iter(range(count))
        begun = time.monotonic()
        with ThreadPoolExecutor(CALLERS) as callers:
            for done in [callers.submit(self._call) for _ in range(CALLERS)]:
                done.result()
        return time.monotonic() - begun

    def _call(self) -> None:
        client = Client(self.client.url, timeout=LONG)
        while True:
            with self._lock:
                number = next(self._next, None)
            if number is None:
                return
            try:
                answer: object = client.predict(self.model_id, {"number": number})
            except MlpkitError as error:
                with self._lock:
                    self.errors[str(error)] += 1
                continue
            with self._lock:
                if answer == number**2:
                    self.right += 1
                else:
                    self.wrong.append((number, answer))


def test_no_prediction_is_wrong_or_hangs_while_a_node_dies(
    start: Start, own_cluster: RayCluster, report: Report
) -> None:
    client = start("spread", own_cluster.environment).client
    begun = time.monotonic()
    client.load("spread", "m")
    report(f"four replicas on three nodes were loaded after {time.monotonic() - begun:.1f} s")
    before = nodes_of(client, "m")
    assert len(before) == 4
    assert len(set(before)) == 3
    assert [worker["node"] for worker in workers_of(client, "m")] == before
    assert all(f"on {node}" in shown_models(client) for node in before)
    ids = own_cluster.node_ids()
    victim = before[0]
    crowd = Crowd(client, "m")

    def is_back() -> bool:
        (model,) = client.models()
        return all(model.nodes) and victim not in model.nodes and not model.problem

    def kill_in_the_middle() -> None:
        wait_until(lambda: crowd.right > PREDICTIONS / 3, "a third is answered")
        own_cluster.kill(next(number for number, each in enumerate(ids) if each[:8] in victim))
        begun = time.monotonic()
        wait_until(is_back, "all replicas are back")
        report(f"all replicas were back {time.monotonic() - begun:.1f} s after a node was killed")

    with ThreadPoolExecutor(1) as killer:
        killed = killer.submit(kill_in_the_middle)
        seconds = crowd.call_all()
        killed.result()
    report(f"{PREDICTIONS} predictions while a node dies: {seconds:.1f} s, {sum(crowd.errors.values())} errors")
    report(f"errors: {dict(crowd.errors.most_common(5))}")

    assert crowd.wrong == []
    assert crowd.right + sum(crowd.errors.values()) == PREDICTIONS
    assert crowd.right > PREDICTIONS * 0.95
    assert all("node" in error for error in crowd.errors)
    assert len(nodes_of(client, "m")) == 4
    assert client.predict("m", {"number": 7}) == 49


def test_unload_ends_the_processes_on_the_nodes_and_so_does_the_end_of_the_service(
    start: Start, cluster: RayCluster
) -> None:
    service = start("spread", cluster.environment)
    client = service.client
    client.load("spread", "m")
    workers = node_workers()
    assert len(workers) == 4
    client.unload("spread", "m")
    wait_until(lambda: all(gone(each) for each in workers), "the workers have ended")
    assert nodes_of(client, "m") == []

    client.load("slow", "n")
    workers = node_workers()
    assert len(workers) == 4
    service.kill()
    wait_until(lambda: all(gone(each) for each in workers), "the workers have ended with their service")


def test_the_page_shows_the_nodes_of_models_and_workers(start: Start, cluster: RayCluster, tmp_path: Path) -> None:
    client = start("spread", cluster.environment).client
    client.load("spread", "m")
    workers = workers_of(client, "m")
    with opened(client.url, tmp_path) as browser:
        browser.open("#/models")
        browser.wait_for(", ".join(f"{worker['index']} on {worker['node']}" for worker in workers))
        browser.open("#/workers")
        for worker in workers:
            browser.wait_for(f"pid {worker['pid']} on {worker['node']}")


def test_gpus_come_from_ray_and_a_place_that_no_node_has_is_refused(start: Start, cluster: RayCluster) -> None:
    service = start("spread", {**cluster.environment, "MLPKIT_PLACE_TIMEOUT": "5s"})
    client = service.client
    client.load("gpu", "a")
    client.load("gpu", "b")
    devices = {client.predict(each, {"number": 0})[1] for each in "ab"}
    assert devices == {"0", "1"}

    with pytest.raises(LoadFailed) as failed:
        client.load("nine_gpus", "c")
    assert "there is no node with 9 GPUs: the cluster has 4 nodes, with at most 4 CPUs, 2 GPUs" in str(failed.value)
    assert "MLPKIT_PLACE_TIMEOUT" in str(failed.value)
    with pytest.raises(LoadFailed, match="all nodes with 1 GPU are in use"):
        client.load("gpu", "d")
    assert {model.model_id for model in client.models()} == {"a", "b"}
    client.unload("gpu", "a")
    client.load("gpu", "d")


def test_an_unload_ends_a_load_that_waits_for_a_node(start: Start, cluster: RayCluster) -> None:
    service = start("spread", cluster.environment)
    client = service.client
    with ThreadPoolExecutor(1) as caller:
        load = caller.submit(Client(client.url, timeout=LONG).load, "nine_gpus", "c")
        wait_until(lambda: "waits: there is no node with 9 GPUs" in service.log, "the log says what it waits for")
        client.unload("nine_gpus", "c")
        with pytest.raises(LoadFailed, match="was stopped"):
            load.result(LONG)
    assert client.models() == []


def test_a_worker_that_is_killed_on_its_node_comes_back(start: Start, cluster: RayCluster) -> None:
    service = start("spread", cluster.environment)
    client = service.client
    client.load("gpu", "m")
    first = psutil.Process(int(client.predict("m", {"number": 0})[0]))
    # As systemd does it when it stops the service: the server drains, and its children wait.
    for worker in workers_of(client, "m"):
        psutil.Process(worker["pid"]).terminate()
    assert {client.predict("m", {"number": 0})[0] for _ in range(50)} == {str(first.pid)}
    assert "SIGTERM handler" not in service.log

    first.kill()

    def answers() -> bool:
        try:
            return int(client.predict("m", {"number": 0})[0]) != first.pid
        except MlpkitError:
            return False

    wait_until(answers, "another worker answers")


def test_models_of_the_service_go_on_if_the_cluster_is_gone(start: Start, own_cluster: RayCluster) -> None:
    client = start("spread", {**own_cluster.environment, "MLPKIT_PREDICT_TIMEOUT": "5s"}).client
    client.load("spread", "far")
    client.load("near", "near")
    own_cluster.stop()

    with pytest.raises((WorkerLost, TimeLimitExceeded, PredictFailed)):
        client.predict("far", {"number": 3})
    assert client.predict("near", {"number": 3}) == 9
    wait_until(
        lambda: any("cannot use the Ray cluster" in model.problem for model in client.models()), "the problem is shown"
    )
    assert client.predict("near", {"number": 4}) == 16
    client.unload("spread", "far")
    assert [model.model_id for model in client.models()] == ["near"]


def test_figures_of_a_hop(start: Start, cluster: RayCluster, report: Report) -> None:
    client = start("spread", cluster.environment).client
    for far, near, count in (("spread", "near", 1000), ("slow", "slow_near", 500)):
        alone: dict[str, list[float]] = {far: [], near: []}
        together: dict[str, list[float]] = {far: [], near: []}
        for algorithm in (far, near):
            client.load(algorithm, algorithm)
            Crowd(client, algorithm).call_all(200)
        # In turns: what else the machine does changes from second to second.
        for _ in range(5):
            for algorithm in (far, near):
                crowd = Crowd(client, algorithm)
                together[algorithm].append(count / crowd.call_all(count))
                assert crowd.right == count
                alone[algorithm] += [_seconds(lambda: client.predict(algorithm, {"number": 3})) for _ in range(50)]  # noqa: B023
        for algorithm in (far, near):
            memory = [psutil.Process(each["pid"]).memory_full_info() for each in workers_of(client, algorithm)]
            report(
                f"{algorithm}: {statistics.median(together[algorithm]):.0f} predictions/s by {CALLERS} callers, "
                f"one alone {statistics.median(alone[algorithm]) * 1000:.1f} ms; MiB here (of their own): "
                + ", ".join(f"{each.rss >> 20} ({each.uss >> 20})" for each in memory)
            )
            client.unload(algorithm, algorithm)


def _seconds(call: Callable[[], object]) -> float:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun
