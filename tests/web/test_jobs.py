"""mlpkit's own routes: jobs, their logs, cancel, models."""

from __future__ import annotations

import datetime
import time
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from mlpkit import App
from mlpkit.web.page import describe_algorithms
from tests.servers import LONG
from tests.wire.replayer import Service

dated = App("dated", examples=[{"when": datetime.date(2026, 11, 30)}, {"never": object()}])


@dated.predict
def predict(features: dict[str, str]) -> str:
    return ""


def train(service: Service, algorithm: str = "echo", parameter: str = "{}") -> str:
    rest = '"model_path": "", "data": {"a": 1}, "extend": {}'
    body = f'{{"algorithm": "{algorithm}", "parameter": {parameter}, {rest}}}'
    model_id: str = service.post("/train", body).json["data"]["model_id"]
    return model_id


def job_in(service: Service, model_id: str, *states: str) -> dict[str, Any]:
    """The job, when it is in one of the states."""
    end = time.monotonic() + LONG
    while True:
        job: dict[str, Any] = service.get(f"/jobs/{model_id}").json["data"]
        if job["state"] in states:
            return job
        assert time.monotonic() < end, job
        time.sleep(0.05)


def test_a_job_shows_what_it_was_asked_and_how_it_went(plain: Service) -> None:
    model_id = train(plain)
    job = job_in(plain, model_id, "completed")
    assert job["algorithm"] == "echo"
    assert job["data"] == {"a": 1}
    assert job["extend"] == {"remote_ip": "127.0.0.1"}
    assert job["created"] <= job["started"] <= job["ended"]
    assert job["attempt"] == 1
    listed = plain.get("/jobs?limit=1&algorithm=echo&state=completed").json["data"]["jobs"]
    assert [each["model_id"] for each in listed] == [model_id]
    wrong = plain.get("/jobs?state=done").json
    assert (wrong["status"], "init, training, completed, error" in wrong["message"]) == ("arg_error", True)


def test_the_log_of_a_job_is_text_and_tail_cuts_it(plain: Service) -> None:
    model_id = train(plain, "boom", '{"mode": "raise"}')
    job = job_in(plain, model_id, "error")
    assert "boom in train" in job["message"]
    whole = plain.get(f"/jobs/{model_id}/log")
    assert whole.content_type == "text/plain"
    assert "boom in train" in whole.text
    lines = whole.text.splitlines()
    assert len(lines) > 1
    assert plain.get(f"/jobs/{model_id}/log?tail=1").text.splitlines() == lines[-1:]


def test_status_has_the_protocol_s_word_and_more_beside_it(plain: Service) -> None:
    model_id = train(plain, "boom", '{"mode": "raise"}')
    job_in(plain, model_id, "error")
    data = plain.get(f"/status?algorithm=boom&model_id={model_id}").json["data"]
    assert data["status"] == "error"
    assert "boom in train" in data["message"]
    assert {"progress", "queue_position", "estimated_start"} <= data.keys()


def test_cancel_ends_a_running_job(plain: Service) -> None:
    model_id = train(plain, "slow", '{"seconds": 5}')
    job_in(plain, model_id, "training")
    answer = plain.post("/cancel", f'{{"algorithm": "slow", "model_id": "{model_id}"}}')
    assert answer.json["data"]["status"] == "error"
    assert job_in(plain, model_id, "error")["message"] == answer.json["data"]["message"] != ""


@pytest.mark.parametrize("tail", ["0", "-1", "x", "1e3", "9" * 30, "²"])
def test_a_tail_that_is_no_number_is_refused(plain: Service, tail: str) -> None:
    model_id = train(plain)
    answer = plain.get(f"/jobs/{model_id}/log?tail={quote(tail)}")
    assert answer.json["status"] == "arg_error"
    assert "[tail]" in answer.json["message"]


@pytest.mark.parametrize(
    "path", ["/jobs/nobody", "/jobs/nobody/log", "/jobs/..%2F..%2Fetc/log", "/jobs/%00", "/jobs/a%2Fb"]
)
def test_a_job_that_nobody_knows_is_not_found(plain: Service, path: str) -> None:
    answer = plain.get(path)
    assert answer.json["status"] == "fail"
    assert answer.json["message"].startswith("no job with model id")


def test_models_show_where_they_are_and_what_they_did(plain: Service) -> None:
    plain.post("/load", '{"algorithm": "echo", "model_id": "shown-1"}')
    plain.post("/predict", '{"model_id": "shown-1", "features": {"sentence": "x"}}')
    shown = {model["model_id"]: model for model in plain.get("/models").json["data"]["models"]}
    assert shown["shown-1"]["algorithm"] == "echo"
    assert shown["shown-1"]["state"] == "loaded"
    assert shown["shown-1"]["workers"] == [0]
    assert shown["shown-1"]["predictions"] == 1


def test_jobs_come_in_pages_and_of_a_time(plain: Service) -> None:
    ids = [train(plain) for _ in range(3)]
    for model_id in ids:
        job_in(plain, model_id, "completed")
    newest = plain.get("/jobs?limit=2").json["data"]
    assert newest["total"] >= 3
    assert [each["model_id"] for each in newest["jobs"]] == [ids[2], ids[1]]
    assert plain.get("/jobs?limit=1&offset=2").json["data"]["jobs"][0]["model_id"] == ids[0]
    created = newest["jobs"][0]["created"]
    assert plain.get(f"/jobs?since={created:.7f}").json["data"]["total"] <= 1
    assert ids[2] not in str(plain.get(f"/jobs?until={created - 0.001:.7f}").json)
    found = plain.get(f"/jobs?find={ids[1][3:20].upper()}").json["data"]
    assert [each["model_id"] for each in found["jobs"]] == [ids[1]]
    for wrong in ("since=yesterday", "until=1e9", "offset=-1", "offset=²"):
        answer = plain.get(f"/jobs?{quote(wrong, safe='=')}").json
        assert (answer["status"], f"[{wrong.partition('=')[0]}]" in answer["message"]) == ("arg_error", True)


def test_a_log_can_be_followed_from_where_the_last_answer_ended(plain: Service) -> None:
    model_id = train(plain, "boom", '{"mode": "raise"}')
    job_in(plain, model_id, "error")
    first = plain.get(f"/jobs/{model_id}/log")
    end = int(first.headers["x-log-end"])
    assert end == len(first.text.encode())
    assert plain.get(f"/jobs/{model_id}/log?from={end}").text == ""
    assert plain.get(f"/jobs/{model_id}/log?from=5").text == first.text[5:]
    assert plain.get(f"/jobs/{model_id}/log?from=999999").text == first.text
    assert plain.get(f"/jobs/{model_id}/log?from=x").json["status"] == "arg_error"


def test_the_stack_of_a_job_that_has_ended_is_refused(plain: Service) -> None:
    model_id = train(plain)
    job_in(plain, model_id, "completed")
    assert "only a job that runs has a stack" in plain.get(f"/jobs/{model_id}/stack").json["message"]


def test_workers_show_their_memory_and_what_they_hold(plain: Service) -> None:
    plain.post("/load", '{"algorithm": "echo", "model_id": "held-1"}')
    (worker,) = plain.get("/workers").json["data"]["workers"]
    assert (worker["index"], worker["ready"], worker["restarts"], worker["problem"]) == (0, True, 0, "")
    assert "held-1" in worker["models"]
    assert worker["memory"] > 1 << 20
    assert psutil.pid_exists(worker["pid"])
    assert 0 < worker["since"] <= time.time()
    assert worker["devices"] == []


def test_the_summary_counts_what_there_is(plain: Service) -> None:
    model_id = train(plain, "boom", '{"mode": "raise"}')
    ended = job_in(plain, model_id, "error")
    summary = plain.get("/summary").json["data"]
    assert (summary["phase"], summary["ready"], summary["reasons"]) == ("ready", True, [])
    assert summary["failed"]["count"] >= 1
    assert summary["failed"]["last"]["model_id"] == model_id
    assert summary["failed"]["last"]["message"] == ended["message"]
    assert {"waiting", "running", "places"} == set(summary["jobs"])
    assert summary["workers"] == {"ready": 1, "all": 1, "restarts": 0}
    assert summary["memory"]["server"] > 1 << 20
    assert summary["disk"]["free"] <= summary["disk"]["total"]
    assert "echo" in [each["name"] for each in summary["algorithms"]]


def test_algorithms_tell_what_a_form_needs(plain: Service) -> None:
    described = plain.get("/algorithms").json["data"]
    echo = next(each for each in described["algorithms"] if each["name"] == "echo")
    assert echo["hooks"] == sorted(echo["hooks"])
    assert {"features", "params", "parameters", "examples", "kind", "takes_data"} <= set(echo)


def test_examples_of_an_algorithm_are_what_json_makes_of_them() -> None:
    (described,) = describe_algorithms(dated.algorithms())["algorithms"]
    assert described["examples"] == [{"when": "2026-11-30"}]
