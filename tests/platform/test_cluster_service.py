"""Cluster mode as users see it: the command, the routes, and what is needed for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlpkit.client import Client
from mlpkit.serving.model import LoadedModelRecord
from tests.platform.conftest import SCRIPT, OpenPlatform, Platform
from tests.secret import new_secret
from tests.servers import LONG, wait_until
from tests.wire.replayer import Service

ROOT = Path(__file__).parents[2]
WRONG = new_secret()


def run_mlpkit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlpkit", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LONG,
    )


@pytest.fixture
def leader(small_platform: Platform) -> Iterator[Service]:
    """A replica that leads, with the scripted algorithms."""
    environment = {"MLPKIT_CHECK_PERIOD": "0.2", "MLPKIT_SYNC": "lead", "MLP_CLIENT_MODE": "cluster"}
    service = Service(
        "default", CHECKER_START="true", MLP_CLIENT_WORKER="1", **small_platform.environment, **environment
    )
    yield service
    service.stop()


def models(service: Service) -> dict[str, dict[str, Any]]:
    return {each["model_id"]: each for each in service.get("/models").json["data"]["models"]}


@pytest.mark.parametrize("kind", ["sqlite", "mariadb"])
def test_db_init_makes_what_is_missing(open_platform: OpenPlatform, kind: str) -> None:
    platform = open_platform(kind)
    platform.sql("DROP TABLE load_record")

    made, again = (run_mlpkit("db", "init", **platform.environment) for _ in range(2))

    assert (made.returncode, again.returncode) == (0, 0)
    assert made.stdout.endswith(": load_record\n")
    assert "has the tables already" in again.stdout


def test_db_init_says_why_it_cannot(open_platform: OpenPlatform) -> None:
    environment = {**open_platform("mariadb").environment, "DB_PASS": WRONG}

    done = run_mlpkit("db", "init", **environment)

    assert done.returncode == 1
    assert "Access denied" in done.stderr
    assert WRONG not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_leading_replica_writes_what_it_is_told(leader: Service, small_platform: Platform) -> None:
    def rows() -> list[tuple[Any, ...]]:
        return small_platform.sql("SELECT model_id, loaded, algorithm, path FROM model")

    leader.post("/load", '{"algorithm": "inspect", "model_id": "m", "model_path": "bucket/m"}')
    assert rows() == [("m", 1, "inspect", "bucket/m")]
    leader.post("/load", '{"algorithm": "boom", "model_id": "bad", "model_path": "raise"}')
    assert rows() == [("m", 1, "inspect", "bucket/m")]

    leader.post("/unload", '{"algorithm": "inspect", "model_id": "m"}')
    assert rows() == [("m", 0, "inspect", "bucket/m")]
    leader.post("/load", '{"algorithm": "inspect", "model_id": "m"}')
    leader.post("/delete", '{"algorithm": "inspect", "model_id": "m"}')
    assert rows() == [("m", 0, "inspect", None)]


def test_models_shows_what_is_wanted_beside_what_is_there(leader: Service, small_platform: Platform) -> None:
    small_platform.put_model("good", "echo")
    small_platform.put_model("bad", "boom", path="raise")
    small_platform.note_change("2021-01-01 00:00:00", "echo")
    small_platform.note_change("2021-01-01 00:00:00", "boom")
    wait_until(lambda: bool(models(leader).get("bad", {}).get("error")), "the failure is shown")
    wait_until(lambda: models(leader).get("good", {}).get("state") == "loaded", "the other is loaded")

    found = models(leader)
    assert (found["good"]["desired"], found["good"]["error"], found["good"]["next_try"]) == ("loaded", "", None)
    assert (found["bad"]["desired"], found["bad"]["state"]) == ("loaded", "unloaded")
    assert "boom in load" in found["bad"]["error"]
    assert found["bad"]["next_try"] > found["bad"]["desired_since"] > 1e9
    assert found["bad"]["load_failures"] >= 1
    assert found["good"]["failures"] == 0, "it counts predictions"
    tries = found["bad"]["next_try"]
    wait_until(lambda: models(leader)["bad"]["next_try"] > tries + 0.5, "it was tried again, several times")
    log = Path(leader.folder.name, "state", "service.log").read_text()
    assert log.count("load of model 'bad' failed") == 1, "one traceback"
    assert log.count("model 'bad' of boom could not be loaded") == 1
    expected = {"model_id": "bad", "algorithm": "boom", "model_path": "raise", "reason": found["bad"]["error"]}
    wait_until(lambda: leader.get("/models").json["data"]["missing"] == [expected], "it is missing between two tries")
    answer = leader.get("/models").json["data"]
    assert answer["checker"]["looked"] > 1e9
    assert "[bad]" in answer["checker"]["warnings"][0]
    ready = leader.get("/health/ready")
    assert (ready.status, ready.json["data"]["warnings"]) == (200, answer["checker"]["warnings"])


def test_a_missing_model_of_the_last_run_that_the_database_wants_counts_once(
    small_platform: Platform, tmp_path: Path
) -> None:
    small_platform.put_model("bad", "boom", path="raise")
    small_platform.note_change("2021-01-01 00:00:00", "boom")
    last_run = [
        LoadedModelRecord("boom", "bad", "raise"),
        LoadedModelRecord("echo", "given-up", given_up="it ended its worker"),
    ]
    (tmp_path / "models.json").write_bytes(msgspec.json.encode(last_run))
    environment = {"MLP_CLIENT_MODE": "cluster", "MLPKIT_HOME": str(tmp_path), **small_platform.environment}
    replica = Service("default", CHECKER_START="true", MLP_CLIENT_WORKER="1", **environment)
    try:
        wait_until(lambda: bool(models(replica).get("bad", {}).get("error")), "the failure is shown")
        wait_until(lambda: replica.get("/summary").json["data"]["models"]["missing"] == 2, "each counts once")
        wait_until(lambda: len(replica.get("/models").json["data"]["missing"]) == 2, "each is listed once")
        error = models(replica)["bad"]["error"]
        missing = replica.get("/models").json["data"]["missing"]
        summary = replica.get("/summary").json["data"]
        with Client(f"http://127.0.0.1:{replica.port}") as client:
            problems = [(model.model_id, model.state, model.problem) for model in client.models()]
    finally:
        replica.stop()
    assert sorted(problems) == sorted((model["model_id"], "unloaded", model["reason"]) for model in missing)
    reasons = {model["model_id"]: model["reason"] for model in missing}
    assert reasons == {"bad": error, "given-up": "given up: it ended its worker"}, "also what only the last run had"
    assert summary["database"] == f"sqlite://{small_platform.environment['ML_CLIENT_MLP_DB_NAME']}"


def test_load_that_the_others_cannot_hear_of_fails_and_loads_nothing(leader: Service, small_platform: Platform) -> None:
    small_platform.sql("ALTER TABLE model RENAME TO gone")

    load = leader.post("/load", '{"algorithm": "echo", "model_id": "m"}')
    unload = leader.post("/unload", '{"algorithm": "echo", "model_id": "m"}')

    assert (load.json["status"], load.json["trace"]) == ("fail", "")
    assert "could not write that a model is to be loaded" in load.json["message"]
    assert unload.json["status"] == "fail"
    assert leader.get("/monitor").json["data"]["load"] == {}

    small_platform.sql("ALTER TABLE gone RENAME TO model")
    assert leader.post("/load", '{"algorithm": "echo", "model_id": "m"}').json == {"status": "success"}
    assert small_platform.sql("SELECT model_id, loaded FROM model") == [("m", 1)]


def test_standing_alone_needs_no_sqlalchemy(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    program = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "import io\n"
        "from mlpkit.log import LogOutput\n"
        "from mlpkit.script import import_app\n"
        "from mlpkit.service import Service\n"
        "from mlpkit.settings import load_settings\n"
        "Service(import_app('script:app'), load_settings(), LogOutput(io.StringIO()), target='script:app')\n"
    )

    def start(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=LONG,
        )

    assert start().returncode == 0
    assert "pip install 'mlpkit[sql]'" in start(MLP_CLIENT_MODE="cluster").stderr
