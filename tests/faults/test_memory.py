"""Memory: a model that is gone leaves none behind, and one that is too large is refused before it is loaded."""

from __future__ import annotations

import psutil
import pytest

from mlpkit.errors import LoadFailed
from tests.acceptance.service import RunningService
from tests.conftest import Report
from tests.faults.conftest import Start, pid_of
from tests.servers import wait_until

ROUNDS = 10
MODEL = 200_000_000


def used(service: RunningService) -> int:
    """Bytes that the server and its workers have for themselves."""
    return sum(each.memory_full_info().uss for each in service.family())


@pytest.mark.slow
def test_isolated_model_leaves_no_memory_behind(start: Start, report: Report) -> None:
    service = start()
    client = service.client
    client.load("alone", "small")
    client.unload("alone", "small")
    before, figures = used(service), []
    for number in range(ROUNDS):
        client.load("alone", f"big-{number}")
        pid = pid_of(client, f"big-{number}")
        assert used(service) - before > MODEL
        client.unload("alone", f"big-{number}")
        wait_until(lambda pid=pid: not psutil.pid_exists(pid), "its process is gone", 5)  # type: ignore[misc]
        figures.append((used(service) - before) / 2**20)
    report(f"MiB above the beginning after each round: {', '.join(f'{each:.1f}' for each in figures)}")
    assert figures[-1] < 10


def test_model_that_needs_more_memory_than_is_free_is_refused_with_figures(start: Start) -> None:
    client = start().client
    with pytest.raises(LoadFailed, match=r"the model needs 512000\.0 GiB of memory, \d+\.\d GiB are free"):
        client.load("greedy", "m")
    assert client.models() == []
