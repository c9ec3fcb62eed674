"""The service's OpenAPI description, from its routes and authors' types."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from mlpkit import formats
from mlpkit.log import logger
from mlpkit.web.protocol import PREDICT, TRAIN, Field
from mlpkit.web.request import HttpResponse, to_json

if TYPE_CHECKING:
    from mlpkit.algorithm import Algorithm
    from mlpkit.web.routes import Request, RouteSpec

Schema = dict[str, Any]
_PLACE = "#/components/schemas/"
_LITERAL = frozenset(("default", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"))
"""Keys whose values come from the author, and may be infinite."""
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
_EVENTS = "text/event-stream"
_NO_JSON = {
    "log": "text/plain",
    "stack": "text/plain",
    "metrics": "text/plain",
    "docs": "text/html",
    "events": _EVENTS,
    "job_events": _EVENTS,
}
_TRAIN_FIELDS = {"data": "data", "parameter": "parameters", "extend": "extend"}
"""The fields of a train request, and what handlers call them."""
_PREDICT_FIELDS = ("features", "params")
_TAGS = {
    "predictions": ("predict",),
    "training": ("train", "status", "jobs", "cancel", "data"),
    "models": ("load", "unload", "delete", "models", "monitor", "alias", "unalias", "aliases"),
    "service": (),
}
"""The groups of routes, by the first part of the path; all others belong to the last."""
_OPEN = ("health/live", "health/ready", "docs")
"""Routes that need no token."""
_TYPED = (*[("train", name) for name in _TRAIN_FIELDS.values()], *[("predict", name) for name in _PREDICT_FIELDS])
"""The hooks and their fields for which authors can annotate types."""


class DocumentRoutes:
    """The functions of the description.

    It is made when it is first asked for.
    """

    def __init__(
        self,
        algorithms: Mapping[str, Algorithm],
        tables: Sequence[tuple[str, Sequence[RouteSpec]]],
        *,
        has_token: bool = False,
    ) -> None:
        self._algorithms = algorithms
        self._has_token = has_token
        self._tables = tables
        self._documents: dict[str, bytes] = {}

    async def openapi(self, request: Request) -> HttpResponse:
        """This description, as OpenAPI 3.1."""
        root_path = request.context.root_path
        if root_path not in self._documents:
            document = describe(self._algorithms, self._tables, has_token=self._has_token)
            if root_path:
                document["servers"] = [{"url": root_path}]
            self._documents[root_path] = to_json(document)
        return HttpResponse(self._documents[root_path])

    async def docs(self, request: Request) -> HttpResponse:
        """A page that shows this description and sends requests."""
        page = (files("mlpkit.web") / "docs.html").read_bytes()
        return HttpResponse(page, content_type=b"text/html; charset=utf-8")


def describe(
    algorithms: Mapping[str, Algorithm],
    tables: Sequence[tuple[str, Sequence[RouteSpec]]],
    *,
    has_token: bool = False,
) -> Schema:
    """The OpenAPI document of these algorithms.

    `tables` has the routes below each path. `has_token`: requests need a bearer token.
    """
    types = AuthorTypes(algorithms)
    paths: dict[str, Schema] = {}
    for place, table in tables:
        for spec in table:
            path = place + spec.path.replace(":path}", "}")
            operation = {**_described(spec, _body_of(spec, algorithms, types)), "tags": [_tag_of(spec)]}
            if has_token and spec.path in _OPEN:
                operation["security"] = []
            paths[path] = {spec.method.lower(): operation}
    security: Schema = {}
    schemes: Schema = {}
    if has_token:
        schemes = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        security = {"security": [{"token": []}]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlpkit", "version": "1", "description": f"Algorithms: {', '.join(algorithms)}."},
        "tags": [{"name": name} for name in _TAGS],
        "paths": paths,
        **security,
        "components": {"schemas": {**types.components, "Success": _SUCCESS, "Failure": _FAILURE}, **schemes},
    }


class AuthorTypes:
    """The JSON schemas of the types that authors annotate.

    `components` has those that the others refer to. A type that has no schema is described as any object.
    """

    def __init__(self, algorithms: Mapping[str, Algorithm]) -> None:
        self._foreign: dict[str, Schema] = {}
        types: dict[tuple[str, str, str], Any] = {}
        for name, algorithm in algorithms.items():
            for hook, field in _TYPED:
                plan = algorithm.plan(hook)
                annotation = plan.field_type(field) if plan is not None else None
                if annotation not in (None, Any) and self._has_schema(annotation):
                    types[name, hook, field] = annotation
        # All in one call: types of the same name get names of their own.
        schemas, components = self._schemas_of(types.values())
        self._schemas = {key: _plain(schema) for key, schema in zip(types, schemas, strict=True)}
        self.components: dict[str, Schema] = {
            name: _plain(schema) for name, schema in {**components, **self._foreign}.items()
        }

    def of(self, algorithm: str, hook: str, field: str) -> Schema:
        """The schema of one field: any object if its type has none."""
        return self._schemas.get((algorithm, hook, field)) or {"type": "object"}

    def _has_schema(self, annotation: Any) -> bool:
        try:
            to_json(_plain(self._schemas_of([annotation])))
        except Exception:
            # If a type of the author raises, the other types must be described even so.
            logger.debug("the type {} has no JSON schema: {!r}", annotation, sys.exc_info()[1])
            return False
        return True

    def _schemas_of(self, annotations: Iterable[Any]) -> tuple[tuple[Schema, ...], dict[str, Schema]]:
        return msgspec.json.schema_components(
            annotations, schema_hook=self._schema_of_foreign, ref_template=_PLACE + "{name}"
        )

    def _schema_of_foreign(self, cls: type) -> Schema:
        """The schema of a pydantic model; its own definitions join the components."""
        model_schema = getattr(cls, "model_json_schema", None)
        if model_schema is None:
            raise NotImplementedError
        schema: Schema = model_schema(ref_template=_PLACE + "{model}")
        self._foreign.update(schema.pop("$defs", {}))
        return schema


def _plain(schema: Any) -> Any:
    """The schema without what JSON cannot hold: infinite defaults and limits."""
    if isinstance(schema, dict):
        kept = {key: value for key, value in schema.items() if key not in _LITERAL or _is_finite(value)}
        return {key: value if key in _LITERAL else _plain(value) for key, value in kept.items()}
    return [_plain(item) for item in schema] if isinstance(schema, (list, tuple)) else schema


def _is_finite(value: Any) -> bool:
    try:
        to_json(value)
    except (TypeError, ValueError):
        return False
    return True


def _described(spec: RouteSpec, body: Schema) -> Schema:
    summary = (inspect.getdoc(spec.function) or "").partition("\n")[0]
    name = getattr(spec.function, "__name__", spec.path).strip("_")
    parameters = [_parameter(field.name, "query", _schema(field), field.required) for field in spec.fields]
    asked = [_parameter(key, "query", {"type": "string"}, False, text) for key, text in spec.query.items()]
    for part in ("model_id", "key"):
        if "{" + part in spec.path:
            asked.append(_parameter(part, "path", {"type": "string", "minLength": 1}, True))
    if spec.method == "GET":
        return _operation(name, summary, parameters=parameters + asked)
    if spec.method == "PUT":
        operation = _operation(name, summary, parameters=asked)
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        return {**operation, "requestBody": {"required": True, "content": content}}
    return _operation(name, summary, parameters=asked, body=body)


def _tag_of(spec: RouteSpec) -> str:
    first = spec.path.partition("/")[0]
    return next((tag for tag, parts in _TAGS.items() if first in parts), "service")


def _body_of(spec: RouteSpec, algorithms: Mapping[str, Algorithm], types: AuthorTypes) -> Schema:
    if spec.fields is TRAIN:
        return _train_body(algorithms, types)
    return _predict_body(algorithms, types) if spec.fields is PREDICT else _object(spec.fields)


def _operation(name: str, summary: str, parameters: Sequence[Schema] = (), body: Schema | None = None) -> Schema:
    media_type = _NO_JSON.get(name, _JSON)
    answer: Schema = {"type": "string"}
    if media_type == _EVENTS:
        # The schema of a stream describes one of its events.
        names = ("id", "event", "data")
        answer = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
    elif media_type == _JSON:
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
        for field, hook_field in _TRAIN_FIELDS.items():
            body["properties"][field] = types.of(name, "train", hook_field)
        bodies.append(body)
    return bodies[0] if len(bodies) == 1 else {"oneOf": bodies}


def _predict_body(algorithms: Mapping[str, Algorithm], types: AuthorTypes) -> Schema:
    body = _object(PREDICT)
    for field in _PREDICT_FIELDS:
        found = [types.of(name, "predict", field) for name in algorithms]
        different = [schema for number, schema in enumerate(found) if schema not in found[:number]]
        body["properties"][field] = {"anyOf": [*different, {"type": "null"}]}
    examples = [example for algorithm in algorithms.values() for example in algorithm.examples]
    known = [{"model_id": "MODEL_ID", "features": example} for example in examples]
    if known:
        body["examples"] = msgspec.json.decode(formats.to_json(known))
    return body


def _object(fields: Sequence[Field]) -> Schema:
    return {
        "type": "object",
        "properties": {field.name: _schema(field) for field in fields},
        "required": [field.name for field in fields if field.required],
    }


def _schema(field: Field) -> Schema:
    kind: Any = {"text": "string", "object": "object", "flag": "boolean"}[field.kind]
    schema: Schema = {"type": kind if field.required else [kind, "null"]}
    if field.longest is not None:
        schema["maxLength"] = field.longest
    return schema


def _parameter(name: str, place: str, schema: Schema, required: bool, description: str = "") -> Schema:
    parameter: Schema = {"name": name, "in": place, "required": required, "schema": schema}
    if description:
        parameter["description"] = description
    return parameter
