"""GPUs are given whole or in parts, and nobody gets what another has."""

from __future__ import annotations

import anyio
import pytest

from mlpkit import App
from mlpkit.errors import ArgumentError, DeclarationError
from mlpkit.processes import Devices, device_settings
from mlpkit.settings import environment_remarks


def load() -> None: ...


def test_whole_devices_are_given_once() -> None:
    devices = Devices(("3", "5"))
    assert devices.take(1) == ("3",)
    assert devices.take(2) is None
    assert devices.take(1) == ("5",)
    assert devices.take(1) is None
    devices.give_back(("3",), 1)
    assert devices.take(1) == ("3",)


def test_processes_share_a_device_up_to_the_whole() -> None:
    devices = Devices(("0",))
    assert [devices.take(0.1) for _ in range(11)] == [("0",)] * 10 + [None]
    for _ in range(10):
        devices.give_back(("0",), 0.1)
    assert devices.take(1) == ("0",)


def test_shares_fill_one_device_before_they_begin_another() -> None:
    devices = Devices(("0", "1"))
    assert [devices.take(0.5), devices.take(0.5), devices.take(1)] == [("0",), ("0",), ("1",)]
    assert devices.take(0.5) is None


def test_a_whole_device_is_not_given_while_somebody_has_a_share_of_it() -> None:
    devices = Devices(("0",))
    assert devices.take(0.25) == ("0",)
    assert devices.take(1) is None
    assert devices.take(0.75) == ("0",)


def test_more_devices_than_there_are_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"asks for 0\.5 GPU, this service has 0: MLPKIT_GPUS"):
        Devices(()).check(0.5)
    with pytest.raises(ArgumentError, match="asks for 3 GPUs, this service has 2"):
        Devices(("0", "1")).check(3)


def test_who_waits_is_not_overtaken_by_who_needs_fewer() -> None:
    order = []

    async def hold(devices: Devices, name: str, gpus: float) -> None:
        async with devices.held(gpus):
            order.append(name)

    async def run() -> None:
        devices = Devices(("0", "1"))
        taken = devices.take(1)
        assert taken is not None
        assert devices.why_waiting(2) == "waits for 2 GPUs: 1 of 2 are free now"
        async with anyio.create_task_group() as tasks:
            for name, gpus in (("two", 2.0), ("one", 1.0)):
                tasks.start_soon(hold, devices, name, gpus)
                await anyio.wait_all_tasks_blocked()
            assert order == []
            devices.give_back(taken, 1)
        assert order == ["two", "one"]

    anyio.run(run)


def test_why_a_job_waits_is_said_only_if_it_waits_for_devices() -> None:
    devices = Devices(("0", "1"))
    assert devices.take(0.5) is not None
    assert [devices.why_waiting(gpus) for gpus in (0, 0.5, 1)] == ["", "", ""]
    assert devices.why_waiting(2) == "waits for 2 GPUs: 1 of 2 are free now"
    assert devices.take(1) is not None
    assert devices.why_waiting(0.7) == "waits for 0.7 GPU: 0 of 2 are free now"


def test_the_devices_that_the_user_has_chosen_stay() -> None:
    assert device_settings(("1", "2"), {}) == {"CUDA_VISIBLE_DEVICES": "1,2"}
    assert device_settings(("1",), {"CUDA_VISIBLE_DEVICES": "7"}) == {}
    assert device_settings(("1",), {"CUDA_VISIBLE_DEVICES": ""}) == {}
    assert device_settings((), {}) == {}
    ((level, remark),) = environment_remarks({"CUDA_VISIBLE_DEVICES": "7", "MLPKIT_GPUS": "1"}, None)
    assert (level, remark.partition(" ")[0]) == ("WARNING", "CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize("gpus", [-1, 1.5, 0.001, True, "1"])
def test_a_number_of_devices_that_nobody_can_have_is_a_mistake(gpus: object) -> None:
    app = App("a")
    app.load(gpus=gpus)(load)  # type: ignore[call-overload]
    with pytest.raises(DeclarationError, match=r"@app\.load has gpus="):
        app.build()


def test_models_with_devices_are_isolated() -> None:
    app = App("a")
    app.load(gpus=0.5)(load)
    assert app.load_options.isolated
