"""How the fields of a request are found and checked.

Source: `tests/wire/PROTOCOL.md`, sections 1.2 to 1.4; its section 8 says where mlpkit answers better than the original.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl

import msgspec

from mlpkit.errors import ArgumentError, MalformedBody
from mlpkit.injection import NULL
from mlpkit.training import LONGEST_ID

if TYPE_CHECKING:
    from python_multipart.multipart import Field as FormField

    from mlpkit.web.request import RequestContext

_Value = str | msgspec.Raw
"""A field as it arrived: text from a query or a form, or JSON."""

_MOST_FORM_FIELDS = 1000
_SEARCHED = 1 << 20
"""Bytes of a body that are searched for the reason why it is not JSON."""
_LONE_SURROGATE = re.compile(
    rb"(?<!\\)(?:\\\\)*(?:\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
_json_text = msgspec.json.Decoder(str)
_ABSENT = msgspec.Raw(b"")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_LONG_FEATURES = 1 << 16
_MOST_STRINGS = 400_000
"""With more strings in long `features` nobody looks for null in them: it would hold up all other requests."""
_MOST_NAMED = 100_000
"""With more values in long `features` the error does not name the key."""


@dataclass(frozen=True)
class Field:
    """One field of a request.

    `longest` counts characters; `nulls` is whether null may stand inside an object.
    """

    name: str
    kind: Literal["text", "object", "flag"]
    longest: int | None = None
    required: bool = True
    nulls: bool = True


UUID = Field("uuid", "text", required=False)
MODEL_ID = Field("model_id", "text", LONGEST_ID)
TRAIN = (
    Field("algorithm", "text", 32),
    Field("model_path", "text", 1024),
    Field("data", "object"),
    Field("parameter", "object"),
    Field("extend", "object"),
    UUID,
)
STATUS = (MODEL_ID, Field("algorithm", "text", 64), UUID)
PREDICT = (
    Field("features", "object", required=False, nulls=False),
    MODEL_ID,
    Field("params", "object", required=False),
    UUID,
)
LOAD = (
    MODEL_ID,
    Field("model_path", "text", 1024, required=False),
    Field("algorithm", "text", 64),
    Field("extend", "object", required=False),
    UUID,
)
UNLOAD = STATUS
DELETE = STATUS
CANCEL = (MODEL_ID, Field("soft", "flag", required=False), UUID)
UNALIAS = (Field("algorithm", "text", 32), Field("alias", "text", 31), UUID)
ALIAS = (Field("algorithm", "text", 32), Field("alias", "text", 31), MODEL_ID, UUID)


class Arguments:
    """The fields of one request, checked."""

    def __init__(
        self,
        texts: Mapping[str, str | None],
        objects: Mapping[str, msgspec.Raw],
        flags: Mapping[str, bool] | None = None,
    ) -> None:
        self._texts = texts
        self._objects = objects
        self._flags = flags or {}

    def text(self, name: str) -> str:
        """A required text field."""
        value = self._texts[name]
        assert value is not None
        return value

    def optional(self, name: str) -> str | None:
        """A text field that may be missing."""
        return self._texts[name]

    def subject(self) -> dict[str, str]:
        """What the request is about, for the log."""
        named = ((name, self._texts.get(name)) for name in ("algorithm", "model_id"))
        return {name: value for name, value in named if value is not None}

    def object(self, name: str) -> msgspec.Raw:
        """An object field as JSON; `null` if it is missing."""
        return self._objects.get(name, NULL)

    def flag(self, name: str) -> bool:
        """A flag; False if it is missing."""
        return self._flags.get(name, False)


def check(fields: Iterable[Field], values: Mapping[str, _Value]) -> Arguments:
    """The checked arguments among `values`.

    First the types of all fields are checked, then null and length, each in the order of `fields`.

    Raises:
        ArgumentError: the first mistake, in the protocol's words.
    """
    texts: dict[str, str | None] = {}
    objects: dict[str, msgspec.Raw] = {}
    flags: dict[str, bool] = {}
    for field in fields:
        value = values.get(field.name)
        if field.kind == "text":
            texts[field.name] = _text(field.name, value)
        elif field.kind == "flag":
            flags[field.name] = not _is_null(value) and _flag(field.name, value)
        elif not _is_null(value):
            objects[field.name] = _object(field.name, value)
    for field in fields:
        _check_content(field, texts.get(field.name), objects.get(field.name))
    return Arguments(texts, objects, flags)


def caller_uuid(values: Mapping[str, _Value]) -> str | None:
    """The uuid in the request's fields, or None if there is none."""
    try:
        return _text("uuid", values.get("uuid"))
    except ArgumentError:
        return None


def check_no_null(name: str, value: bytes | msgspec.Raw) -> None:
    """Checks that the JSON `value` contains no null, at any depth.

    Raises:
        ArgumentError: it contains one; the message names the nearest key.
    """
    content = bytes(value)
    if b"null" not in content:
        return
    if len(content) > _LONG_FEATURES:
        if content.count(b'"') > 2 * _MOST_STRINGS or b"null" not in _STRING.sub(b"", content):
            return
        if content.count(b",") > _MOST_NAMED:
            raise ArgumentError(f"unexpect type in [{name}]: a value in it is null")
    try:
        waiting = [("", msgspec.json.decode(content))]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArgumentError(f"[{name}] cannot be read: {error}") from None
    while waiting:
        key, item = waiting.pop()
        if item is None:
            raise ArgumentError(f"unexpect type for key [{key}] in [{name}]")
        if isinstance(item, dict):
            waiting += reversed(item.items())
        elif isinstance(item, list):
            waiting += [(key, element) for element in reversed(item)]


def read_values(context: RequestContext, body: bytes, fields: tuple[Field, ...]) -> dict[str, _Value]:
    """The fields of a request.

    If it is a form or a query, there may be others.

    Those of a JSON body win over those of the query, and these over those of a form.

    Raises:
        ArgumentError: the body is a JSON object, but its type does not say so, and no field was sent otherwise.
        MalformedBody: the body is not a JSON object, or not a form, although its type says so.
    """
    media_type = context.content_type.partition(";")[0].strip().lower()
    values: dict[str, _Value] = {}
    if context.method == "POST" and media_type == "application/x-www-form-urlencoded":
        values.update(_first_of_each(_parsed(body)))
    elif context.method == "POST" and media_type == "multipart/form-data":
        values.update(_multipart_values(context.content_type, body))
    values.update(query_values(context.query_string))
    if is_json(context.content_type):
        values.update(json_values(body, fields))
    elif not context.query_string and body[:64].lstrip().startswith(b"{"):
        sent = f"is sent as {media_type}" if media_type else "is sent without a type"
        raise ArgumentError(f"the body looks like JSON but {sent}: add the header Content-Type: application/json")
    return values


def query_values(query: bytes) -> dict[str, str]:
    """The fields of a query string; of repeated ones the first."""
    return _first_of_each(_parsed(query)) if query else {}


@lru_cache(maxsize=64)
def is_json(content_type: str) -> bool:
    """Whether this Content-Type means JSON.

    It is `application/json` or `.../...+json`, with any parameters.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.endswith("+json") and "/" in media_type)


def json_values(body: bytes, fields: tuple[Field, ...]) -> dict[str, _Value]:
    """These fields of a JSON body, each still JSON.

    An empty body and `null` have none.

    Raises:
        MalformedBody: it is not a JSON object.
    """
    text = _as_utf8(body)
    if not text.strip() or text.strip() == b"null":
        return {}
    try:
        found = _decoder_of(fields)(text)
        return {field.name: value for field, value in zip(fields, found, strict=True) if value is not _ABSENT}
    except msgspec.ValidationError:
        raise MalformedBody("the body must be a JSON object") from None
    except msgspec.DecodeError as error:
        raise MalformedBody(f"the body is not valid JSON: {_why_not_json(text, error)}") from None
    except RecursionError:
        raise MalformedBody("the body is nested too deep") from None


@lru_cache(maxsize=64)
def _decoder_of(fields: tuple[Field, ...]) -> Callable[[bytes], tuple[msgspec.Raw, ...]]:
    """Reads the values of these fields.

    Others, which may be millions, are passed over.
    """
    names = [field.name for field in fields]
    wanted = msgspec.defstruct("Fields", [(name, msgspec.Raw, _ABSENT) for name in names])
    decode = msgspec.json.Decoder(wanted).decode
    return lambda body: msgspec.structs.astuple(decode(body))


def _why_not_json(body: bytes, error: msgspec.DecodeError) -> str:
    lone = _LONE_SURROGATE.search(body, 0, _SEARCHED)
    if lone is None:
        return str(error)
    return f"{lone[0].decode()[-6:]} (byte {lone.end() - 6}) is half of a surrogate pair: was the text cut there?"


def _as_utf8(body: bytes) -> bytes:
    encoding = json.detect_encoding(body)
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not valid {encoding.upper()}: {error.reason}") from None
    return body if encoding == "utf-8" else text.encode("utf-8", "surrogatepass")


def _multipart_values(content_type: str, body: bytes) -> dict[str, str]:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import FormParser, parse_options_header

    pairs: list[tuple[str, str]] = []

    def keep(field: FormField) -> None:
        if len(pairs) >= _MOST_FORM_FIELDS:
            raise _too_many_fields()
        pairs.append(((field.field_name or b"").decode(), (field.value or b"").decode()))

    # Files are not fields: they are dropped, and must not be written to a disk before that.
    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    try:
        parser = FormParser("multipart/form-data", keep, lambda file: None, boundary=boundary, config=in_memory)
        parser.write(body)
        parser.finalize()
    except (FormParserError, UnicodeDecodeError) as error:
        raise MalformedBody(f"the form cannot be read: {error}") from None
    return _first_of_each(pairs)


def _parsed(encoded: bytes) -> list[tuple[str, str]]:
    try:
        text = encoded.decode("utf-8", "replace")
        return parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FORM_FIELDS)
    except ValueError:
        raise _too_many_fields() from None


def _too_many_fields() -> MalformedBody:
    return MalformedBody(f"more than {_MOST_FORM_FIELDS} fields in a form or query")


def _first_of_each(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in pairs:
        values.setdefault(name, value)
    return values


def _first_byte(value: msgspec.Raw) -> str:
    return chr(memoryview(value)[0])


def _is_null(value: _Value | None) -> bool:
    """Missing, null and the empty list are the same."""
    if value is None or isinstance(value, str):
        return value is None
    first = _first_byte(value)
    return first == "n" or (first == "[" and not bytes(value)[1:-1].strip())


def _text(name: str, value: _Value | None) -> str | None:
    if value is None or isinstance(value, str):
        return value
    first = _first_byte(value)
    if first == '"':
        return _json_text.decode(value)
    if first in "-0123456789":
        return bytes(value).decode()
    if _is_null(value):
        return None
    raise _wrong_type(name, str)


def _flag(name: str, value: _Value | None) -> bool:
    # As text too: platforms and their users do that.
    text = value if isinstance(value, str) else bytes(value or b"").decode().strip('"')
    text = text.strip().lower()
    if text not in ("true", "false"):
        raise ArgumentError(f"[{name}] must be true or false")
    return text == "true"


def _object(name: str, value: _Value | None) -> msgspec.Raw:
    if not isinstance(value, msgspec.Raw) or _first_byte(value) != "{":
        raise _wrong_type(name, dict)
    return value


def _check_content(field: Field, text: str | None, content: msgspec.Raw | None) -> None:
    if field.required and text is None and content is None:
        raise ArgumentError(f"expect [{field.name}] not null")
    if text is not None and field.longest is not None and len(text) > field.longest:
        raise ArgumentError(f"expect [{field.name}] length less than [{field.longest}], [{len(text)}] in actual")
    if content is not None and not field.nulls:
        check_no_null(field.name, content)


def _wrong_type(name: str, wanted: type) -> ArgumentError:
    return ArgumentError(f"expect [{name}] to be type [{wanted}]")
