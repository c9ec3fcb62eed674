"""The recorded cases that need a database, against MariaDB; those without a checker against PostgreSQL too.

What the checker does on PostgreSQL is shown by `test_checker.py`, without the recorded waits.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.platform.conftest import OpenPlatform, Platform
from tests.servers import SOON
from tests.wire.replayer import Case, Service, alike, read_cases

PERIOD, RECORDED_PERIOD = 1.0, 5.0
PROFILES = {
    "cluster": {"MLP_CLIENT_MODE": "cluster"},
    "cluster_checker": {"MLP_CLIENT_MODE": "cluster", "CHECKER_START": "true"},
    "standalone_checker": {"CHECKER_START": "true"},
    "cluster_nodb": {"MLP_CLIENT_MODE": "cluster", "DB_PORT": "1"},
}
CASES = [case for case in read_cases() if case.profile in PROFILES and case.profile != "cluster_nodb"]
WITHOUT_DATABASE = {case.id: case for case in read_cases() if case.profile == "cluster_nodb"}

pytestmark = pytest.mark.slow


def _predictions(*predictions: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"predictions": list(predictions)}}


def _inspected(model_id: str) -> dict[str, Any]:
    model = {"model_id": model_id, "model_path": None}
    return {"model": model, "features": {"a": 1}, "params": None, "uuid": None}


def _not_loaded(model_id: str) -> dict[str, Any]:
    return {"status": "fail", "message": f"model [{model_id}] not loaded", "trace": ""}


BETTER: dict[str, dict[str, Any]] = {
    "cluster-failed-train-after-restart": {"status": "success", "data": {"status": "error"}},
    "checker-unloads-model-of-other-algorithm": _predictions({"label": "x", "score": 100}),
    "checker-two-records-first-row-only": _predictions(_inspected("ck-11")),
    "checker-runs-in-standalone-mode-too": _not_loaded("ck-13"),
    "checker-older-time-ignored": _not_loaded("ck-6b"),
}
"""What mlpkit answers where the original has a defect (`fix`), or where it is free and does otherwise (`either`)."""


class Replica:
    """A service on a platform's database, which may be started late and again."""

    def __init__(self, platform: Platform, folder: Path, environment: dict[str, str]) -> None:
        self._platform, self._folder = platform, folder
        self._environment = {**platform.environment, "MLPKIT_CHECK_PERIOD": str(PERIOD), **environment}
        self._service: Service | None = None

    def start(self) -> None:
        """Starts the service; a second time in the same home."""
        (self._folder / "state").mkdir(exist_ok=True)
        places = {"MLPKIT_HOME": str(self._folder / "home"), "WIRE_STATE": str(self._folder / "state")}
        self._service = Service("default", **{"MLP_CLIENT_WORKER": "1", **self._environment, **places})

    def stop(self) -> None:
        """Ends the service, where it runs."""
        if self._service is not None:
            self._service.stop()
            self._service = None

    def answer(self, case: Case) -> tuple[int, Any]:
        """Runs the case's setup, in the time of our shorter period, and sends its request."""
        if not any("start" in step for step in case.setup):
            self.start()
        return self.replay(case)

    def replay(self, case: Case) -> tuple[int, Any]:
        """The same in a service that runs."""
        for step in case.setup:
            self._prepare(step)
        assert self._service is not None
        answer = self._service.send(case.request)
        return answer.status, answer.json

    def _prepare(self, step: dict[str, Any]) -> None:
        if "sql" in step:
            self._platform.sql(_of_dialect(step["sql"], self._platform.engine.dialect.name))
        elif "start" in step:
            self.start()
        elif "restart" in step:
            self.stop()
            self.start()
        elif "sleep_s" in step:
            time.sleep(step["sleep_s"] * PERIOD / RECORDED_PERIOD)
        else:
            assert self._service is not None
            self._service.prepare(step, {})


Served = Callable[[str], tuple[Replica, Platform]]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> str:
    """The kind of server, MariaDB unless the test names another."""
    return str(getattr(request, "param", "mariadb"))


@pytest.fixture
def served(server: str, open_platform: OpenPlatform, tmp_path: Path) -> Iterator[Served]:
    """Gives a replica for a profile, on a database of its own."""
    made: list[Replica] = []
    platform = open_platform(server)

    def give(profile: str) -> tuple[Replica, Platform]:
        made.append(Replica(platform, tmp_path, PROFILES[profile]))
        return made[-1], platform

    yield give
    for each in made:
        each.stop()


@pytest.mark.parametrize("case", [pytest.param(each, id=each.id) for each in CASES if each.fresh])
def test_a_case_with_a_database_is_answered_as_recorded_or_better(case: Case, served: Served) -> None:
    status, answer = served(case.profile)[0].answer(case)

    want = BETTER.get(case.id, case.response["json"])
    assert status == case.response["status"]
    assert alike(want, answer), (want, answer)


@pytest.mark.parametrize("server", ["mariadb", "postgres"], indirect=True)
def test_the_cases_that_share_a_service_are_answered_as_recorded(served: Served) -> None:
    replica, platform = served("cluster")
    replica.start()
    for case in [each for each in CASES if not each.fresh]:
        status, answer = replica.replay(case)
        assert status == case.response["status"], case.id
        assert alike(case.response["json"], answer), (case.id, case.response["json"], answer)
        if "db_after" in case.response:
            after = case.response["db_after"]
            assert [list(row) for row in platform.sql(after["sql"])] == after["rows"], case.id


def test_no_case_with_a_defect_is_forgotten() -> None:
    assert {case.id for case in CASES if case.verdict == "fix"} <= set(BETTER)
    assert set(WITHOUT_DATABASE) == {"nodb-status-unknown-model", "nodb-train", "nodb-load-works"}


def test_without_a_database_and_a_password_loads_and_trainings_go_on(tmp_path: Path) -> None:
    service = Service("default", MLP_CLIENT_WORKER="1", MLPKIT_DB_TIMEOUT="2", **PROFILES["cluster_nodb"])
    try:
        load = service.send(WITHOUT_DATABASE["nodb-load-works"].request)
        assert load.json == {"status": "success"}

        train = service.send(WITHOUT_DATABASE["nodb-train"].request)
        assert train.json == {"status": "success", "data": {"model_id": "nd-1"}}

        started = time.monotonic()
        status = service.send(WITHOUT_DATABASE["nodb-status-unknown-model"].request)
        assert time.monotonic() - started < SOON
        assert status.json["status"] == "fail"
        assert status.json["trace"] == ""
        assert "127.0.0.1" not in status.json["message"]
        assert "pip install" not in service.log()

        ready = service.get("/health/ready")
        assert ready.status == 200
        assert "database could not" in ready.json["data"]["warnings"][0]
    finally:
        service.stop()


def _of_dialect(statement: str, dialect: str) -> str:
    """The recorded MySQL in the words of another server."""
    if dialect != "postgresql":
        return statement
    statement = re.sub(r"RENAME TABLE (\w+) TO (\w+)", r"ALTER TABLE \1 RENAME TO \2", statement)
    if statement.startswith("REPLACE INTO"):
        changed = ", ".join(f"{each} = EXCLUDED.{each}" for each in ("path", "status", "loaded", "algorithm"))
        statement = f"{statement.replace('REPLACE', 'INSERT', 1)} ON CONFLICT (model_id) DO UPDATE SET {changed}"
    return statement
