"""The description of the service, made from its routes and from the authors' types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
import pydantic
import pytest

from mlpkit import App
from mlpkit.web.openapi import author_types, describe
from mlpkit.web.protocol import PREDICT, TRAIN
from mlpkit.web.routes import RouteSpec
from tests.web.conftest import TOKEN
from tests.wire.replayer import Service

app = App("typed")
other = app.algorithm("other")


class Hyper(msgspec.Struct):
    c: float = 1.0
    names: list[str] = []


class Word(msgspec.Struct):
    text: str


class Sentence(msgspec.Struct):
    words: list[Word]


class Inner(pydantic.BaseModel):
    limit: int


class Params(pydantic.BaseModel):
    inner: Inner


@app.train
def train(parameters: Hyper) -> None: ...


@app.load
@other.load
def load() -> None: ...


@app.predict
def predict(features: Sentence, params: Params | None = None) -> None: ...


@other.predict
def predict_other(features: dict[str, int]) -> None: ...


def described(schema: Any, document: Any) -> Any:
    """The schema with its references followed."""
    if isinstance(schema, dict) and "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        return described(document["components"]["schemas"][name], document)
    if isinstance(schema, dict):
        return {key: described(value, document) for key, value in schema.items()}
    return [described(each, document) for each in schema] if isinstance(schema, list) else schema


@pytest.fixture(scope="module")
def document() -> Any:
    async def handler(request: object) -> Any: ...

    table = [
        RouteSpec("POST", "train", handler, TRAIN),
        RouteSpec("POST", "predict", handler, PREDICT),
        RouteSpec("GET", "jobs/{model_id:path}", handler),
    ]
    return json.loads(json.dumps(describe(app.build(), [("/p/", table)])))


def body_of(document: Any, path: str) -> Any:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return described(content["application/json"]["schema"], document)


def test_train_tells_the_parameters_of_each_algorithm(document: Any) -> None:
    bodies = {each["properties"]["algorithm"]["const"]: each for each in body_of(document, "/p/train")["oneOf"]}
    assert bodies["typed"]["properties"]["parameter"]["properties"]["c"] == {"type": "number", "default": 1.0}
    assert bodies["other"]["properties"]["parameter"] == {"type": "object"}
    assert {"algorithm", "model_path", "data", "parameter", "extend"} == set(bodies["typed"]["required"])


def test_predict_tells_the_features_and_params_of_all_algorithms(document: Any) -> None:
    properties = body_of(document, "/p/predict")["properties"]
    sentence, numbers, nothing = properties["features"]["anyOf"]
    assert sentence["properties"]["words"]["items"]["properties"]["text"] == {"type": "string"}
    assert numbers["additionalProperties"] == {"type": "integer"}
    assert nothing == {"type": "null"}
    pydantic_model = properties["params"]["anyOf"][0]["anyOf"][0]
    assert pydantic_model["properties"]["inner"]["properties"]["limit"]["type"] == "integer"


def test_a_path_parameter_is_told(document: Any) -> None:
    (parameter,) = document["paths"]["/p/jobs/{model_id}"]["get"]["parameters"]
    assert (parameter["name"], parameter["in"], parameter["required"]) == ("model_id", "path", True)


def test_a_running_service_describes_all_its_routes(plain: Service) -> None:
    document = plain.get("/openapi.json").json
    assert document["openapi"] == "3.1.0"
    assert described(document["paths"], document)
    below_prefix = {"train", "predict", "load", "unload", "delete", "status", "monitor", "cancel", "models", "events"}
    jobs = {
        "jobs",
        "jobs/{model_id}",
        "jobs/{model_id}/log",
        "jobs/{model_id}/stack",
        "jobs/{model_id}/evaluation",
        "jobs/{model_id}/events",
        "workers",
    }
    root = {"node_info", "health/live", "health/ready", "metrics", "openapi.json", "docs"}
    root |= {"summary", "algorithms", "charts"}
    root |= {"alias", "unalias", "aliases", "data/{key}"}
    wanted = below_prefix | jobs | root
    assert {f"/{path}" for path in wanted} == set(document["paths"])
    assert all(each["summary"] for methods in document["paths"].values() for each in methods.values())


def test_the_page_loads_nothing_from_elsewhere(plain: Service) -> None:
    page = plain.get("/docs")
    assert page.content_type == "text/html"
    assert "/openapi.json" in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_type_without_a_schema_and_infinite_default_leave_the_rest_of_the_document() -> None:
    class Strange:
        """JSON has nothing for it."""

    class Endless(msgspec.Struct):
        limit: float = float("inf")
        bounds: tuple[float, float] = (0.0, float("inf"))
        c: float = 1.0

    types = {("a", "train", "parameters"): Strange, ("b", "train", "parameters"): Endless}

    class Plan:
        def __init__(self, name: str, hook: str) -> None:
            self.key = (name, hook)

        def field_type(self, field: str) -> Any:
            return types.get((*self.key, field))

    class Algorithm:
        def __init__(self, name: str) -> None:
            self.name = name

        def plan(self, hook: str) -> Any:
            return Plan(self.name, hook)

    algorithms: Any = {name: Algorithm(name) for name in ("a", "b")}
    described_types = author_types(algorithms)
    assert described_types.of("a", "train", "parameters") == {"type": "object"}
    document = {"components": {"schemas": described_types.components}}
    properties = described(described_types.of("b", "train", "parameters"), document)["properties"]
    assert properties["c"] == {"type": "number", "default": 1.0}
    assert properties["limit"] == {"type": "number"}
    assert "default" not in properties["bounds"]
    json.dumps(document, allow_nan=False)


def test_routes_are_in_groups_and_say_that_they_need_the_token(plain: Service, strict: Service) -> None:
    open_to_all = plain.get("/openapi.json").json
    assert "security" not in open_to_all
    named = {tag["name"] for tag in open_to_all["tags"]}
    used = [each["tags"] for methods in open_to_all["paths"].values() for each in methods.values()]
    assert {tag for tags in used for tag in tags} == named
    closed = strict.get("/openapi.json", Authorization=f"Bearer {TOKEN}").json
    assert closed["security"] == [{"token": []}]
    assert closed["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
    assert closed["paths"]["/health/ready"]["get"]["security"] == []


def test_examples_of_the_algorithm_are_examples_of_the_request() -> None:
    async def handler(request: object) -> Any: ...

    shown = App("shown", examples=[{"text": "a word"}])
    shown.load(load)
    shown.predict(predict_other)
    document = describe(shown.build(), [("/", [RouteSpec("POST", "predict", handler, PREDICT)])])
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["examples"] == [{"model_id": "MODEL_ID", "features": {"text": "a word"}}]


class Verdict(msgspec.Struct):
    share: Decimal
    at: datetime
    near: tuple[int, int]


class Both(msgspec.Struct):
    share: Decimal


judged, parted, twice = App("judged"), App("parted"), App("twice")
kept = App("kept", kind="text_classification")
for each in (judged, parted, twice, kept):
    each.load(load)


@judged.predict(max_batch_size=4)
def predict_batch(features: list[dict[str, Any]]) -> list[Verdict]:
    return []


@parted.predict
def predict_parts(features: dict[str, Any]) -> Iterator[Word]:
    yield Word("a")


@twice.predict
def predict_same_type(features: Both) -> Both:
    return features


@kept.predict
def predict_unannotated(features):  # type: ignore[no-untyped-def]
    ...


def predictions_of(shown: App) -> tuple[Any, Any]:
    """The schema of the predictions that an app answers, and the whole document."""

    async def handler(request: object) -> Any: ...

    document = describe(shown.build(), [("/", [RouteSpec("POST", "predict", handler, PREDICT)])])
    answered = document["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    envelope, failure = described(answered, document)["anyOf"]
    assert failure["required"] == ["message"]
    return envelope["properties"]["data"]["properties"]["predictions"], document


def test_predict_tells_the_answer_of_the_author_as_mlpkit_writes_it() -> None:
    answer, _ = predictions_of(judged)
    two_numbers = [{"type": "integer"}, {"type": "integer"}]
    assert answer["properties"] == {
        "share": {"type": "number"},
        "at": {"type": "string"},
        "near": {"type": "array", "minItems": 2, "maxItems": 2, "prefixItems": two_numbers},
    }


def test_an_answer_in_parts_is_told_as_the_list_of_its_parts() -> None:
    answer, _ = predictions_of(parted)
    assert (answer["type"], answer["items"]["properties"]) == ("array", {"text": {"type": "string"}})


def test_without_an_annotation_the_answer_of_the_kind_is_told() -> None:
    answer, _ = predictions_of(kept)
    assert answer["items"]["properties"]["score"]["maximum"] == 100


def test_a_type_that_is_asked_and_answered_differently_has_two_schemas() -> None:
    answer, document = predictions_of(twice)
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    asked = described(body, document)["properties"]["features"]["anyOf"][0]
    assert asked["properties"]["share"] == {"type": "string", "format": "decimal"}
    assert answer["properties"]["share"] == {"type": "number"}


def test_every_answer_has_a_type(plain: Service) -> None:
    document = plain.get("/openapi.json").json
    untyped = set()
    for methods in document["paths"].values():
        for operation in methods.values():
            answer = operation["responses"]["200"]["content"].get("application/json", {}).get("schema")
            if "anyOf" in (answer or {}):
                envelope = described(answer["anyOf"][0], document)
                if not envelope["properties"].get("data"):
                    untyped.add(operation["operationId"])
    assert untyped == {"load", "unload", "delete", "unalias"}


def test_no_field_of_a_model_or_worker_is_left_out(plain: Service) -> None:
    document = plain.get("/openapi.json").json
    plain.post("/load", '{"algorithm": "echo", "model_id": "told"}')
    for route in ("models", "workers"):
        answer = document["paths"][f"/{route}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        data = described(answer["anyOf"][0], document)["properties"]["data"]
        # /models has another shape with `stored=1`.
        shapes = [described(shape, document)["properties"] for shape in data.get("anyOf", [data])]
        shape = next(shape for shape in shapes if "unread" not in shape)
        told = described(shape[route]["items"], document)["properties"]
        for found in plain.get(f"/{route}").json["data"][route]:
            assert found.keys() - told.keys() == set(), route
