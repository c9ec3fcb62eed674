"""Workers from outside the package: one that answers in parts, as other engines may, and one that never starts."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest

from mlpkit import App
from mlpkit.errors import MlpkitError, TimeLimitExceeded, WorkerLost
from mlpkit.log import configure
from mlpkit.serving import Models, pool
from mlpkit.serving.messages import Predict, Reply, Work
from mlpkit.serving.pool import WorkerSlot
from mlpkit.serving.worker import OnReply
from mlpkit.settings import Settings
from tests.servers import SOON, until
from tests.serving.conftest import prediction_of

pytestmark = pytest.mark.anyio


class LetterWorker:
    """Answers a prediction with its features, letter by letter, one letter in a turn of the loop."""

    held_at_end = 0
    node = ""

    def __init__(self, slot: WorkerSlot) -> None:
        self.index = slot.index
        self.ready = False
        self._stopped = asyncio.Event()
        self._put: list[tuple[Work, OnReply]] = []

    @property
    def pid(self) -> None:
        return None

    async def start(self) -> None:
        self.ready = True

    async def ended(self) -> str:
        await self._stopped.wait()
        return "was stopped"

    async def stop(self, grace: float) -> None:
        self.ready = False
        self._stopped.set()

    def put(self, work: Work, limit: float, on_reply: OnReply, parallel: int = 1) -> None:
        self._put.append((work, on_reply))

    def cancel(self, id: int, model_id: str) -> None:
        pass

    def flush(self) -> None:
        put, self._put = self._put, []
        for work, on_reply in put:
            if isinstance(work, Predict):
                self._answer(work, on_reply, 0)
            else:
                on_reply(Reply(work.id, [b"null"]))

    def watch(self, now: float) -> None:
        pass

    def _answer(self, work: Predict, on_reply: OnReply, sent: int) -> None:
        (item,) = work.items
        text = bytes(item.features)
        if text == b"fail":
            on_reply(TimeLimitExceeded("as it was told"))
        elif sent < len(text):
            on_reply(Reply(work.id, [text[sent : sent + 1]], final=False))
            asyncio.get_running_loop().call_soon(self._answer, work, on_reply, sent + 1)
        else:
            on_reply(Reply(work.id, [text], 0.1))


def load() -> None:
    """The worker of these tests calls neither this nor `predict`."""


def predict(features: dict[str, str]) -> dict[str, str]:
    return features


def with_workers(kind: type[LetterWorker], home: Path) -> Models:
    app = App("letters")
    app.load(load)
    app.predict(predict)
    settings = Settings(home=home, workers=1)
    return Models(app, "letters:app", settings, configure(stream=io.StringIO()), make_worker=kind)


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return with_workers(LetterWorker, tmp_path)


async def test_parts_of_an_answer_come_in_order_and_before_the_outcome(models: Models) -> None:
    await models.open()
    try:
        await models.load("letters", "m")
        told: list[bytes | MlpkitError] = []
        over = asyncio.Event()

        def on_outcome(outcome: bytes | MlpkitError) -> None:
            told.append(outcome)
            over.set()

        models.predict("m", b"abc", b"null", None, on_outcome, told.append)
        await asyncio.wait_for(over.wait(), 10)
        assert told == [b"a", b"b", b"c", b"abc"]
        (view,) = models.listed()
        assert (view.predictions, view.in_flight, view.seconds) == (1, 0, 0.1)
    finally:
        await models.close()


async def test_caller_without_a_use_for_parts_gets_the_outcome_alone(models: Models) -> None:
    await models.open()
    try:
        await models.load("letters", "m")
        assert await asyncio.wait_for(prediction_of(models, "m", b"abc"), 10) == b"abc"
        with pytest.raises(TimeLimitExceeded, match="as it was told"):
            await asyncio.wait_for(prediction_of(models, "m", b"fail"), 10)
    finally:
        await models.close()


async def test_caller_who_has_gone_gets_no_more_parts(models: Models) -> None:
    await models.open()
    try:
        await models.load("letters", "m")
        parts: list[bytes] = []
        outcomes: list[object] = []
        first = asyncio.Event()

        def on_part(part: bytes) -> None:
            parts.append(part)
            first.set()

        prediction = models.predict("m", b"abc" * 100, b"null", None, outcomes.append, on_part)
        await asyncio.wait_for(first.wait(), 10)
        assert prediction.give_up()
        got = len(parts)
        await models.unload("m")
        assert (len(parts), outcomes) == (got, [])
    finally:
        await models.close()


class LostWorker(LetterWorker):
    """Ends before it is ready."""

    async def start(self) -> None:
        raise WorkerLost("it was lost as it began")


async def test_a_worker_that_fails_for_a_whole_night_is_still_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With pauses of 30 s these are ten hours. 2 to the power of 1,024 has no float.
    monkeypatch.setattr(pool, "_LONGEST_PAUSE", 0.0)
    models = with_workers(LostWorker, tmp_path)
    await models.open()
    try:
        await until(lambda: models.restarts > 1200, SOON)
    finally:
        await models.close(0.1)
