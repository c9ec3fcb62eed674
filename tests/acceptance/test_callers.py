"""Two platforms, one service: the store of each caller is used for what he asks, and of nobody who is not allowed."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlpkit.settings import Settings
from mlpkit.storage import Storage, open_storage
from tests.acceptance.conftest import Start
from tests.servers import LONG, Relay, S3Server, refusing, s3_server, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 as addresses"),
]

LOCATION = "same/key.txt"
Ask = Callable[[str, str, dict[str, Any]], Any]


@pytest.fixture
def stores(s3: S3Server, tmp_path: Path) -> Iterator[dict[str, Storage]]:
    """The stores on 127.0.0.1 and 127.0.0.2, with the same port and keys: each has data of its own under one key."""
    port = int(s3.endpoint.rpartition(":")[2])
    shared = tmp_path / "second"
    shared.mkdir()
    with s3_server(shared) as second, Relay(second.endpoint, port, "127.0.0.2"):
        opened = {
            address: open_storage(
                Settings(
                    home=tmp_path / address,
                    minio_host=f"{address}:{port}",
                    minio_access_key=s3.access_key,
                    minio_secret_key=s3.secret_key,
                )
            )
            for address in ("127.0.0.1", "127.0.0.2")
        }
        for address, storage in opened.items():
            (tmp_path / "content").write_text(f"data of {address}", encoding="utf-8")
            storage.save(tmp_path / "content", f"ml-platform-data/{LOCATION}")
        yield opened
        for storage in opened.values():
            storage.close()


@pytest.fixture
def ask(start: Start) -> Ask:
    """Sends a request from an address to a service that serves the platforms of 127.0.0.1 and 127.0.0.2.

    Without fields it is a question.
    """
    service = start("copying", {"MLPKIT_REMOTE_STORAGE": "on", "MLPKIT_REMOTE_ALLOW": "127.0.0.1,127.0.0.2/32"})

    def send(source: str, path: str, fields: dict[str, Any]) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=LONG, source_address=(source, 0))
        try:
            method, body = ("POST", json.dumps(fields)) if fields else ("GET", None)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    return send


def train(ask: Ask, source: str) -> Any:
    extend = {"remote_ip": "127.0.0.1"}
    wanted = {"data": {"location": LOCATION}, "parameter": {}, "extend": extend, "model_path": ""}
    return ask(source, "/train", {"algorithm": "copying", **wanted})


def load(ask: Ask, source: str, model_id: str) -> None:
    """Loads a model as soon as it has been trained."""
    wanted = {"algorithm": "copying", "model_id": model_id, "extend": {}}
    wait_until(lambda: ask(source, "/load", wanted)["status"] == "success", "the model is in the store of the caller")


def test_each_caller_trains_and_loads_with_his_own_store(ask: Ask, stores: dict[str, Storage]) -> None:
    ids = {source: train(ask, source)["data"]["model_id"] for source in stores}

    for source, model_id in ids.items():
        load(ask, source, model_id)
        answer = ask(source, "/predict", {"model_id": model_id, "features": {}})
        assert answer["data"]["predictions"] == f"data of {source}"

    one, two = ids.values()
    assert stores["127.0.0.1"].list(f"ml-platform-model/{two}/") == []
    assert stores["127.0.0.2"].list(f"ml-platform-model/{one}/") == []


def test_a_caller_who_is_not_allowed_is_refused_before_anything_is_sent_to_him(
    ask: Ask, stores: dict[str, Storage], s3: S3Server
) -> None:
    with Relay(s3.endpoint, int(s3.endpoint.rpartition(":")[2]), "127.0.0.3") as third:
        refused = train(ask, "127.0.0.3")
        loaded = ask("127.0.0.3", "/load", {"algorithm": "copying", "model_id": "m", "extend": {}})

        assert refused["status"] == "arg_error"
        for answer in (refused, loaded):
            assert "the store of 127.0.0.3 may not be used: it is not among MLPKIT_REMOTE_ALLOW" in answer["message"]
        assert third.requests == []


def test_a_store_of_a_caller_that_sends_on_to_another_place_leads_nowhere(ask: Ask, s3: S3Server) -> None:
    port = int(s3.endpoint.rpartition(":")[2])
    with (
        refusing(200) as inside,
        refusing(307, {"Location": f"http://{inside.endpoint}/"}, host="127.0.0.2", port=port) as store,
    ):
        model_id = train(ask, "127.0.0.2")["data"]["model_id"]
        asked = f"/status?algorithm=copying&model_id={model_id}"
        wait_until(lambda: ask("127.0.0.1", asked, {})["data"]["status"] == "error", "the training has failed")
        loaded = ask("127.0.0.2", "/load", {"algorithm": "copying", "model_id": "m", "extend": {}})

        for message in (ask("127.0.0.1", asked, {})["data"]["message"], loaded["message"]):
            assert f"http://127.0.0.2:{port}: ml-platform-" in message
        assert store.requests
        assert inside.requests == []
