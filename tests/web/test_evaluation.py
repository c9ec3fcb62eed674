"""Evaluations, as callers see them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlpkit.client import Client
from tests.web.test_jobs import job_in
from tests.wire.replayer import Service

ROWS = {"train.tsv": "a fine day\tgood\nrain\tbad\n", "test.tsv": "sun\tgood\nmoon\tgood\nno sun\tbad\n"}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A service whose models always answer `good`, with rows in its data bucket."""
    running = Service("default", command=("-m", "mlpkit", "run", "tests.servers.mood:app"), MLP_CLIENT_WORKER="1")
    try:
        data = Path(running.folder.name, "home", "storage", "ml-platform-data")
        data.mkdir(parents=True, exist_ok=True)
        for name, rows in ROWS.items():
            (data / name).write_text(rows, encoding="utf-8")
        yield running
    finally:
        running.stop()


def trained(
    service: Service, data: dict[str, str], parameter: Mapping[str, Any] | None = None, **extend: object
) -> dict[str, Any]:
    """The job, when it has ended."""
    request = {"algorithm": "mood", "model_path": "", "data": data, "parameter": parameter or {}, "extend": extend}
    model_id = service.post("/train", json.dumps(request)).json["data"]["model_id"]
    return job_in(service, model_id, "completed", "error")


def evaluated(service: Service, **extend: object) -> dict[str, Any]:
    return trained(service, {"location": "train.tsv", "test_location": "test.tsv"}, {}, **extend)


def listed(service: Service, query: str, model_id: str) -> dict[str, Any]:
    models = service.get(f"/models{query}").json["data"]["models"]
    (found,) = [model for model in models if model["model_id"] == model_id]
    return dict(found)


def test_report_of_a_job_has_all_that_was_found(service: Service) -> None:
    model_id = evaluated(service)["model_id"]
    answer = service.get(f"/jobs/{model_id}/evaluation")
    assert (answer.status, answer.json["status"]) == (200, "success")
    report = answer.json["data"]
    assert (report["rows"], report["source"]) == (3, "data.test_location: test.tsv")
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert report["labels"]["good"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2})
    assert [(error["line"], error["wanted"], error["got"]) for error in report["errors"]] == [(3, "bad", "good")]


def test_status_job_and_models_have_the_summary(service: Service) -> None:
    job = evaluated(service)
    model_id = job["model_id"]
    summary = job["evaluation"]
    assert (summary["rows"], summary["accuracy"]) == (3, pytest.approx(2 / 3))
    status = service.get(f"/status?algorithm=mood&model_id={model_id}").json["data"]
    assert status["metrics"] == {"accuracy": 0.5, "evaluation": summary}
    assert listed(service, "?stored=1", model_id)["evaluation"] == summary
    service.post("/load", json.dumps({"algorithm": "mood", "model_id": model_id}))
    assert listed(service, "", model_id)["evaluation"] == summary


def test_job_below_its_gate_is_an_error_and_its_report_is_kept(service: Service) -> None:
    job = evaluated(service, min_f1=0.9)
    model_id = job["model_id"]
    assert (job["state"], "macro F1 0.4000 on 3 test rows, below min_f1=0.9" in job["message"]) == ("error", True)
    status = service.get(f"/status?algorithm=mood&model_id={model_id}").json["data"]
    assert (status["status"], status["metrics"]["evaluation"]) == ("error", job["evaluation"])
    report = service.get(f"/jobs/{model_id}/evaluation").json["data"]
    assert report["gate"] == {"min_f1": 0.9, "f1": 0.4, "passed": False}
    loaded = service.post("/load", json.dumps({"algorithm": "mood", "model_id": model_id})).json
    assert loaded == {"status": "success"}, "whoever asks for it by hand gets it"


def test_job_without_test_rows_has_no_evaluation(service: Service) -> None:
    job = trained(service, {"location": "train.tsv"})
    assert job["evaluation"] is None
    answer = service.get(f"/jobs/{job['model_id']}/evaluation").json
    assert (answer["status"], "its training had no test rows" in answer["message"]) == ("fail", True)


@pytest.mark.parametrize("value", [0.9, "good", [1], {"f1": 0.9}])
def test_metric_of_the_author_with_the_name_evaluation_is_no_evaluation(service: Service, value: Any) -> None:
    job = trained(service, {"location": "train.tsv"}, {"metrics": {"evaluation": value}})
    model_id = job["model_id"]
    assert (job["evaluation"], job["progress"]["metrics"]["evaluation"]) == (None, value)
    answer = service.get(f"/jobs/{model_id}/evaluation").json
    assert (answer["status"], "its training had no test rows" in answer["message"]) == ("fail", True)
    # One such job must not take all others from the client.
    with Client(f"http://127.0.0.1:{service.port}") as client:
        assert [found.evaluation for found in client.jobs() if found.model_id == model_id] == [None]


@pytest.mark.parametrize("own", ["this is no JSON", '{"f1": 0.5}'])
def test_file_evaluation_json_of_the_author_is_not_given_as_the_report(service: Service, own: str) -> None:
    data = {"location": "train.tsv", "test_location": "test.tsv"}
    job = trained(service, data, {"files": {"evaluation.json": own}})
    assert job["evaluation"]["rows"] == 3
    answer = service.get(f"/jobs/{job['model_id']}/evaluation").json
    assert (answer["status"], "is not stored: train has written" in answer["message"]) == ("fail", True)


def test_report_goes_with_its_model(service: Service) -> None:
    model_id = evaluated(service)["model_id"]
    service.post("/delete", json.dumps({"algorithm": "mood", "model_id": model_id}))
    answer = service.get(f"/jobs/{model_id}/evaluation")
    assert answer.json["status"] == "fail"
    assert "evaluation.json" in answer.json["message"]


@pytest.mark.parametrize("model_id", ["nobody", "..%2F..%2Fetc", "%00"])
def test_unknown_job_has_no_evaluation(service: Service, model_id: str) -> None:
    answer = service.get(f"/jobs/{model_id}/evaluation").json
    assert (answer["status"], "no job with model id" in answer["message"]) == ("fail", True)
