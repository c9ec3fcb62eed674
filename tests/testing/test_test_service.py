"""`TestService`: a whole service in the test's own process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import pytest

from mlpkit import App, Depends
from mlpkit.client import LogEvent, ResetEvent
from mlpkit.errors import (
    ArgumentError,
    DeclarationError,
    JobNotFound,
    ModelNotLoaded,
    PredictFailed,
    TimeLimitExceeded,
    TrainFailed,
)
from mlpkit.testing import TestService
from tests.servers import LONG, mood


def greeting() -> str:
    return "hello"


app = App("greet")


@app.load
def load() -> int:
    return os.getpid()


@app.predict
def predict(model: int, features: Any, word: Annotated[str, Depends(greeting)]) -> Any:
    return [model, word, features]


def test_the_whole_life_of_a_model() -> None:
    with TestService(mood.app) as service:
        model_id = service.trained("mood", parameters={"steps": 2})
        service.client.load("mood", model_id)
        assert service.client.predict(model_id, {"sentence": "a"})[0] == {"label": "good", "score": 80.0}
        assert service.client.monitor().load == {model_id: [0]}
        assert service.storage.exists(f"ml-platform-model/{model_id}/mlpkit.json")
        service.client.delete("mood", model_id)
        with pytest.raises(ModelNotLoaded):
            service.client.predict(model_id, {"sentence": "a"})
        assert "a line of the job" in service.log


def test_models_live_in_the_test_s_own_process_and_see_its_overrides() -> None:
    app.dependency_overrides[greeting] = lambda: "faked"
    try:
        with TestService(app) as service:
            service.client.load("greet", "m", "ml-platform-model/none")
            assert service.client.predict("m", {"a": 1}) == [os.getpid(), "faked", {"a": 1}]
    finally:
        app.dependency_overrides.clear()


def test_with_workers_models_live_in_processes_as_in_production() -> None:
    with TestService(app, workers=1) as service:
        service.client.load("greet", "m")
        assert service.client.predict("m", {"a": 1})[0] != os.getpid()


def test_a_failed_training_shows_its_log() -> None:
    with TestService(mood.app) as service, pytest.raises(TrainFailed, match=r"(?s)no such column.*a line of the job"):
        service.trained("mood", parameters={"fail": "no such column"})


def test_data_is_uploaded_where_train_requests_find_it(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("a\tb\n", encoding="utf-8")
    with TestService(mood.app) as service:
        location = service.upload(tmp_path / "rows.tsv")
        assert service.storage.fetch(f"ml-platform-data/{location}").read_text() == "a\tb\n"
        with pytest.raises(ArgumentError, match="there is no file"):
            service.upload(tmp_path / "nosuch.tsv")


def test_refusals_are_exceptions_and_answers_can_be_seen_raw() -> None:
    with TestService(mood.app) as service:
        model_id = service.trained("mood")
        service.client.load("mood", model_id)
        with pytest.raises(PredictFailed, match="division by zero"):
            service.client.predict(model_id, {"sentence": "boom"})
        answer = service.client.request("POST", "/predict", b'{"model_id": "nobody"}')
        assert json.loads(answer.body)["message"] == "model [nobody] not loaded"
        assert answer.headers["content-type"] == "application/json"


def test_events_can_be_followed_to_their_end_and_left_before() -> None:
    with TestService(mood.app) as service:
        job = service.client.train("mood", parameters={"steps": 2})
        events = list(job.events(timeout=LONG))
        assert "a line of the job" in "".join(event.text for event in events if isinstance(event, LogEvent))
        assert job.status().status == "completed"
        everything = service.client.events(timeout=LONG)
        assert isinstance(next(everything), ResetEvent)
        with pytest.raises(JobNotFound):
            next(service.client.events("nobody", timeout=LONG))


def test_settings_can_be_given() -> None:
    with TestService(app, api_prefix="/mlp/", max_body=1000) as service:
        assert service.client.prefix == "/mlp/"
        with pytest.raises(ArgumentError, match="larger than 1000 bytes"):
            service.client.predict("m", {"long": "x" * 2000})


def test_nothing_is_left_behind() -> None:
    with TestService(app) as service:
        home = service.settings.home
        assert home.exists()
    assert not home.exists()


def test_a_request_that_is_not_answered_ends_at_its_time_out() -> None:
    with TestService(mood.app, predict_timeout=600.0) as service:
        model_id = service.trained("mood")
        service.client.load("mood", model_id)
        with pytest.raises(TimeLimitExceeded):
            service.client.predict(model_id, {"sentence": "slow"}, timeout=0.2)


def test_an_app_that_no_module_has_is_a_clear_error() -> None:
    hidden = App("hidden")
    hidden.load(load)
    with pytest.raises(DeclarationError, match="must be a global of a module"), TestService(hidden):
        pass
