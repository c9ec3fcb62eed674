"""Services in processes of their own, started as a newcomer does, with a script that does the harm a test orders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from mlpkit import Client
from tests.acceptance.service import RunningService
from tests.servers import wait_until

SCRIPT = Path(__file__).parent / "scripts" / "faulty.py"


class Start(Protocol):
    """`start({"MLP_CLIENT_WORKER": "2"})`: a service of the faulty script, which is ready; `ready=False` does not wait.

    Started a second time, it is the same service after a restart.
    """

    def __call__(self, settings: Mapping[str, str] = {}, *, ready: bool = True) -> RunningService: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the script and a test meet: what was done, and what is to be done."""
    made = tmp_path / "meeting"
    made.mkdir()
    return made


@pytest.fixture
def start(tmp_path: Path, folder: Path) -> Iterator[Start]:
    with ExitStack() as exits:

        def start_service(settings: Mapping[str, str] = {}, *, ready: bool = True) -> RunningService:
            usual = {"MLPKIT_SHUTDOWN_GRACE": "2", "FAULTS_FOLDER": str(folder)}
            service = RunningService(f"{SCRIPT}:app", tmp_path / "home", {**usual, **settings})
            exits.callback(service.stop)
            if ready:
                service.wait_ready()
            return service

        yield start_service


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    """Threads for callers at the same time."""
    with ThreadPoolExecutor(32) as threads:
        yield threads


def order(do: str = "", seconds: float = 0.0, say: str = "") -> dict[str, Any]:
    """The `features` that make the script's predict do something."""
    return {"do": do, "seconds": seconds, "say": say}


def notes(file: Path) -> list[str]:
    """What the script has noted in a file so far, line by line."""
    return file.read_text().splitlines() if file.exists() else []


def pid_of(client: Client, model_id: str) -> int:
    """The process that holds the model."""
    pid: int = client.predict(model_id, order())["pid"]
    return pid


def warnings(client: Client) -> list[str]:
    """What `/health/ready` says of a service that is ready, and that somebody should know all the same."""
    found: list[str] = json.loads(client.request("GET", "/health/ready").body)["data"]["warnings"]
    return found


def wait_in_flight(client: Client, model_id: str, count: int = 1) -> None:
    """Returns when a worker has so many predictions of the model."""
    wait_until(
        lambda: any(each.model_id == model_id and each.in_flight >= count for each in client.models()),
        f"{count} predictions of {model_id} are in flight",
    )
