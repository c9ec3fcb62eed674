"""A handler that fails in an odd way is answered like any other failure; nobody waits for a time limit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlpkit import Client
from mlpkit.errors import LoadFailed, PredictFailed, TimeLimitExceeded, WorkerLost
from tests.acceptance.service import RunningService
from tests.faults.conftest import wait_in_flight
from tests.servers import LONG

SCRIPT = Path(__file__).parent / "scripts" / "odd.py"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    values = {"MLPKIT_SHUTDOWN_GRACE": "1", "MLPKIT_HOOK_TIMEOUT": "1"}
    service = RunningService(f"{SCRIPT}:app", tmp_path_factory.mktemp("odd") / "home", values)
    try:
        service.wait_ready()
        yield service.client
    finally:
        service.stop()


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [("odd", "it cannot be written"), ("lazy", "it cannot be read"), ("cancelled", "CancelledError")],
)
def test_failure_while_an_answer_is_made_is_an_answer(client: Client, algorithm: str, words: str) -> None:
    client.load(algorithm, algorithm)
    for say in ("first", "second"):
        assert client.predict(algorithm, {"say": say}) == say
        with pytest.raises(PredictFailed, match=words):
            client.predict(algorithm, {"say": "fail"}, timeout=LONG)


def test_load_that_says_it_was_cancelled_has_failed(client: Client) -> None:
    with pytest.raises(LoadFailed, match="CancelledError"):
        client.load("cancelled", "never", timeout=LONG)


def test_first_prediction_of_a_slow_model_does_not_hold_up_the_others(
    client: Client, callers: ThreadPoolExecutor
) -> None:
    client.load("slow", "slow")
    client.load("odd", "quick")
    slow = callers.submit(client.predict, "slow", {"say": "slow"})
    wait_in_flight(client, "slow")
    assert client.predict("quick", {"say": "quick"}) == "quick"
    assert not slow.done(), "the quick one waited for the slow one"
    assert slow.result(LONG) == "slow"


def test_hooks_that_never_return_do_not_keep_models_from_being_loaded(
    client: Client, callers: ThreadPoolExecutor
) -> None:
    asked = [callers.submit(client.status, "stuck", "m") for _ in range(12)]
    assert {type(each.exception(LONG)) for each in asked} <= {TimeLimitExceeded, WorkerLost}
    client.load("odd", "after", timeout=LONG)
    assert client.predict("after", {"say": "yes"}) == "yes"


@pytest.mark.parametrize("workers", ["1", "0"])
def test_what_a_prediction_prints_has_its_uuid(tmp_path: Path, workers: str) -> None:
    script = tmp_path / "printing.py"
    script.write_text(
        "from mlpkit import App\n"
        "app = App('printing')\n"
        "@app.load\n"
        "def load(): return None\n"
        "@app.predict\n"
        "def predict(model, features: dict):\n"
        "    print('whole')\n"
        "    print('without an end', end='')\n"
        "    return 1\n"
    )
    service = RunningService(f"{script}:app", tmp_path / "home", {"MLP_CLIENT_WORKER": workers})
    try:
        service.wait_ready()
        service.client.load("printing", "m")
        for uuid in ("first", "second"):
            service.client.predict("m", {}, uuid=uuid)
    finally:
        service.stop()
    for uuid in ("first", "second"):
        lines = [line for line in service.log.splitlines() if f"[{uuid}]" in line]
        assert sum(line.endswith("| whole") for line in lines) == 1, lines
        assert sum(line.endswith("| without an end") for line in lines) == 1, lines


def test_forked_process_that_comes_back_from_a_handler_ends(tmp_path: Path) -> None:
    script = tmp_path / "forking.py"
    script.write_text(
        "import os\n"
        "from mlpkit import App\n"
        "app = App('forking')\n"
        "def forked(fails):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        print('in the child', end='')\n"
        "        if fails: raise ValueError('child')\n"
        "        return 'child'\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "@app.load\n"
        "def load(): return forked(False)\n"
        "@app.predict\n"
        "def predict(model, features: dict): return [model, forked(features['fails'])]\n"
    )
    service = RunningService(f"{script}:app", tmp_path / "home", {"MLP_CLIENT_WORKER": "1"})
    try:
        service.wait_ready()
        service.client.load("forking", "m")
        assert service.client.predict("m", {"fails": False}) == [0, 0]
        assert service.client.predict("m", {"fails": True}) == [0, 1]
    finally:
        service.stop()
    assert service.log.count("| in the child") == 3
