"""Real models in real worker processes, from scripts written for each test."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mlpkit.log import LogOutput, configure
from mlpkit.script import import_app
from mlpkit.serving import Models
from mlpkit.settings import Settings

OpenModels = Callable[..., AbstractAsyncContextManager[Models]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def lines() -> io.StringIO:
    """What the service has logged so far."""
    return io.StringIO()


@pytest.fixture
def open_models(tmp_path: Path, lines: io.StringIO) -> OpenModels:
    """`async with open_models(script, workers=2) as models`: the models of a script, with its folder as the home."""
    log: LogOutput = configure(stream=lines)

    @asynccontextmanager
    async def opened(script: str, **settings: Any) -> AsyncIterator[Models]:
        # A module is imported once in a process, so every test's script has a name of its own.
        file = tmp_path / f"{tmp_path.name}_{len(script)}.py"
        file.write_text("from mlpkit import App\n" + script, encoding="utf-8")
        target = f"{file}:app"
        chosen = Settings(home=tmp_path / "home", **{"workers": 1, **settings})
        models = Models(import_app(target), target, chosen, log)
        await models.open()
        try:
            yield models
        finally:
            await models.close(1.0)

    return opened
