"""The client against a running service of mlpkit: every route, and the exception behind every refusal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pytest
from rich.console import Console

from mlpkit.client import (
    AliasView,
    Client,
    JobEvent,
    JobStatus,
    JobView,
    LogEvent,
    MissingModelView,
    ModelEvent,
    ModelsView,
    ModelView,
    Monitor,
    NodeInfo,
    ProgressEvent,
    ResetEvent,
    StoredModelsView,
    StoredModelView,
    UploadedFile,
)
from mlpkit.client.bar import ProgressBar, described
from mlpkit.client.transport import Answer, HttpTransport
from mlpkit.errors import (
    AlgorithmNotFound,
    ArgumentError,
    JobNotFound,
    LoadFailed,
    MlpkitError,
    ModelNotLoaded,
    ObjectNotFound,
    Overloaded,
    PredictFailed,
    TimeLimitExceeded,
    TrainFailed,
    Unauthorized,
)
from mlpkit.serving import MissingModel
from mlpkit.web import answers
from tests.secret import new_secret
from tests.servers import LONG, free_port, wait_until

MOOD = Path(__file__).parents[1] / "servers" / "mood.py"
TOKEN = new_secret()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with one slot for training and one waiting place, a token and a prefix."""
    home = tmp_path_factory.mktemp("home")
    data = home / "storage" / "ml-platform-data"
    data.mkdir(parents=True)
    (data / "train.tsv").write_text("a fine day\tgood\nrain\tbad\n", encoding="utf-8")
    (data / "test.tsv").write_text("sun\tgood\nno sun\tbad\n", encoding="utf-8")
    port = free_port()
    environment = {
        **os.environ,
        "MLPKIT_HOME": str(home),
        "MLPKIT_TOKEN": TOKEN,
        "ML_PLATFORM_CLIENT_API_PREFIX": "/mlp",
        "MLP_TRAIN_TASK_NUM": "1",
        "MLP_TRAIN_QUEUE_SIZE": "1",
        "MLP_CLIENT_WORKER": "1",
        "MLPKIT_SHUTDOWN_GRACE": "1",
    }
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlpkit", "run", str(MOOD), "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            client.wait_ready(LONG)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(LONG)


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, "/mlp", TOKEN, timeout=LONG) as made:
        yield made


def test_the_whole_life_of_a_model(client: Client) -> None:
    job = client.train("mood", parameters={"steps": 4, "seconds": 0.8}, uuid="u-1")
    seen: list[JobStatus] = []
    assert job.wait(LONG, progress=seen.append).status == "completed"
    assert any(each.progress and each.progress["stage"] == "count" for each in seen)
    assert "a line of the job" in job.log()
    assert client.job_view(job.model_id).state == "completed"
    assert job.model_id in [each.model_id for each in client.jobs()]
    client.load("mood", job.model_id)
    assert client.predict(job.model_id, {"sentence": "a"}, {"top_n": 1}) == [{"label": "good", "score": 80.0}]
    assert client.monitor().load == {job.model_id: [0]}
    (model,) = client.models()
    assert (model.model_id, model.state, model.predictions) == (job.model_id, "loaded", 1)
    assert model.p50 is not None
    assert model.p99 is not None
    assert 0 < model.p50 <= model.p99
    client.unload("mood", job.model_id)
    with pytest.raises(ModelNotLoaded):
        client.predict(job.model_id, {"sentence": "a"})
    client.delete("mood", job.model_id)
    with pytest.raises(LoadFailed):
        client.load("mood", job.model_id)


class CountingTransport(HttpTransport):
    """Over the network, counting the requests of each path."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked: Counter[str] = Counter()

    def request(
        self, method: str, target: str, body: bytes | BinaryIO | None, headers: Mapping[str, str], timeout: float
    ) -> Answer:
        self.asked[target.partition("?")[0]] += 1
        return super().request(method, target, body, headers, timeout)


def test_waiting_for_a_job_follows_its_events_and_asks_for_its_status_only_when_it_changes(address: str) -> None:
    transport = CountingTransport(address)
    with Client(address, "/mlp", TOKEN, timeout=LONG, transport=transport) as client:
        seen: list[JobStatus] = []
        client.train("mood", parameters={"seconds": 3.0, "steps": 30}).wait(LONG, progress=seen.append)
    assert len({each.progress["done"] for each in seen if each.progress and each.progress["stage"] == "count"}) > 1
    # Before, after each of two changes, and at the end; asking again and again would be more than ten.
    assert transport.asked["/mlp/status"] <= 6


def test_a_model_is_evaluated_with_the_test_rows_that_train_names(client: Client) -> None:
    job = client.train("mood", "train.tsv", test="test.tsv")
    job.wait(LONG)
    report = client.evaluation(job.model_id)
    assert (report["model_id"], report["rows"], report["accuracy"]) == (job.model_id, 2, 0.5)
    assert report["confusions"] == [{"wanted": "bad", "got": "good", "count": 1}]


def test_without_test_rows_there_is_no_evaluation(client: Client) -> None:
    job = client.train("mood", "train.tsv")
    job.wait(LONG)
    with pytest.raises(ObjectNotFound, match="had no test rows"):
        client.evaluation(job.model_id)
    with pytest.raises(JobNotFound):
        client.evaluation("nobody/knows me")


def test_the_service_tells_of_itself(client: Client) -> None:
    assert client.live()
    assert client.ready().ready
    assert client.monitor().algorithms == ["mood", "other"]
    assert client.node_info().total_cpu >= 1


def test_the_events_of_a_job_are_its_states_progress_and_log_until_it_ends(client: Client) -> None:
    job = client.train("mood", parameters={"steps": 4, "seconds": 2.0})
    events = list(job.events(timeout=LONG))
    states = [event.state for event in events if isinstance(event, JobEvent)]
    assert states[-1] == "completed"
    assert any(isinstance(event, ProgressEvent) and event.progress for event in events)
    assert "".join(event.text for event in events if isinstance(event, LogEvent)) == job.log()
    # Who knows the last event is told nothing again.
    last = [event.id for event in events if event.id is not None][-1]
    assert [event for event in client.events(job.model_id, last=last, timeout=LONG) if event.id != last] == []


def test_the_events_of_the_service_tell_of_models(client: Client) -> None:
    job = client.train("mood")
    job.wait(LONG)
    events = client.events(timeout=LONG)
    assert isinstance(next(events), ResetEvent)
    client.load("mood", job.model_id)
    loaded = next(event for event in events if isinstance(event, ModelEvent) and event.state == "loaded")
    assert (loaded.model_id, loaded.algorithm, loaded.workers) == (job.model_id, "mood", [0])
    client.unload("mood", job.model_id)


def test_events_that_do_not_end_are_given_up_in_time(client: Client) -> None:
    job = client.train("mood", parameters={"seconds": 100})
    try:
        with pytest.raises(TimeLimitExceeded, match=r"within 0\.\d+ s"):
            list(job.events(timeout=0.5))
    finally:
        job.cancel()


def test_a_running_job_shows_its_stack(client: Client) -> None:
    job = client.train("mood", parameters={"seconds": 100})
    wait_until(lambda: "a line of the job" in job.log(), "the job runs")
    assert "in train" in client.stack(job.model_id)
    job.cancel()
    with pytest.raises(MlpkitError, match="only a job that runs has a stack"):
        client.stack(job.model_id)


def test_a_failed_training_raises_with_its_reason(client: Client) -> None:
    with pytest.raises(TrainFailed, match="no such column"):
        client.train("mood", parameters={"fail": "no such column"}).wait(LONG)


def test_a_cancelled_job_ends(client: Client) -> None:
    job = client.train("mood", parameters={"seconds": 100})
    job.cancel()
    with pytest.raises(TrainFailed, match="cancel"):
        job.wait(LONG)
    job.cancel()
    assert job.status().status == "error"


def test_a_full_queue_is_overload(client: Client) -> None:
    jobs = [client.train("mood", parameters={"seconds": 100}) for _ in range(2)]
    try:
        with pytest.raises(Overloaded):
            client.train("mood")
    finally:
        for job in jobs:
            job.cancel()


def test_refusals_become_the_exceptions_that_they_stand_for(client: Client, address: str) -> None:
    with pytest.raises(AlgorithmNotFound):
        client.train("nope")
    with pytest.raises(ArgumentError, match="parameter"):
        client.train("mood", parameters={"steps": "many"})
    with pytest.raises(JobNotFound, match="nobody"):
        client.log("nobody/knows me")
    with pytest.raises(JobNotFound, match="nobody"):
        next(client.events("nobody"))
    with pytest.raises(JobNotFound):
        client.cancel("mood", "nobody")
    with pytest.raises(Unauthorized), Client(address, "/mlp") as stranger:
        stranger.jobs()


def test_a_prediction_s_failures_are_told_apart(client: Client) -> None:
    job = client.train("mood")
    job.wait(LONG)
    client.load("mood", job.model_id)
    with pytest.raises(PredictFailed, match=r"^predict fail division by zero$"):
        client.predict(job.model_id, {"sentence": "boom"})
    with pytest.raises(ArgumentError):
        client.predict(job.model_id, {"sentence": 1})
    with pytest.raises(TimeLimitExceeded):
        client.predict(job.model_id, {"sentence": "slow"})


def test_an_unknown_job_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpkit.client.client._UNKNOWN_SECONDS", 0.2)
    with pytest.raises(JobNotFound):
        client.job("mood", "nobody").wait(LONG)


def test_the_bar_says_every_stage_once_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    with ProgressBar("mood", Console(file=file, force_terminal=False)) as bar:
        bar.show("init", None)
        bar.show("training", {"stage": "fit", "fraction": 0.25})
        bar.show("training", {"stage": "fit", "fraction": 0.5})
        bar.show("completed", {})
    assert file.getvalue().splitlines() == ["mood: init", "mood: training fit", "mood: completed"]


def test_the_bar_shows_stage_count_and_metrics_on_a_terminal() -> None:
    file = io.StringIO()
    with ProgressBar("mood [a]", Console(file=file, force_terminal=True, width=120)) as bar:
        bar.show("training", {"stage": "fit", "done": 45, "total": 100, "metrics": {"loss": 0.123456}})
    assert "mood [a]" in file.getvalue()
    assert "training fit 45/100 loss=0.1235" in file.getvalue()


def test_a_fraction_is_a_percentage() -> None:
    assert described("training", {"fraction": 0.254, "message": "almost"}) == "training 25% almost"


@pytest.mark.parametrize(
    ("view", "answer"),
    [
        (AliasView, answers.AliasLine),
        (JobStatus, answers.TrainingStatus),
        (JobView, answers.JobDetails),
        (MissingModelView, MissingModel),
        (ModelView, answers.ModelLine),
        (ModelsView, answers.ModelLists),
        (Monitor, answers.Placement),
        (NodeInfo, answers.MachineState),
        (StoredModelView, answers.StoredModelLine),
        (StoredModelsView, answers.StoredModelPage),
        (UploadedFile, answers.StoredFile),
    ],
)
def test_a_view_has_only_what_the_service_sends(view: type[msgspec.Struct], answer: Any) -> None:
    # A field of another name would have its default for ever: answers are read leniently.
    sent = (
        set(answer.__struct_encode_fields__)
        if issubclass(answer, msgspec.Struct)
        else answer.__required_keys__ | answer.__optional_keys__
    )
    assert set(view.__struct_encode_fields__) <= sent
