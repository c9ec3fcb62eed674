"""One service per profile and test process; cases that need a fresh one get their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.wire.replayer import Case, Service


@pytest.fixture(scope="session")
def shared_services() -> Iterator[dict[str, Service]]:
    """The services that run, by profile."""
    services: dict[str, Service] = {}
    yield services
    for service in services.values():
        service.stop()


@pytest.fixture
def service_for(shared_services: dict[str, Service]) -> Iterator[Callable[[Case], Service]]:
    """Gives the service that a case is to be sent to."""
    own: list[Service] = []

    def give(case: Case) -> Service:
        if case.fresh:
            own.append(Service(case.profile, MLP_CLIENT_WORKER="1"))
            return own[0]
        if case.profile not in shared_services:
            shared_services[case.profile] = Service(case.profile)
        return shared_services[case.profile]

    yield give
    for service in own:
        service.stop()


@pytest.fixture
def service(shared_services: dict[str, Service]) -> Service:
    """The shared service of the profile `default`."""
    if "default" not in shared_services:
        shared_services["default"] = Service("default")
    return shared_services["default"]
