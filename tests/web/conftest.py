"""Real services with the scripted algorithms of `tests/wire`, one for each way to set the web layer up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.secret import MARK
from tests.wire.replayer import Service

TOKEN = f"{MARK}-a-token"
ORIGIN = "https://web.example"


@pytest.fixture(scope="session")
def plain() -> Iterator[Service]:
    """A service with the settings' defaults."""
    service = Service("default", MLP_CLIENT_WORKER="1")
    yield service
    service.stop()


@pytest.fixture(scope="session")
def without_shortcut() -> Iterator[Service]:
    """A service that answers predictions on uvicorn's way, as any ASGI server does."""
    service = Service("default", MLP_CLIENT_WORKER="1", MLPKIT_PREDICT_SHORTCUT="off")
    yield service
    service.stop()


@pytest.fixture(scope="session", params=["plain", "without_shortcut"])
def either(request: pytest.FixtureRequest) -> Service:
    """Each of both: what is true of predictions does not depend on the way that they take."""
    service: Service = request.getfixturevalue(request.param)
    return service


@pytest.fixture(scope="session")
def strict() -> Iterator[Service]:
    """A service with a token, one allowed origin, true status codes, and bodies of at most 10 kB."""
    service = Service(
        "default",
        MLP_CLIENT_WORKER="1",
        MLPKIT_TOKEN=TOKEN,
        MLPKIT_CORS_ORIGINS=ORIGIN,
        MLPKIT_HTTP_ERRORS="http",
        MLPKIT_MAX_BODY="10000",
    )
    yield service
    service.stop()
