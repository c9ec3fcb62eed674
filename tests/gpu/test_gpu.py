"""On a machine with a GPU and torch: a model is trained, loaded in two processes and asked, and leaves no memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpkit.client import data_of
from tests.acceptance.service import RunningService
from tests.servers import LONG, wait_until

torch = pytest.importorskip("torch", reason="torch is not installed")
if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)

_MODEL = 256 << 20
_SPARE = 64 << 20
"""Bytes that other programs may take or give back meanwhile."""


def free_memory() -> int:
    """Bytes of the first GPU that nobody has."""
    return int(torch.cuda.mem_get_info(0)[0])


def test_a_model_is_trained_loaded_twice_asked_and_leaves_no_memory_behind(tmp_path: Path) -> None:
    free_memory()  # From now on this process has its own context on the device.
    before = free_memory()
    script = Path(__file__).with_name("vision.py")
    service = RunningService(f"{script}:app", tmp_path / "home", {"MLPKIT_GPUS": "0"})
    try:
        service.wait_ready()
        job = service.client.train("vision")
        assert job.wait(LONG).status == "completed"
        service.client.load("vision", job.model_id)
        assert before - free_memory() >= 2 * _MODEL
        workers = data_of(service.client.request("GET", "/workers"))["workers"]
        assert [each["devices"] for each in workers if job.model_id in each["models"]] == [["0"], ["0"]]
        answers = [service.client.predict(job.model_id, {"factor": 2}) for _ in range(20)]
        assert {(each["sum"], each["device"]) for each in answers} == {(200.0, "0")}
        service.client.unload("vision", job.model_id)
        wait_until(lambda: before - free_memory() < _SPARE, "the memory of the model is free")
    finally:
        service.stop()
