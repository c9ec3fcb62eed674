"""What a stranger, or a careless caller, cannot do: get in, get out of the home, or learn a secret."""

from __future__ import annotations

import contextlib
import json
import socket
import stat
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from mlpkit import Client
from mlpkit.errors import MlpkitError, PredictFailed, TrainFailed
from tests.acceptance.service import RunningService
from tests.faults.conftest import Start
from tests.secret import new_secret
from tests.servers import LONG

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parent / "scripts"
CANARY = "the content of a file outside"
TOKEN, PASSWORD, KEY = (new_secret() for _ in range(3))
ESCAPES = (
    *("../../../canary", "../../../canary/model.txt", "a/../../../../canary", "./../../../canary", ".."),
    *("..\\..\\..\\canary", "..%2f..%2f..%2fcanary", "%2e%2e/%2e%2e/%2e%2e/canary", "..;/..;/..;/canary"),
    *(
        "\uff0e\uff0e/\uff0e\uff0e/\uff0e\uff0e/canary",
        "\u2024\u2024/\u2024\u2024/canary",
        "..\uff0f..\uff0f..\uff0fcanary",
    ),
    *("..\u2215..\u2215..\u2215canary", "a\0/../../../canary", "\ud800/../canary", "~/canary", "file:///etc/passwd"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder around the home: with a canary, that nobody must reach."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "canary").mkdir()
    (folder / "canary" / "model.txt").write_text(CANARY)
    manifest = {"algorithm": "filing", "kind": "text_custom", "model_id": "canary", "files": {"model.txt": len(CANARY)}}
    (folder / "canary" / "mlpkit.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def service(place: Path) -> Iterator[RunningService]:
    """A service without a token."""
    running = RunningService(f"{SCRIPTS / 'filing.py'}:app", place / "home", {"MLPKIT_STORAGE_RETRIES": "0"})
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def everything(folder: Path) -> dict[str, bytes]:
    """The files around the home, but the service's log."""
    files = (each for each in folder.rglob("*") if each.is_file() and (folder / "home") not in each.parents)
    return {str(each.relative_to(folder)): each.read_bytes() for each in files if each.name != "home.log"}


def saved(service: RunningService, bucket: str, key: str, content: str) -> None:
    file = service.home / "storage" / bucket / key
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def answers_to(client: Client, path: str) -> Iterator[bytes]:
    """What every route says to a path or id."""
    absolute = f"/{path}"
    yield client.request("POST", "/train", json.dumps(training(path)).encode()).body
    for text in (path, absolute, f"ml-platform-model/{path}"):
        for fields in (
            ("load", {"algorithm": "filing", "model_id": text}),
            ("load", {"algorithm": "filing", "model_id": "m", "model_path": text}),
            ("unload", {"algorithm": "filing", "model_id": text}),
            ("delete", {"algorithm": "filing", "model_id": text}),
            ("cancel", {"model_id": text}),
            ("predict", {"model_id": text, "features": {}}),
            ("predict", {"model_id": "good", "features": {"path": text}}),
            ("predict", {"model_id": "good", "features": {"file": text}}),
        ):
            yield client.request("POST", f"/{fields[0]}", json.dumps(fields[1]).encode()).body
        for target in ("/jobs/{}", "/jobs/{}/log", "/status?algorithm=filing&model_id={}", "/{}"):
            yield client.request("GET", target.format(quote(text, errors="surrogatepass"))).body


def training(location: str, **more: Any) -> dict[str, Any]:
    fields = {"algorithm": "filing", "model_path": "", "data": {"location": location}, "parameter": {}, "extend": {}}
    return {**fields, **more}


def test_no_path_or_id_leads_out_of_its_place(service: RunningService, place: Path) -> None:
    client = service.client
    saved(service, "ml-platform-data", "train.txt", "data")
    job = client.train("filing", "train.txt")
    job.wait(LONG)
    client.load("filing", job.model_id)
    good = {"model_id": "good", "files": {"data": 4}}
    saved(service, "ml-platform-model", "good/data", "data")
    saved(
        service,
        "ml-platform-model",
        "good/mlpkit.json",
        json.dumps({**json.loads(manifest(service, job.model_id)), **good}),
    )
    client.load("filing", "good")
    assert client.predict("good", {"file": "data"}) == "data"
    before = everything(place)

    for path in ESCAPES:
        for answer in answers_to(client, path):
            assert CANARY.encode() not in answer, path
            assert b"root:" not in answer, path
            assert b"internal error" not in answer, (path, answer)
    time.sleep(0.5)
    wait_for_jobs(client)
    assert everything(place) == before
    assert set(client.monitor().load) == {job.model_id, "good"}
    stored = [each.read_bytes() for each in service.home.rglob("*") if each.is_file()]
    assert not any(CANARY.encode() in each for each in stored)


def manifest(service: RunningService, model_id: str) -> str:
    return (service.home / "storage" / "ml-platform-model" / model_id / "mlpkit.json").read_text()


def wait_for_jobs(client: Client) -> None:
    end = time.monotonic() + 90
    while any(each.ended is None for each in client.jobs()):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("dict_location", {"extend": {"dict_location": "../../../canary/model.txt"}}),
        ("extra_location", {"extend": {"extra_location": "/../../canary/model.txt"}}),
        ("pretrain_model", {"parameter": {"pretrain_model": "ml-platform-model/../../../canary"}}),
        ("model_path", {"model_path": "ml-platform-model/../../../canary"}),
    ],
)
def test_no_path_of_a_training_leads_out_of_its_place(
    service: RunningService, place: Path, field: str, more: dict[str, Any]
) -> None:
    client = service.client
    saved(service, "ml-platform-data", "train.txt", "data")
    before = everything(place)
    answer = json.loads(client.request("POST", "/train", json.dumps(training("train.txt", **more)).encode()).body)
    if answer["status"] == "success":
        with pytest.raises(TrainFailed, match=r"\.\."):
            client.job("filing", answer["data"]["model_id"]).wait(LONG)
    else:
        assert answer["status"] == "arg_error"
    assert everything(place) == before


def test_home_is_private_also_where_it_was_made_by_others(
    service: RunningService, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o755)
    for home in (start().home, service.home):
        assert stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.parametrize("debug", ["off", "on"])
def test_tracebacks_are_in_answers_only_where_debug_is_on(start: Start, folder: Path, debug: str) -> None:
    service = start({"MLPKIT_DEBUG": debug})
    client = service.client
    client.load("faulty", "m")
    (folder / "load n").write_text("raise")
    for route, fields in (
        ("predict", {"model_id": "m", "features": {"do": "raise"}}),
        ("load", {"algorithm": "faulty", "model_id": "n"}),
    ):
        answer = client.request("POST", f"/{route}", json.dumps(fields).encode()).body.decode()
        assert "as it was ordered" in answer
        assert ("Traceback" in answer, "faulty.py" in answer) == ((debug == "on"),) * 2, answer
    job = client.train("faulty", parameters={"do": "raise"})
    with pytest.raises(TrainFailed, match="as it was ordered"):
        job.wait(LONG)
    for target in (f"jobs/{job.model_id}", f"status?algorithm=faulty&model_id={job.model_id}", "jobs", "models"):
        assert "Traceback" not in got(service.port, f"/{target}", "")
    assert service.log.count("in obey") == 3


def test_body_that_is_too_large_is_refused_before_it_has_come(start: Start) -> None:
    service = start({"MLPKIT_MAX_BODY": "100k"})
    chunk = b"x" * 65536
    with socket.create_connection(("127.0.0.1", service.port), timeout=LONG) as connection:
        head = (
            "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10000000000\r\n\r\n"
        )
        connection.sendall(head.encode())
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 100 << 20:
                connection.sendall(chunk)
                sent += len(chunk)
        assert sent < 32 << 20
        answer = b""
        with contextlib.suppress(OSError):
            answer = connection.recv(65536)
        assert b" 413 " in answer or answer == b""
    assert service.client.live()
    assert psutil.Process(service.pid).memory_info().rss < 300 << 20


def test_no_secret_is_in_anything_that_can_be_read(start: Start, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"MLPKIT_TOKEN={TOKEN}\n")
    access = {"DB_PASS": PASSWORD, "MINIO_ACCESS_KEY": "somebody", "MINIO_SECRET_KEY": KEY}
    loud = {"MLPKIT_LOG_LEVEL": "trace", "MLPKIT_DEBUG": "on"}
    service = start({**access, **loud}, ready=False)
    client = Client(service.client.url, token=TOKEN)
    client.wait_ready(LONG)
    client.load("faulty", "m")
    shown: dict[str, str] = {}
    with pytest.raises(PredictFailed) as failed:
        client.predict("m", {"do": "raise"})
    shown["predict"] = str(failed.value)
    job = client.train("faulty", parameters={"do": "raise"})
    with pytest.raises(TrainFailed) as train:
        job.wait(LONG)
    shown["train"] = str(train.value)
    with pytest.raises(MlpkitError, match="valid token") as refused:
        Client(service.client.url, token="wrong").monitor()
    shown["refusal"] = str(refused.value)
    for target in ("jobs", f"jobs/{job.model_id}", f"jobs/{job.model_id}/log", "models", "monitor", "metrics"):
        shown[target] = got(service.port, f"/{target}", TOKEN)
        assert "valid token" in got(service.port, f"/{target}", ""), target
    # The page at /docs is open: it holds no data.
    for target in ("node_info", "openapi.json", "health/ready", "nowhere", "docs"):
        shown[target] = got(service.port, f"/{target}", TOKEN)
    job = client.train("faulty")
    while client.job_view(job.model_id).state != "training":
        time.sleep(0.05)
    for each in service.family():
        with contextlib.suppress(psutil.Error):
            shown[f"arguments of {each.pid}"] = " ".join(each.cmdline())
            environment = each.environ()
            shown[f"environment of {each.pid}"] = " ".join(
                f"{name}={value}" for name, value in environment.items() if environment.get(name) != access.get(name)
            )
    job.cancel()
    shown |= {str(file): file.read_bytes().decode("latin-1") for file in service.home.rglob("*") if file.is_file()}
    shown["log"] = service.log
    for secret in (TOKEN, PASSWORD, KEY):
        assert [name for name, content in shown.items() if secret in content] == []


def got(port: int, target: str, token: str) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=LONG)
    connection.request("GET", target, headers={"Authorization": f"Bearer {token}"} if token else {})
    body = connection.getresponse().read().decode()
    connection.close()
    return body
