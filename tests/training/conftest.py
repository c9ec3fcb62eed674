"""Real training processes, from scripts written for each test, with a folder as the store."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from mlpkit.log import LogOutput, configure
from mlpkit.script import import_app
from mlpkit.settings import Settings
from mlpkit.training import Job, TrainingQueue
from tests.servers import until

_numbers = itertools.count()


class OpenQueue(Protocol):
    """`async with open_queue(script, train_task_num=2) as queue`: the training queue of a script."""

    def __call__(self, script: str, **settings: Any) -> AbstractAsyncContextManager[TrainingQueue]: ...


class WriteScript(Protocol):
    """Writes a script under a name of its own, and gives its import string."""

    def __call__(self, script: str) -> str: ...


@pytest.fixture
def lines() -> io.StringIO:
    """What the service has logged so far."""
    return io.StringIO()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def write_script(tmp_path: Path) -> WriteScript:
    def write(script: str) -> str:
        file = tmp_path / f"training_script_{next(_numbers)}.py"
        file.write_text("from __future__ import annotations\n" + script, encoding="utf-8")
        return f"{file}:app"

    return write


@pytest.fixture
def open_queue(home: Path, write_script: WriteScript, lines: io.StringIO) -> OpenQueue:
    log: LogOutput = configure(stream=lines)

    @asynccontextmanager
    async def opened(script: str, **settings: Any) -> AsyncIterator[TrainingQueue]:
        target = script if script.endswith(":app") else write_script(script)
        queue = TrainingQueue(
            import_app(target).build(), target, Settings(home=home, **{"store_retry": 0.0, **settings}), log
        )
        await queue.open()
        try:
            yield queue
        finally:
            await queue.close(0)

    return opened


def job(model_id: str, algorithm: str = "it", /, *, data: Any = None, extend: Any = None, **parameters: Any) -> Job:
    """A job with these parameters."""
    return Job(
        model_id=model_id,
        algorithm=algorithm,
        data=json.dumps({} if data is None else data),
        parameters=json.dumps(parameters),
        extend=json.dumps({} if extend is None else extend),
        log_uuid=f"uuid-of-{model_id}",
    )


async def end_of(queue: TrainingQueue, model_id: str) -> Job:
    """The job, once it has ended."""
    return await reached(queue, model_id, lambda each: each.has_ended)


async def reached(queue: TrainingQueue, model_id: str, condition: Callable[[Job], bool]) -> Job:
    """The job, once the condition holds for it."""
    await until(lambda: (found := queue.job(model_id)) is not None and condition(found))
    found = queue.job(model_id)
    assert found is not None
    return found


async def train(queue: TrainingQueue, submitted: Job) -> Job:
    """Submits the job, and gives it as it has ended."""
    await queue.submit(submitted)
    return await end_of(queue, submitted.model_id)
