"""The log as JSON: fields that a program can ask for, a trace through all processes, and who has asked for a change."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminal import in_terminal, without_escapes
from tests.secret import MARK
from tests.servers import SOON, free_port, wait_until
from tests.wire.replayer import Service

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
CALLER = "203.0.113.7"
MOOD = ("-m", "mlpkit", "run", "tests.servers.mood:app")


@pytest.fixture(scope="module")
def logged() -> Iterator[Service]:
    """A service that logs JSON, behind a proxy that it believes."""
    service = Service(
        "default",
        command=MOOD,
        MLP_CLIENT_WORKER="1",
        MLPKIT_LOG_FORMAT="json",
        MLPKIT_PROXIES="127.0.0.0/8",
        MLPKIT_TOKEN=f"{MARK}-a-token",
    )
    yield service
    service.stop()


def lines(service: Service, **wanted: object) -> list[dict[str, Any]]:
    """The lines of the log that have these fields."""
    found = [json.loads(line) for line in service.log().splitlines()]
    return [line for line in found if wanted.items() <= line.items()]


def line(service: Service, **wanted: object) -> dict[str, Any]:
    """The first line with these fields, which may take a moment to be written."""
    wait_until(lambda: bool(lines(service, **wanted)), f"the log has {wanted}", SOON)
    return lines(service, **wanted)[0]


def post(service: Service, path: str, uuid: str, **fields: object) -> Any:
    headers = {
        "Authorization": f"Bearer {MARK}-a-token",
        "X-Forwarded-For": CALLER,
        "traceparent": TRACEPARENT,
    }
    return service.post(path, json.dumps({"uuid": uuid, **fields}), **headers).json


def trained(service: Service, uuid: str, **parameter: object) -> str:
    """The id of a model whose training has ended."""
    answer = post(service, "/train", uuid, algorithm="mood", model_path="", data={}, parameter=parameter, extend={})
    model_id: str = answer["data"]["model_id"]
    ended = f"job [{model_id}] of mood ended"
    wait_until(lambda: any(found["message"].startswith(ended) for found in lines(service)), "the job ends", SOON)
    return model_id


def test_a_line_of_the_access_log_has_fields(logged: Service) -> None:
    model_id = trained(logged, "j-train")
    assert post(logged, "/load", "j-load", algorithm="mood", model_id=model_id) == {"status": "success"}
    post(logged, "/predict", "j-predict", model_id=model_id, features={"sentence": "good"})

    found = line(logged, request_id="j-predict", source="access")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found["time"])
    assert found.pop("duration_ms") > 0
    assert found.pop("bytes") > 0
    assert found.pop("host")
    del found["time"]
    assert found == {
        "level": "INFO",
        "message": "POST /predict",
        "process": "server",
        "request_id": "j-predict",
        "source": "access",
        "method": "POST",
        "route": "predict",
        "status": 200,
        "outcome": "success",
        "algorithm": "mood",
        "model_id": model_id,
        "trace_id": TRACE,
    }


def test_lines_of_a_job_have_its_model_and_the_trace_of_the_request(logged: Service) -> None:
    model_id = trained(logged, "j-job")

    about = {"algorithm": "mood", "model_id": model_id, "trace_id": TRACE, "request_id": "j-job"}
    assert line(logged, message="a line of the job", **about)["process"] == "train"
    assert line(logged, message=f"job [{model_id}] of mood was accepted", **about)["process"] == "server"
    assert line(logged, message=f"job [{model_id}] of mood ended: completed", **about)["process"] == "server"


def test_a_failure_in_a_worker_has_its_exception_its_model_and_the_trace(logged: Service) -> None:
    model_id = trained(logged, "j-boom-train")
    post(logged, "/load", "j-boom-load", algorithm="mood", model_id=model_id)
    post(logged, "/predict", "j-boom", model_id=model_id, features={"sentence": "boom"})

    found = line(logged, request_id="j-boom", level="ERROR")
    assert (found["process"], found["worker"]) == ("worker-0", 0)
    assert (found["algorithm"], found["model_id"], found["trace_id"]) == ("mood", model_id, TRACE)
    assert (found["exception"]["type"], found["exception"]["text"]) == ("ZeroDivisionError", "division by zero")
    assert found["exception"]["trace"].startswith("Traceback")
    assert "Traceback" not in found["message"]


def test_a_job_that_fails_has_its_exception(logged: Service) -> None:
    trained(logged, "j-fail", fail="no rows")

    found = line(logged, request_id="j-fail", level="ERROR")
    assert (found["exception"]["type"], found["exception"]["text"]) == ("ValueError", "no rows")


def test_every_change_has_a_line_with_the_callers_address(logged: Service) -> None:
    model_id = trained(logged, "a-train")
    calls = {
        "load": {"algorithm": "mood", "model_id": model_id},
        "alias": {"algorithm": "mood", "alias": "now", "model_id": model_id},
        "unalias": {"algorithm": "mood", "alias": "now"},
        "unload": {"algorithm": "mood", "model_id": model_id},
        "delete": {"algorithm": "mood", "model_id": model_id},
        "cancel": {"model_id": model_id},
    }
    for action, fields in calls.items():
        post(logged, f"/{action}", f"a-{action}", **fields)
    for action in ("train", *calls):
        found = line(logged, source="audit", request_id=f"a-{action}")
        assert (found["action"], found["caller"], found["outcome"]) == (action, CALLER, "success"), found
        assert found.get("model_id", model_id) == model_id
    post(logged, "/load", "a-refused", algorithm="nope", model_id="x")
    assert line(logged, source="audit", request_id="a-refused")["outcome"] != "success"
    assert MARK not in logged.log()


def test_an_address_that_no_trusted_proxy_sent_is_not_believed(plain: Service) -> None:
    plain.post("/unload", '{"algorithm": "echo", "model_id": "x\\n", "uuid": "a-liar"}', **{"X-Forwarded-For": CALLER})

    wait_until(lambda: "a-liar] server audit" in plain.log(), "the log has the line", SOON)
    (found,) = [text for text in plain.log().splitlines() if "a-liar] server audit" in text]
    assert found.endswith("| unload algorithm echo model_id x? by 127.0.0.1: success")


def started_in_terminal(folder: Path, **environment: str) -> str:
    """What a service writes to a terminal until Ctrl-C."""
    paths = {"PYTHONPATH": str(Path(__file__).parent.parent.parent), "MLPKIT_HOME": str(folder), "TERM": "xterm"}
    command = [sys.executable, *MOOD, "--port", str(free_port()), "--workers", "1"]
    shown = in_terminal(
        command,
        folder,
        {"PATH": os.environ["PATH"], **paths, **environment},
        interrupt_at=lambda output: "serving mood" in output and ("python  " in output or "level" in output),
    )
    return shown.output


def test_a_service_in_a_terminal_shows_colours_and_where_everything_is(tmp_path: Path) -> None:
    output = started_in_terminal(tmp_path)

    assert "\x1b[32mINFO" in output
    shown = dict(
        text.split(None, 1) for text in without_escapes(output).splitlines() if re.match(r" {4}\w+ {2,}\S", text)
    )
    assert shown["page"].startswith("http://127.0.0.1:")
    assert shown["docs"].startswith(f"{shown['page'].strip()}docs")
    assert shown["algorithms"] == "mood (text_classification), other (text_custom)"
    assert shown["workers"] == "1"
    assert shown["store"].startswith(f"folder://{tmp_path}")


def test_no_color_leaves_the_colours_out(tmp_path: Path) -> None:
    output = started_in_terminal(tmp_path, NO_COLOR="1")

    assert "\x1b[32m" not in output
    assert "algorithms  mood" in output


def test_json_on_a_terminal_has_neither_colours_nor_a_banner(tmp_path: Path) -> None:
    output = started_in_terminal(tmp_path, MLPKIT_LOG_FORMAT="json")

    for text in output.replace("^C", "").splitlines():
        assert not text or "level" in json.loads(text)
