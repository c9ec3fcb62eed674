"""The service's description of itself, made from the table of routes and the authors' types."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from mlpkit.web.answers import Answer, to_json
from mlpkit.web.endpoint import Entry, Request
from mlpkit.web.protocol import PREDICT, TRAIN, Field
from mlpkit.web.schemas import AuthorTypes, Schema

if TYPE_CHECKING:
    from mlpkit.algorithm import Algorithm
    from mlpkit.web.parts import Parts

_FAILURE: Schema = {
    "type": "object",
    "description": "`arg_error`: the caller's mistake, nothing was changed; `fail`: anything else.",
    "properties": {
        "status": {"enum": ["arg_error", "fail"]},
        "message": {"type": "string"},
        "trace": {"type": "string"},
    },
    "required": ["message"],
}
_SUCCESS: Schema = {
    "type": "object",
    "properties": {"status": {"const": "success"}, "data": {}},
    "required": ["status"],
}
_JSON = "application/json"
_NO_JSON = {"log": "text/plain", "metrics": "text/plain", "docs": "text/html"}
_HOOK_FIELDS = {"data": "data", "parameter": "parameters", "extend": "extend"}


class DocumentRoutes:
    """The handlers of the description, which is made when it is first asked for."""

    def __init__(self, parts: Parts, tables: Sequence[tuple[str, Sequence[Entry]]]) -> None:
        self._algorithms, self._prefix = parts.algorithms, parts.settings.api_prefix
        self.entries = [Entry("GET", "openapi.json", self.openapi), Entry("GET", "docs", self.docs)]
        self._tables = [*tables, ("/", self.entries)]
        self._documents: dict[str, bytes] = {}

    async def openapi(self, request: Request) -> Answer:
        """This description, as OpenAPI 3.1."""
        root_path = request.root_path
        if root_path not in self._documents:
            document = describe(self._algorithms, self._prefix, self._tables)
            if root_path:
                document["servers"] = [{"url": root_path}]
            self._documents[root_path] = to_json(document)
        return Answer(self._documents[root_path])

    async def docs(self, request: Request) -> Answer:
        """A page that shows this description and sends requests; it loads nothing from elsewhere."""
        page = (files("mlpkit.web") / "docs.html").read_bytes()
        return Answer(page, content_type=b"text/html; charset=utf-8")


def describe(algorithms: Mapping[str, Algorithm], prefix: str, tables: Sequence[tuple[str, Sequence[Entry]]]) -> Schema:
    """The OpenAPI document of a service with these algorithms; `tables` holds the routes below each path."""
    types = AuthorTypes(algorithms)
    predict = _operation("predict", "Asks a loaded model for its predictions.", body=_predict_body(algorithms, types))
    paths: dict[str, Schema] = {f"{prefix}predict": {"post": predict}}
    for place, table in tables:
        for entry in table:
            path = place + entry.path.replace(":path}", "}")
            body = _train_body(algorithms, types) if entry.fields is TRAIN else _object(entry.fields)
            paths[path] = {entry.method.lower(): _described(entry, body)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlpkit", "version": "1", "description": f"Algorithms: {', '.join(algorithms)}."},
        "paths": paths,
        "components": {"schemas": {**types.components, "Success": _SUCCESS, "Failure": _FAILURE}},
    }


def _described(entry: Entry, body: Schema) -> Schema:
    summary = (inspect.getdoc(entry.handler) or "").partition("\n")[0]
    name = entry.handler.__name__.strip("_")
    parameters = [_parameter(field.name, "query", _schema(field), field.required) for field in entry.fields]
    asked = [_parameter(each, "query", {"type": "string"}, False, text) for each, text in entry.query.items()]
    if "{model_id" in entry.path:
        asked.append(_parameter("model_id", "path", {"type": "string", "minLength": 1}, True))
    if entry.method == "GET":
        return _operation(name, summary, parameters=parameters + asked)
    return _operation(name, summary, parameters=asked, body=body)


def _operation(name: str, summary: str, parameters: Sequence[Schema] = (), body: Schema | None = None) -> Schema:
    media_type = _NO_JSON.get(name, _JSON)
    answer: Schema = {"type": "string"}
    if media_type == _JSON:
        answer = {"anyOf": [{"$ref": "#/components/schemas/Success"}, {"$ref": "#/components/schemas/Failure"}]}
    failed: Schema = {"schema": {"$ref": "#/components/schemas/Failure"}}
    failure = {"description": "Refused.", "content": {_JSON: failed}}
    content = {media_type: {"schema": answer}}
    if media_type != _JSON:
        content[_JSON] = failed
    operation: Schema = {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "Answered.", "content": content}, "default": failure},
    }
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": body}}}
    return operation


def _train_body(algorithms: Mapping[str, Algorithm], types: AuthorTypes) -> Schema:
    bodies = []
    for name in algorithms:
        body = _object(TRAIN)
        body["title"] = f"train {name}"
        body["properties"]["algorithm"] = {"const": name}
        for field, hook_field in _HOOK_FIELDS.items():
            body["properties"][field] = types.of(name, "train", hook_field)
        bodies.append(body)
    return bodies[0] if len(bodies) == 1 else {"oneOf": bodies}


def _predict_body(algorithms: Mapping[str, Algorithm], types: AuthorTypes) -> Schema:
    body = _object(PREDICT)
    for field in ("features", "params"):
        found = [types.of(name, "predict", field) for name in algorithms]
        different = [each for number, each in enumerate(found) if each not in found[:number]]
        body["properties"][field] = {"anyOf": [*different, {"type": "null"}]}
    return body


def _object(fields: Sequence[Field]) -> Schema:
    return {
        "type": "object",
        "properties": {field.name: _schema(field) for field in fields},
        "required": [field.name for field in fields if field.required],
    }


def _schema(field: Field) -> Schema:
    kind: Any = "string" if field.kind == "text" else "object"
    schema: Schema = {"type": kind if field.required else [kind, "null"]}
    if field.longest is not None:
        schema["maxLength"] = field.longest
    return schema


def _parameter(name: str, place: str, schema: Schema, required: bool, description: str = "") -> Schema:
    parameter: Schema = {"name": name, "in": place, "required": required, "schema": schema}
    if description:
        parameter["description"] = description
    return parameter
