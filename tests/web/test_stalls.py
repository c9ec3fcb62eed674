"""One large request does not hold up the others: the loop never works long on it."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from mlpkit.log import LogOutput
from mlpkit.script import import_app
from mlpkit.service import Service
from mlpkit.settings import Settings
from mlpkit.training.job import Job
from mlpkit.training.journal import Journal
from tests.web.test_keep_alive import longest_turn

pytestmark = pytest.mark.anyio
MANY_JOBS = 10_000
LONGEST = 0.1
"""Seconds of processor time that one turn of the loop may take; other processes of the machine do not count."""
SCRIPT = """
from mlpkit import App
app = App("it")

@app.train
def train(parameters: dict) -> None: ...

@app.load
def load() -> None: ...

@app.predict
def predict(features: dict) -> str:
    return "x" * features["length"]
"""


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """A service in this process, without a port."""
    script = tmp_path / f"stalls_{tmp_path.name}.py"
    script.write_text(SCRIPT, encoding="utf-8")
    target = f"{script}:app"
    settings = Settings(home=tmp_path / "home", workers=0, shutdown_grace=1.0, max_answer=1000)
    async with Service(import_app(target), settings, LogOutput(io.StringIO()), target=target) as service:
        yield service


async def asked(service: Service, method: str, path: str, body: bytes = b"", query: bytes = b"") -> Any:
    """The answer to a request."""
    sent: list[Message] = []
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": query}
    await service.web(scope, receive, send)
    return json.loads(sent[1]["body"])


async def test_train_with_a_large_request_leaves_the_loop_to_others(service: Service) -> None:
    parameter = {"pad": ["x" * 100] * 300_000}
    train = {"algorithm": "it", "model_path": "", "data": {}, "parameter": parameter, "extend": {}}
    body = json.dumps(train).encode()
    turns = asyncio.create_task(longest_turn())
    answer = await asked(service, "POST", "/train", body)
    job = await asked(service, "GET", f"/jobs/{answer['data']['model_id']}")
    turns.cancel()
    assert job["data"]["parameters"] == parameter
    assert job["data"]["extend"] == {"remote_ip": ""}
    assert await turns < LONGEST


async def test_request_with_millions_of_values_is_decoded_by_its_job_only(service: Service) -> None:
    parameters = b",".join(b'"k%d":1' % number for number in range(300_000))
    body = b'{"algorithm":"it","model_path":"","data":{},"extend":{},"parameter":{%b,"k1":2}}' % parameters
    answer = await asked(service, "POST", "/train", body)
    assert answer["status"] == "success", answer
    job = service.training.job(answer["data"]["model_id"])
    assert job is not None
    assert len(job.parameters) > len(parameters)


async def test_answer_that_is_too_large_is_refused_with_its_size(service: Service) -> None:
    await asked(service, "POST", "/load", b'{"algorithm": "it", "model_id": "m"}')

    async def predict(length: int) -> Any:
        body = json.dumps({"model_id": "m", "features": {"length": length}}).encode()
        return await asked(service, "POST", "/predict", body)

    assert (await predict(998))["status"] == "success"
    refused = await predict(999)
    assert refused["status"] == "fail"
    assert "the answer has 1,001 bytes of JSON, 1,000 are allowed (MLPKIT_MAX_ANSWER)" in refused["message"]


async def test_longest_turn_measures_the_work_of_a_turn() -> None:
    turns = asyncio.create_task(longest_turn())
    await asyncio.sleep(0)
    end = time.thread_time() + 2 * LONGEST
    while time.thread_time() < end:
        pass
    await asyncio.sleep(0)
    turns.cancel()
    assert await turns > LONGEST


@pytest.fixture
async def crowded(tmp_path: Path) -> AsyncIterator[Service]:
    """A service that has kept ten thousand jobs."""
    journal = Journal(tmp_path)
    # The fixture need not survive a power cut, and ten thousand commits that do take minutes on some disks.
    journal._writer.execute("PRAGMA synchronous = OFF")
    for number in range(MANY_JOBS):
        state: Any = "error" if number % 10 == 0 else "completed"
        journal.add(Job(f"m-{number}", "it", state=state, message="x" * 100, started=time.time(), ended=time.time()))
    journal.close()
    script = tmp_path / f"crowded_{tmp_path.name}.py"
    script.write_text(SCRIPT, encoding="utf-8")
    target = f"{script}:app"
    settings = Settings(home=tmp_path, workers=0, shutdown_grace=1.0)
    async with Service(import_app(target), settings, LogOutput(io.StringIO()), target=target) as service:
        yield service


async def test_ten_thousand_jobs_hold_up_nobody(crowded: Service) -> None:
    turns = asyncio.create_task(longest_turn())
    page = await asked(crowded, "GET", "/jobs")
    assert (page["data"]["total"], len(page["data"]["jobs"])) == (MANY_JOBS, 1000)
    summary = await asked(crowded, "GET", "/summary")
    assert summary["data"]["failed"]["count"] == 100
    assert (await asked(crowded, "GET", "/jobs/m-5000"))["data"]["state"] == "error"
    status = await asked(crowded, "GET", "/status", query=b"algorithm=it&model_id=m-5001")
    assert (status["data"]["status"], status["data"]["estimated_start"]) == ("completed", None)
    trained = {"algorithm": "it", "model_path": "", "data": {}, "parameter": {}, "extend": {}}
    model_id = (await asked(crowded, "POST", "/train", json.dumps(trained).encode()))["data"]["model_id"]
    assert (await asked(crowded, "GET", "/jobs"))["data"]["jobs"][0]["model_id"] == model_id
    turns.cancel()
    assert await turns < LONGEST
