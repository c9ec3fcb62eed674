"""A client that others generate from `/openapi.json` trains and predicts, and gets answers of the right types."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.impossible import impossible
from tests.servers import LONG, wait_until
from tests.web.conftest import TOKEN
from tests.wire.replayer import Service

MOOD = ("-m", "mlpkit", "run", "tests.servers.mood:app")
PACKAGE = "generated_mood_client"


@pytest.fixture(scope="module")
def mood() -> Iterator[Service]:
    service = Service("default", command=MOOD, MLP_CLIENT_WORKER="1", MLPKIT_TOKEN=TOKEN)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def generated(mood: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the package that openapi-python-client has made."""
    if importlib.util.find_spec("openapi_python_client") is None:
        impossible("openapi-python-client is not installed: it is in mlpkit[dev]")
    folder = tmp_path_factory.mktemp("generated")
    document, configuration = folder / "openapi.json", folder / "configuration.json"
    document.write_text(mood.get("/openapi.json", Authorization=f"Bearer {TOKEN}").text, encoding="utf-8")
    configuration.write_text(json.dumps({"post_hooks": [], "package_name_override": PACKAGE}), encoding="utf-8")
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning"]
    options = ["--path", str(document), "--config", str(configuration), "--output-path", str(folder / PACKAGE)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=LONG, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield PACKAGE
    sys.path.remove(str(folder))


def test_a_generated_client_trains_loads_and_predicts_with_typed_answers(mood: Service, generated: str) -> None:
    models = importlib.import_module(f"{generated}.models")
    client = importlib.import_module(f"{generated}.client").AuthenticatedClient(
        base_url=f"http://127.0.0.1:{mood.port}", token=TOKEN
    )

    def operation(place: str) -> ModuleType:
        return importlib.import_module(f"{generated}.api.{place}")

    train = models.TrainTrainMood(
        algorithm="mood",
        model_path="",
        data=models.TrainTrainMoodData(),
        parameter=models.Course(steps=2, seconds=0.1),
        extend=models.TrainTrainMoodExtend(),
    )
    submitted = operation("training.train").sync(client=client, body=train)
    assert isinstance(submitted, models.TrainAnswer)
    model_id = submitted.data.model_id

    def status() -> Any:
        answer = operation("training.status").sync(client=client, model_id=model_id, algorithm="mood")
        assert isinstance(answer, models.StatusAnswer)
        return answer.data

    wait_until(lambda: status().status == "completed", "the training has ended")
    assert isinstance(status().progress, models.Snapshot)
    assert status().progress.fraction == 1.0
    assert status().metrics["accuracy"] == 0.5

    jobs = operation("training.jobs").sync(client=client).data
    assert (jobs.total, jobs.jobs[0].state) == (1, models.JobLineState.COMPLETED)
    job = operation("training.job").sync(client=client, model_id=model_id).data
    assert job.parameters["steps"] == 2
    assert job.curves["accuracy"][0][1] == 0.5

    body = models.LoadBody(model_id=model_id, algorithm="mood")
    loaded = operation("models.load").sync(client=client, body=body)
    assert isinstance(loaded, models.Success)
    listed = operation("models.models").sync(client=client).data
    assert isinstance(listed, models.ModelPage)
    assert [(model.model_id, model.state, model.workers) for model in listed.models] == [(model_id, "loaded", [0])]
    stored = operation("models.models").sync(client=client, stored="1").data
    assert isinstance(stored, models.StoredModelPage)
    assert [model.model_id for model in stored.models] == [model_id]
    (worker,) = operation("service.workers").sync(client=client).data.workers
    assert worker.models == [model_id]
    alias = models.AliasBody(algorithm="mood", alias="current", model_id=model_id)
    assert operation("models.alias").sync(client=client, body=alias).data.name == "mood@current"

    body = models.PredictBody(model_id="mood@current", features=models.Sentence(sentence="good day"))
    predicted = operation("predictions.predict").sync(client=client, body=body)
    assert isinstance(predicted, models.PredictAnswer), predicted
    labels = predicted.data.predictions
    assert [(label.label, label.score) for label in labels] == [("good", 80.0), ("bad", 20.0)]
    assert all(isinstance(label, models.Label) for label in labels)
    client.get_httpx_client().close()


def test_a_generated_client_gets_refusals_as_failures(mood: Service, generated: str) -> None:
    models = importlib.import_module(f"{generated}.models")
    client = importlib.import_module(f"{generated}.client").AuthenticatedClient(
        base_url=f"http://127.0.0.1:{mood.port}", token=TOKEN
    )
    predict = importlib.import_module(f"{generated}.api.predictions.predict")

    refused = predict.sync(client=client, body=models.PredictBody(model_id="no-such"))

    assert isinstance(refused, models.Failure)
    assert "no-such" in refused.message
    client.get_httpx_client().close()
