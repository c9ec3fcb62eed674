"""The pytest plugin: `mlpkit.testing` as fixtures.

It imports nothing heavy until a test asks for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mlpkit.app import App
    from mlpkit.storage import ModelDir, Storage
    from mlpkit.testing.fakes import RecordedLog, RecordedProgress
    from mlpkit.testing.service import TestService


@pytest.fixture
def mlpkit_service() -> Iterator[Callable[..., TestService]]:
    """Serves an app until the test ends: `service = mlpkit_service(app)`.

    The options are those of `TestService`.
    """
    from mlpkit.testing.service import TestService

    with ExitStack() as services:

        def serve(app: App, **options: Any) -> TestService:
            return services.enter_context(TestService(app, **options))

        yield serve


@pytest.fixture
def mlpkit_storage(tmp_path: Path) -> Iterator[Storage]:
    """An empty store in a temporary folder."""
    from mlpkit.testing.fakes import fake_storage

    storage = fake_storage(tmp_path / "mlpkit-home")
    yield storage
    storage.close()


@pytest.fixture
def mlpkit_model_dir(tmp_path: Path) -> ModelDir:
    """An empty folder for a model, to write into and to load."""
    from mlpkit.testing.fakes import fake_model_dir

    return fake_model_dir(tmp_path / "mlpkit-model")


@pytest.fixture
def mlpkit_progress() -> Iterator[RecordedProgress]:
    """A `Progress` that remembers its stages and metrics."""
    from mlpkit.testing.fakes import RecordedProgress

    progress = RecordedProgress()
    yield progress
    progress.close()


@pytest.fixture
def mlpkit_log() -> RecordedLog:
    """A `Log` that remembers its lines."""
    from mlpkit.testing.fakes import RecordedLog

    return RecordedLog()
