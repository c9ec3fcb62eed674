"""The routes of aliases, as callers see them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import LONG, wait_until
from tests.wire.replayer import Service


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A service with three stored models: `a` and `b` of `word`, `c` of `other`."""
    running = Service("default", command=("-m", "mlpkit", "run", "tests.web.named:app"), MLP_CLIENT_WORKER="1")
    try:
        for model_id, algorithm in (("a", "word"), ("b", "word"), ("c", "other"), ("word@taken", "word")):
            trained(running, model_id, algorithm)
        below_its_gate(running, "bad")
        yield running
    finally:
        running.stop()


def post(service: Service, path: str, **fields: object) -> Any:
    return service.post(path, json.dumps(fields)).json


def trained(service: Service, model_id: str, algorithm: str = "word") -> None:
    request = {"data": {}, "parameter": {"word": f"word of {model_id}"}, "extend": {"id": model_id}, "model_path": ""}
    assert post(service, "/train", algorithm=algorithm, **request)["status"] == "success"
    query = f"/status?model_id={model_id}&algorithm={algorithm}"
    wait_until(lambda: service.get(query).json["data"]["status"] == "completed", "it is trained")


def below_its_gate(service: Service, model_id: str) -> None:
    trained(service, model_id)
    manifest = Path(service.folder.name, "home", "storage", "ml-platform-model", model_id, "mlpkit.json")
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "below_gate": "f1 is 0.5 and must be 0.8"}))


def move(service: Service, model_id: str, alias: str = "current", algorithm: str = "word") -> Any:
    return post(service, "/alias", algorithm=algorithm, alias=alias, model_id=model_id)


def predicted(service: Service, model_id: str = "word@current") -> Any:
    return post(service, "/predict", model_id=model_id, features={})


def test_an_alias_answers_with_the_model_that_it_leads_to(service: Service) -> None:
    first = move(service, "a")
    assert first["data"].items() >= {"name": "word@current", "model_id": "a", "state": "loaded"}.items()
    assert predicted(service) == {"status": "success", "data": {"predictions": "word of a"}}

    assert move(service, "b")["data"]["previous"] == "a"
    assert predicted(service)["data"]["predictions"] == "word of b"
    (shown,) = service.get("/aliases").json["data"]["aliases"]
    assert shown.items() >= {"algorithm": "word", "alias": "current", "model_id": "b", "previous": "a"}.items()
    assert {each["model_id"]: each["aliases"] for each in models(service)}["b"] == ["word@current"]

    assert post(service, "/unalias", algorithm="word", alias="current") == {"status": "success"}
    assert predicted(service)["message"] == "model [word@current] not loaded"
    assert service.get("/aliases").json["data"]["aliases"] == []
    wait_until(lambda: models(service) == [], "nothing is loaded any more")


def models(service: Service) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service.get("/models").json["data"]["models"]
    return found


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model_id": "none"}, "fail", "model [none] is not stored: there is no model ml-platform-model/none"),
        ({"model_id": "c"}, "arg_error", "model [c] is of algorithm [other], not [word]"),
        ({"model_id": "bad"}, "arg_error", "model [bad] is below its gate: f1 is 0.5 and must be 0.8"),
        ({"alias": "taken"}, "arg_error", "there is a model with the id [word@taken]: an alias needs another name"),
        ({"alias": "No Name"}, "arg_error", "[alias] must be 1 to 31 small letters"),
        ({"alias": "a" * 32}, "arg_error", "expect [alias] length less than [31], [32] in actual"),
        ({"algorithm": "none"}, "arg_error", "algorithm [none] not support"),
        ({"model_id": None}, "arg_error", "expect [model_id] not null"),
        ({"model_id": "../a"}, "arg_error", "'../a' is not a model id"),
    ],
)
def test_a_refusal_says_what_is_missing(service: Service, fields: dict[str, Any], status: str, message: str) -> None:
    answer = post(service, "/alias", **{"algorithm": "word", "alias": "current", "model_id": "a", **fields})
    assert (answer["status"], message in answer["message"]) == (status, True), answer
    assert service.get("/aliases").json["data"]["aliases"] == []


def test_a_model_that_an_alias_leads_to_is_neither_unloaded_nor_deleted(service: Service) -> None:
    move(service, "a", "kept")
    for route in ("/unload", "/delete"):
        answer = post(service, route, algorithm="word", model_id="a")
        assert answer["message"] == "the alias [word@kept] leads to model [a]: move or remove the alias first"
    assert predicted(service, "word@kept")["data"]["predictions"] == "word of a"
    post(service, "/unalias", algorithm="word", alias="kept")
    assert post(service, "/unload", algorithm="word", model_id="a")["status"] == "success"


def test_stored_models_are_listed_in_pages_with_what_is_known_of_them(service: Service) -> None:
    move(service, "a", "listed")
    wait_until(lambda: service.get("/models?stored=1").json["data"]["unread"] == 0, "all manifests are read")
    page = service.get("/models?stored=1&algorithm=word&limit=2").json["data"]
    rest = service.get(f"/models?stored=1&algorithm=word&limit=100&after={page['next']}").json["data"]
    found = {model["model_id"]: model for model in [*page["models"], *rest["models"]]}
    assert (set(found), page["total"], rest["next"]) == ({"a", "b", "bad", "word@taken"}, 4, None)
    assert found["a"].items() >= {"state": "loaded", "aliases": ["word@listed"], "size": len("word of a")}.items()
    assert found["bad"].items() >= {"state": "unloaded", "below_gate": "f1 is 0.5 and must be 0.8"}.items()
    assert service.get("/models?stored=1&after=x").json["status"] == "arg_error"
    post(service, "/unalias", algorithm="word", alias="listed")


def test_the_command_line_shows_aliases_and_stored_models(service: Service) -> None:
    def mlpkit(*arguments: str) -> str:
        command = [sys.executable, "-m", "mlpkit", *arguments, "--url", f"http://127.0.0.1:{service.port}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=True).stdout

    assert re.search(r"^word@shell +b +loaded", mlpkit("alias", "word@shell", "b"), re.MULTILINE)
    assert "word@shell" in mlpkit("alias")
    shown = mlpkit("models", "--stored", "-a", "word", "--limit", "3")
    assert "3 of 4 models" in shown
    assert re.search(r"^b +word .* 9 B +loaded +word@shell$", mlpkit("models", "--stored"), re.MULTILINE)
    assert mlpkit("alias", "word@shell", "--remove") == ""
    assert mlpkit("alias") == "no aliases\n"
