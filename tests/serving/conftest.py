"""Real models in real worker processes, from scripts written for each test."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mlpkit.errors import MlpkitError
from mlpkit.log import LogOutput, configure
from mlpkit.script import import_app
from mlpkit.serving import Models
from mlpkit.settings import Settings
from mlpkit.storage import Storage

OpenModels = Callable[..., AbstractAsyncContextManager[Models]]


def prediction_of(
    models: Models, model_id: str, features: bytes, params: bytes = b"null", uuid: str | None = None
) -> asyncio.Future[bytes]:
    """A future of the answer's `predictions` as JSON. If it is cancelled, the prediction is given up."""
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_outcome(outcome: bytes | MlpkitError) -> None:
        if isinstance(outcome, MlpkitError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    prediction = models.predict(model_id, features, params, uuid, on_outcome)
    future.add_done_callback(lambda _: prediction.give_up())
    return future


@pytest.fixture
def lines() -> io.StringIO:
    """What the service has logged so far."""
    return io.StringIO()


@pytest.fixture
def open_models(tmp_path: Path, lines: io.StringIO) -> OpenModels:
    """`async with open_models(script, workers=2) as models`: the models of a script, with its folder as the home.

    `first` gets them before they are opened; `storage` is where predictions find them.
    """
    log: LogOutput = configure(stream=lines)

    @asynccontextmanager
    async def opened(
        script: str,
        *,
        first: Callable[[Models], object] = lambda models: None,
        storage: Storage | None = None,
        **settings: Any,
    ) -> AsyncIterator[Models]:
        # A module is imported once in a process, so every test's script has a name of its own.
        file = tmp_path / f"{tmp_path.name}_{len(script)}.py"
        file.write_text("from mlpkit import App\n" + script, encoding="utf-8")
        target = f"{file}:app"
        chosen = Settings(home=tmp_path / "home", **{"workers": 1, **settings})
        models = Models(import_app(target), target, chosen, log, storage=storage)
        first(models)
        await models.open()
        try:
            yield models
        finally:
            await models.close(1.0)

    return opened
