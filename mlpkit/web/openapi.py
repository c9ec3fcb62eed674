"""The service's OpenAPI description, from its routes and authors' types."""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterable, Hashable, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, get_args, get_origin

import msgspec

from mlpkit import formats
from mlpkit.formats import kind_of
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
_WRITTEN_AS: Mapping[object, Schema] = {"decimal": {"type": "number"}, "date-time": {"type": "string"}}
"""What `formats.to_json` writes otherwise: a Decimal is a number, and a time has a space and maybe no zone."""
_FAILURE: Schema = {
    "type": "object",
    "description": "`arg_error`: the caller's mistake, nothing was changed; `fail`: anything else.",
    "properties": {
        "status": {"enum": ["arg_error", "fail"], "type": "string"},
        "message": {"type": "string"},
        "trace": {"type": "string"},
    },
    "required": ["message"],
}
_SUCCESS: Schema = {"status": {"const": "success", "type": "string"}}
_JSON = "application/json"
_EVENTS = "text/event-stream"
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
_TYPED = (*[("train", name) for name in _TRAIN_FIELDS.values()], *[("predict", name) for name in _PREDICT_FIELDS])
"""The hooks and their fields for which authors can annotate types."""
_EXAMPLES: Mapping[str, object] = {
    "model_id": "MODEL_ID",
    "model_path": "",
    "alias": "current",
    "data": {},
    "parameter": {},
    "extend": {},
}
"""Values of required fields that a request can have as they are, or that show what to put there."""


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
    requests = author_types(algorithms)
    answers = TypeSchemas(_answer_types(algorithms, tables), of_answers=True)
    answers.rename(_other_names(requests.components, answers.components))
    components = {**requests.components, **answers.components}
    envelopes = _Envelopes(components)
    paths: dict[str, Schema] = {}
    for place, table in tables:
        for spec in table:
            path = place + spec.path.replace(":path}", "}")
            data = answers.any_of([(spec.path, kind) for kind in spec.answers])
            if spec.fields is PREDICT:
                predictions = answers.any_of([("predict", name) for name in algorithms]) or {}
                data = {"type": "object", "properties": {"predictions": predictions}, "required": ["predictions"]}
            operation = {
                **_described(spec, _body_of(spec, algorithms, requests), envelopes, data),
                "tags": [_tag_of(spec)],
            }
            if has_token and not spec.needs_token:
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
        "components": {"schemas": components, **schemes},
    }


class TypeSchemas:
    """The JSON schemas of types, by any keys.

    `components` has those that the others refer to. A type that has no schema is left out.

    Args:
        of_answers: the types become JSON (`formats.to_json`); otherwise they are made from it.
    """

    def __init__(self, types: Mapping[Hashable, Any], *, of_answers: bool = False) -> None:
        self._of_answers = of_answers
        self._foreign: dict[str, Schema] = {}
        known = {key: kind for key, kind in types.items() if kind not in (None, Any) and self._has_schema(kind)}
        # All in one call: types of the same name get names of their own.
        schemas, components = self._schemas_of(known.values())
        self._schemas = {key: self._plain(schema) for key, schema in zip(known, schemas, strict=True)}
        self.components: dict[str, Schema] = {
            name: self._plain(schema) for name, schema in {**components, **self._foreign}.items()
        }

    def of(self, *key: str) -> Schema:
        """The schema of this type: any object if it has none."""
        return self._schemas.get(key) or {"type": "object"}

    def any_of(self, keys: Sequence[Hashable]) -> Schema | None:
        """What fits one of these types; None if there are none."""
        found = [self._schemas.get(key, {}) for key in keys]
        different = [schema for number, schema in enumerate(found) if schema not in found[:number]]
        if len(different) < 2:
            return different[0] if different else None
        # Everything fits a type that has no schema: generated clients must try the others first.
        return {"anyOf": sorted(different, key=lambda schema: schema == {})}

    def rename(self, names: Mapping[str, str]) -> None:
        """Gives these components other names."""
        self.components = {names.get(name, name): _renamed(schema, names) for name, schema in self.components.items()}
        self._schemas = {key: _renamed(schema, names) for key, schema in self._schemas.items()}

    def _has_schema(self, annotation: Any) -> bool:
        try:
            to_json(self._plain(self._schemas_of([annotation])))
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
        mode = "serialization" if self._of_answers else "validation"
        schema: Schema = model_schema(ref_template=_PLACE + "{model}", mode=mode)
        self._foreign.update(schema.pop("$defs", {}))
        return schema

    def _plain(self, schema: Any) -> Any:
        """The schema as JSON can hold it and as programs expect it.

        Infinite defaults and limits go. A list says of what it is, and does not say twice that it has no more items.
        """
        if isinstance(schema, (list, tuple)):
            return [self._plain(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        if self._of_answers and schema.get("type") == "string" and schema.get("format") in _WRITTEN_AS:
            return _WRITTEN_AS[schema["format"]]
        kept = {key: value for key, value in schema.items() if key not in _LITERAL or _is_finite(value)}
        if kept.get("type") == "array":
            if kept.get("items") is False:
                del kept["items"]
            if "prefixItems" not in kept:
                kept.setdefault("items", {})
        return {key: value if key in _LITERAL else self._plain(value) for key, value in kept.items()}


def author_types(algorithms: Mapping[str, Algorithm]) -> TypeSchemas:
    """What authors want in requests, by algorithm, hook and field."""
    types: dict[Hashable, Any] = {}
    for name, algorithm in algorithms.items():
        for hook, field in _TYPED:
            plan = algorithm.plan(hook)
            types[name, hook, field] = plan.field_type(field) if plan is not None else None
    return TypeSchemas(types)


class _Envelopes:
    """The answers of routes, which have their data in an envelope.

    They are added to `components`, with names that the author's types do not have.
    """

    def __init__(self, components: dict[str, Schema]) -> None:
        self._components = components
        self.failure = self._add("Failure", _FAILURE)
        self._success: Schema | None = None

    def of(self, operation: str, data: Schema | None) -> Schema:
        """A success with this data, or without any."""
        if data is not None:
            envelope = {"type": "object", "properties": {**_SUCCESS, "data": data}, "required": ["status", "data"]}
            return self._add(f"{operation.title().replace('_', '')}Answer", envelope)
        if self._success is None:
            self._success = self._add("Success", {"type": "object", "properties": _SUCCESS, "required": ["status"]})
        return self._success

    def _add(self, name: str, schema: Schema) -> Schema:
        while name in self._components:
            name += "_"
        self._components[name] = schema
        return {"$ref": _PLACE + name}


def _answer_types(
    algorithms: Mapping[str, Algorithm], tables: Sequence[tuple[str, Sequence[RouteSpec]]]
) -> dict[Hashable, Any]:
    """The types of all answers; those of `predict` by the algorithm's name."""
    types: dict[Hashable, Any] = {("predict", name): _answer_of(algorithm) for name, algorithm in algorithms.items()}
    for _, table in tables:
        for spec in table:
            types.update({(spec.path, kind): kind for kind in spec.answers})
    return types


def _answer_of(algorithm: Algorithm) -> Any:
    """The type of an answer of `predict`: the author's, or the kind's."""
    plan = algorithm.plan("predict")
    kind = kind_of(algorithm.kind)
    found: Any = plan.returns if plan is not None else Any
    if plan is not None and plan.is_generator:
        part = _item_of(found)
        found = list[part] if kind.joined is list and part is not Any else Any  # type: ignore[valid-type]
    elif plan is not None and plan.batch:
        found = _item_of(found)
    return kind.answer if found is Any else found


def _item_of(annotation: Any) -> Any:
    """The type of the items of a list or iterator, or Any."""
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    is_many = isinstance(origin, type) and issubclass(origin, (Iterable, AsyncIterable))
    return arguments[0] if is_many and arguments and not issubclass(origin, (Mapping, tuple)) else Any


def _other_names(requests: Mapping[str, Schema], answers: Mapping[str, Schema]) -> dict[str, str]:
    """New names for the schemas of answers that have those of requests.

    None, if they are the same schemas.
    """
    shared = answers.keys() & requests.keys()
    same = all(answers[name] == requests[name] for name in shared)
    return {} if same else {name: f"{name}Answered" for name in shared}


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    """The schema, which refers to components by their new names."""
    if isinstance(schema, list):
        return [_renamed(item, names) for item in schema]
    if not isinstance(schema, dict):
        return schema
    place = schema.get("$ref")
    if isinstance(place, str):
        name = place.removeprefix(_PLACE)
        return {**schema, "$ref": _PLACE + names.get(name, name)}
    return {key: _renamed(value, names) for key, value in schema.items()}


def _is_finite(value: Any) -> bool:
    try:
        to_json(value)
    except (TypeError, ValueError):
        return False
    return True


def _name_of(spec: RouteSpec) -> str:
    return getattr(spec.function, "__name__", spec.path).strip("_")


def _described(spec: RouteSpec, body: Schema, envelopes: _Envelopes, data: Schema | None) -> Schema:
    """One operation."""
    text = inspect.getdoc(spec.function) or ""
    summary, _, rest = text.partition("\n")
    operation: Schema = {
        "operationId": _name_of(spec),
        "summary": summary,
        "responses": _responses(_name_of(spec), spec.media_type, envelopes, data),
    }
    if rest.strip():
        operation["description"] = " ".join(rest.split())
    parameters = [_parameter(key, "query", {"type": "string"}, False, about) for key, about in spec.query.items()]
    for part in ("model_id", "key"):
        if "{" + part in spec.path:
            parameters.append(_parameter(part, "path", {"type": "string", "minLength": 1}, True))
    if spec.method == "GET":
        named = [_parameter(field.name, "query", _schema(field), field.required) for field in spec.fields]
        parameters = named + parameters
    elif spec.method == "PUT":
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "content": content}
    else:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": body}}}
    if parameters:
        operation["parameters"] = parameters
    return operation


def _responses(name: str, media_type: str, envelopes: _Envelopes, data: Schema | None) -> Schema:
    """What an operation answers."""
    failed: Schema = {"schema": envelopes.failure}
    answer: Schema = {"type": "string"}
    # The schema of a stream describes one of its events.
    event: Schema = {"type": "object", "properties": {part: {"type": "string"} for part in ("id", "event", "data")}}
    if media_type == _EVENTS:
        answer = event
    elif name == "openapi":
        answer = {"type": "object"}
    elif media_type == _JSON:
        # Failures are HTTP 200 too, unless MLPKIT_HTTP_ERRORS=http.
        answer = {"anyOf": [envelopes.of(name, data), envelopes.failure]}
    content: Schema = {media_type: {"schema": answer}}
    if media_type != _JSON:
        content[_JSON] = failed
    if name == "predict":
        # If the caller accepts that: the parts of the answer as they come.
        content[_EVENTS] = {"schema": event}
    return {
        "200": {"description": "Answered.", "content": content},
        "default": {"description": "Refused.", "content": {_JSON: failed}},
    }


def _tag_of(spec: RouteSpec) -> str:
    first = spec.path.partition("/")[0]
    return next((tag for tag, parts in _TAGS.items() if first in parts), "service")


def _body_of(spec: RouteSpec, algorithms: Mapping[str, Algorithm], types: TypeSchemas) -> Schema:
    if spec.fields is TRAIN:
        return _train_body(algorithms, types)
    if spec.fields is PREDICT:
        return _predict_body(algorithms, types)
    return _with_example(_object(spec.fields), next(iter(algorithms), ""))


def _train_body(algorithms: Mapping[str, Algorithm], types: TypeSchemas) -> Schema:
    bodies = []
    for name in algorithms:
        body = _object(TRAIN)
        body["title"] = f"train {name}"
        body["properties"]["algorithm"] = {"const": name}
        for field, hook_field in _TRAIN_FIELDS.items():
            body["properties"][field] = types.of(name, "train", hook_field)
        bodies.append(_with_example(body, name))
    return bodies[0] if len(bodies) == 1 else {"oneOf": bodies}


def _predict_body(algorithms: Mapping[str, Algorithm], types: TypeSchemas) -> Schema:
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


def _with_example(body: Schema, algorithm: str) -> Schema:
    """The body with an example of its required fields."""
    values = {**_EXAMPLES, "algorithm": algorithm}
    return {**body, "examples": [{name: values[name] for name in body["required"]}]}


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
