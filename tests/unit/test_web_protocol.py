"""Where the arguments of a request come from, how they are checked, and what answers look like."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpkit.errors import ArgumentError, MalformedBody, ModelNotLoaded, Overloaded, UserCodeError
from mlpkit.settings import Settings
from mlpkit.web.protocol import CANCEL, LOAD, PREDICT, STATUS, TRAIN, Field, check, check_no_null, is_json, json_values
from mlpkit.web.request import failure, success

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from([TRAIN, STATUS, PREDICT, LOAD])


def checked(fields: tuple[Field, ...], **values: Any) -> Any:
    return check(fields, json_values(json.dumps(values).encode(), fields))


def mistake(fields: tuple[Field, ...], **values: Any) -> str:
    with pytest.raises(ArgumentError) as caught:
        checked(fields, **values)
    return str(caught.value)


def test_a_flag_is_true_or_false_in_json_and_in_a_query() -> None:
    assert [checked(CANCEL, model_id="m", soft=value).flag("soft") for value in (True, False, None, "True")] == [
        *(True, False, False, True)
    ]
    assert not checked(CANCEL, model_id="m").flag("soft")
    assert check(CANCEL, {"model_id": "m", "soft": "true"}).flag("soft")
    wrongs: list[Any] = [1, "yes", {}, [1]]
    for wrong in wrongs:
        assert mistake(CANCEL, model_id="m", soft=wrong) == "[soft] must be true or false"


def test_an_id_may_be_a_number_and_keeps_all_its_digits() -> None:
    number = 123456789012345678901234567890
    assert checked(STATUS, model_id=number, algorithm=1.0).text("model_id") == str(number)
    assert checked(STATUS, model_id=number, algorithm=1.0).text("algorithm") == "1.0"


@pytest.mark.parametrize("value", [True, False, {}, {"a": 1}, ["a"], [None]])
def test_an_id_is_nothing_but_text_or_a_number(value: object) -> None:
    assert mistake(STATUS, model_id=value, algorithm="a") == "expect [model_id] to be type [<class 'str'>]"


@pytest.mark.parametrize("value", ["", "{}", 0, 1.5, True, False, [{}], [["a", 1]], [[["a", 1]]], [None]])
def test_an_object_is_nothing_but_an_object(value: object) -> None:
    assert mistake(PREDICT, model_id="m", features=value) == "expect [features] to be type [<class 'dict'>]"
    assert mistake(PREDICT, model_id="m", params=value) == "expect [params] to be type [<class 'dict'>]"


@pytest.mark.parametrize("value", [None, []])
def test_null_and_the_empty_list_are_the_same_as_missing(value: object) -> None:
    assert mistake(STATUS, model_id=value, algorithm="a") == "expect [model_id] not null"
    assert bytes(checked(PREDICT, model_id="m", features=value).object("features")) == b"null"


def test_lengths_are_in_characters_and_the_limit_itself_is_allowed() -> None:
    assert checked(STATUS, model_id="模" * 64, algorithm="a").text("model_id") == "模" * 64
    assert (
        mistake(STATUS, model_id="模" * 65, algorithm="a") == "expect [model_id] length less than [64], [65] in actual"
    )


def test_types_of_all_fields_come_before_nulls_of_any() -> None:
    assert mistake(TRAIN, algorithm=None, data=1) == "expect [data] to be type [<class 'dict'>]"


@pytest.mark.parametrize(
    ("features", "key"),
    [
        ({"a": None}, "a"),
        ({"a": {"b": None}}, "b"),
        ({"a": [1, [None]]}, "a"),
        ({"a": {"b": [{"c": 1}, {"d": [None]}]}}, "d"),
        ({"x": "null", "a": 1, "b": None, "c": None}, "b"),
        ({"": None}, ""),
    ],
)
def test_a_null_in_features_is_refused_by_its_nearest_key(features: dict[str, Any], key: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_no_null("features", json.dumps(features).encode())
    assert str(caught.value) == f"unexpect type for key [{key}] in [features]"


def test_fields_of_others_are_passed_over() -> None:
    values = json_values(b'{"x": [1], "model_id": "m", "\\u006dodel_id": "n"}', STATUS)
    assert {name: bytes(value) for name, value in values.items()} == {"model_id": b'"n"'}  # type: ignore[arg-type]


def test_a_null_in_very_long_features_is_refused_without_its_key() -> None:
    text = b'"not null, \\" null",'
    check_no_null("features", b'{"a": [%b 1]}' % (text * 10_000))
    with pytest.raises(ArgumentError, match=r"key \[a\] in \[features\]"):
        check_no_null("features", b'{"a": [%b null]}' % (text * 10_000))
    with pytest.raises(ArgumentError, match=r"in \[features\]: a value in it is null"):
        check_no_null("features", b'{"a": [%b null]}' % (b"1," * 200_000))


def test_the_word_null_in_a_text_is_no_null() -> None:
    check_no_null("features", b'{"null": "null", "a": ["not null"]}')


def test_a_byte_order_mark_and_utf_16_are_read_as_json() -> None:
    text = '{"model_id": "模型"}'
    for body in (text.encode("utf-8-sig"), text.encode("utf-16"), text.encode("utf-16-le"), text.encode("utf-32")):
        assert checked_text(body) == "模型"


def checked_text(body: bytes) -> str:
    fields = (Field("model_id", "text"),)
    return check(fields, json_values(body, fields)).text("model_id")


@pytest.mark.parametrize("body", [b"", b"  ", b"null", b" null\n", b"{}"])
def test_a_body_without_fields_has_none(body: bytes) -> None:
    assert json_values(body, TRAIN) == {}


@pytest.mark.parametrize(
    "body", [b"[]", b"5", b'"x"', b"{", b'{"a":1}}', b'{"a":"\xff"}', b'{"a":"\\ud800"}', b"\xff\xfe{"]
)
def test_a_body_that_is_no_json_object_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        json_values(body, TRAIN)


@given(FIELDS, st.dictionaries(st.sampled_from([f.name for f in TRAIN + LOAD + PREDICT]), ANYTHING))
def test_any_values_are_taken_or_refused_in_words(fields: tuple[Field, ...], values: dict[str, Any]) -> None:
    with contextlib.suppress(ArgumentError):
        checked(fields, **values)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_body_is_read_or_refused_in_words(body: bytes) -> None:
    with contextlib.suppress(MalformedBody):
        json_values(body, TRAIN)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/vnd.mlp+json", True),
        ("application/jsonp", False),
        ("text/plain", False),
        ("+json", False),
        ("", False),
    ],
)
def test_only_json_types_are_json(content_type: str, expected: bool) -> None:
    assert is_json(content_type) is expected


def test_answers_are_ascii_with_spaces_and_keys_in_order() -> None:
    assert success({"model_id": "模"}).body == b'{"status": "success", "data": {"model_id": "\\u6a21"}}'
    assert success().body == b'{"status": "success"}'
    assert failure(ModelNotLoaded("x"), Settings()).body == (
        b'{"status": "fail", "message": "model [x] not loaded", "trace": ""}'
    )
    assert failure(ArgumentError("x"), Settings()).body == b'{"status": "arg_error", "message": "x"}'


def test_a_trace_is_sent_only_where_debug_is_on() -> None:
    error = UserCodeError("boom", trace="Traceback: boom")
    assert json.loads(failure(error, Settings()).body)["trace"] == ""
    assert json.loads(failure(error, Settings(debug=True)).body)["trace"] == "Traceback: boom"


def test_a_failure_inside_mlpkit_tells_nothing_of_itself() -> None:
    answer = failure(RuntimeError("secret/path"), Settings())
    assert answer.status == 200
    assert b"secret" not in answer.body


def test_a_refusal_for_lack_of_room_says_when_to_come_back() -> None:
    answer = failure(Overloaded("full", retry_after=7), Settings(http_errors="http"))
    assert answer.status == 503
    assert (b"retry-after", b"7") in answer.headers
