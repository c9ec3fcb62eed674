"""The service below a path that a server or another application puts before its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.secret import MARK
from tests.wire.replayer import Service

TOKEN = f"{MARK}-below-a-path"
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}
PLACES = {
    # uvicorn puts the root path before the path of every request: a proxy in front of it has taken it away.
    "root path": (("-m", "uvicorn", "wire_algorithms:app", "--root-path", "/ml"), ""),
    "mounted": (("-m", "uvicorn", "tests.web.mounted:app"), "/ml"),
}


@pytest.fixture(scope="module", params=PLACES)
def below(request: pytest.FixtureRequest) -> Iterator[tuple[Service, str]]:
    """A service below a path, and what a caller writes before each route."""
    command, before = PLACES[request.param]
    service = Service("default", command=command, MLP_CLIENT_WORKER="1", MLPKIT_TOKEN=TOKEN)
    yield service, before
    service.stop()


def test_every_kind_of_route_is_there(below: tuple[Service, str]) -> None:
    service, before = below
    load = service.post(f"{before}/load", '{"algorithm": "echo", "model_id": "e"}', **WITH_TOKEN)
    assert load.json == {"status": "success"}
    predict = '{"model_id": "e", "features": {"sentence": "x"}}'
    answer = service.post(f"{before}/predict", predict, **WITH_TOKEN)
    assert answer.json["data"]["predictions"] == [{"label": "x", "score": 100}]
    for path in ("/monitor", "/models", "/jobs", "/metrics", "/openapi.json"):
        assert service.get(f"{before}{path}", **WITH_TOKEN).status == 200


def test_only_probes_and_the_page_are_open(below: tuple[Service, str]) -> None:
    service, before = below
    for path in ("/health/live", "/health/ready", "/docs"):
        assert service.get(f"{before}{path}").status == 200
    for path in ("/monitor", "/openapi.json", "/health/other"):
        assert service.get(f"{before}{path}").status == 401
    assert service.post(f"{before}/predict", "{}").status == 401


def test_description_names_the_path_that_callers_put_before_the_routes(below: tuple[Service, str]) -> None:
    service, before = below
    assert service.get(f"{before}/openapi.json", **WITH_TOKEN).json["servers"] == [{"url": "/ml"}]


def test_prefix_below_the_probes_opens_nothing() -> None:
    service = Service("default", MLP_CLIENT_WORKER="1", MLPKIT_TOKEN=TOKEN, ML_PLATFORM_CLIENT_API_PREFIX="/health/v1/")
    try:
        for path in ("monitor", "jobs", "models", "live"):
            assert service.get(f"/health/v1/{path}").status == 401
        for path in ("train", "predict", "load", "unload", "delete", "cancel"):
            assert service.post(f"/health/v1/{path}", "{}").status == 401
        assert service.get("/health/live").status == 200
    finally:
        service.stop()
