"""A `predict` that yields: its parts as events, or as one answer; and its end when the caller goes away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlpkit import App
from mlpkit.errors import DeclarationError
from tests.servers import LONG, wait_until
from tests.web.test_events import Sent, Stream
from tests.web.test_metrics import value
from tests.wire.replayer import Service

SCRIPT = """
import asyncio, time
from pathlib import Path
from mlpkit import App

app = App("words", kind="text_generation")
slow = app.algorithm("slow")
plain = app.algorithm("plain")
apart = app.algorithm("apart")
turns = app.algorithm("turns")
HERE = Path({folder!r})

@app.load
@slow.load
@plain.load
@turns.load
@apart.load(isolated=True)
def load(model_id: str) -> str:
    return model_id

@app.predict
def words(features: dict):
    for word in features["text"].split("|"):
        if word == "boom":
            raise ValueError("boom in the middle")
        yield word

@slow.predict
async def endless(features: dict):
    try:
        while True:
            yield {{"n": 1}}
            await asyncio.sleep(0.01)
    finally:
        (HERE / features["file"]).write_text("closed")

@apart.predict
def endless_apart(features: dict):
    try:
        while True:
            yield 1
            time.sleep(0.01)
    finally:
        (HERE / features["file"]).write_text("closed")

@turns.predict(timeout=6)
def one_after_the_other(features: dict):
    yield "begun"
    time.sleep(features["seconds"])
    yield "done"

@plain.predict
def whole(features: dict) -> list:
    return [features["text"]]
"""
EVENTS = {"Accept": "text/event-stream", "Content-Type": "application/json"}


batches = App("batches")


@batches.load
def load() -> None: ...


@batches.predict(max_batch_size=4)
def yields(features: list[dict[str, str]]) -> Iterator[str]:
    yield "a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    script = folder / "words.py"
    script.write_text(SCRIPT.format(folder=str(folder)))
    service = Service("default", command=("-m", "mlpkit", "run", f"{script}:app"), MLP_CLIENT_WORKER="1")
    for name in ("words", "slow", "plain", "apart", "turns"):
        assert service.post("/load", f'{{"algorithm": "{name}", "model_id": "{name}"}}').json["status"] == "success"
    yield service
    service.stop()


def test_a_predict_that_yields_cannot_have_batches() -> None:
    with pytest.raises(DeclarationError, match="cannot have batches"):
        batches.build()


def body(model_id: str, **features: object) -> str:
    return json.dumps({"model_id": model_id, "features": features})


def streamed(service: Service, content: str) -> list[Sent]:
    answer = service.post("/predict", content, **EVENTS)
    assert answer.content_type == "text/event-stream", answer
    events = []
    for block in answer.text.split("\n\n"):
        if block:
            kind, data = (line.partition(": ")[2] for line in block.split("\n"))
            events.append(Sent(kind, json.loads(data), None))
    return events


def test_each_part_is_an_event_and_then_comes_the_end(service: Service) -> None:
    events = streamed(service, body("words", text="好|的|!"))
    assert [(event.kind, event.data) for event in events] == [
        ("part", "好"),
        ("part", "的"),
        ("part", "!"),
        ("end", {"status": "success"}),
    ]


def test_without_the_header_the_parts_are_one_answer(service: Service) -> None:
    answer = service.post("/predict", body("words", text="a|b")).json
    assert answer == {"status": "success", "data": {"predictions": ["ab"]}}


def test_a_failure_in_the_middle_is_told_at_the_end(service: Service) -> None:
    first, end = streamed(service, body("words", text="a|boom"))
    assert (first.data, end.kind, end.data["status"]) == ("a", "end", "fail")
    assert "boom in the middle" in end.data["message"]
    assert "boom in the middle" in service.post("/predict", body("words", text="a|boom")).json["message"]


def test_a_failure_before_the_first_part_is_an_ordinary_answer(service: Service) -> None:
    for content in (body("words", text="boom"), body("no-such", text="a"), "{"):
        answer = service.post("/predict", content, **EVENTS)
        assert answer.content_type == "application/json"
        assert answer.json["status"] in ("fail", "arg_error")


def test_an_answer_that_is_not_yielded_is_one_part(service: Service) -> None:
    events = streamed(service, body("plain", text="a"))
    assert [(event.kind, event.data) for event in events] == [("part", ["a"]), ("end", {"status": "success"})]


@pytest.mark.parametrize("name", ["slow", "apart"])
def test_the_generator_is_closed_when_its_caller_goes_away(service: Service, folder: Path, name: str) -> None:
    with Stream(service, "/predict", method="POST", body=body(name, file=name), **EVENTS) as stream:
        assert next(iter(stream)).kind == "part"
    wait_until((folder / name).exists, "the generator is closed", LONG)
    # The next one is answered: nothing of the first is left.
    wait_until(lambda: value(service, "mlpkit_predictions_in_flight", algorithm=name) == 0, "nothing is in flight")


def test_streams_are_logged_and_counted_as_other_predictions(service: Service) -> None:
    before = value(service, "mlpkit_predictions_total", algorithm="words", outcome="success")
    answer = service.post("/predict", body("words", text="a|b"), **EVENTS, **{"X-Request-ID": "my-stream"})
    assert answer.headers["x-request-id"] == "my-stream"
    assert value(service, "mlpkit_predictions_total", algorithm="words", outcome="success") == before + 1
    wait_until(lambda: "[my-stream] server access | POST /predict 200" in service.log(), "the stream is logged")


@pytest.mark.slow
def test_the_time_of_a_prediction_begins_when_the_one_before_it_has_ended(service: Service) -> None:
    # Together they take longer than the limit of 6 s, and each alone does not.
    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(service.post, "/predict", body("turns", seconds=4.5))
        wait_until(lambda: value(service, "mlpkit_predictions_in_flight", algorithm="turns") == 1, "the first one runs")
        second = callers.submit(service.post, "/predict", body("turns", seconds=2.5))
        answers = [each.result(LONG).json for each in (first, second)]
    assert [answer["status"] for answer in answers] == ["success", "success"], answers
