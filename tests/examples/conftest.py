"""One service an example, with its models in a worker process and its trainings in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mlpkit import App
from mlpkit.testing import TestService

DATA = Path(__file__).parents[2] / "examples" / "data"


@pytest.fixture(scope="module")
def served() -> Iterator[Callable[[App], TestService]]:
    """Serves an app as in production: models live in a worker process. Tests of one app share its service."""
    services: dict[str, TestService] = {}
    with ExitStack() as exits:

        def serve(app: App) -> TestService:
            if app.name not in services:
                services[app.name] = exits.enter_context(TestService(app, workers=1))
            return services[app.name]

        yield serve
