"""Whatever is sent, a clear answer comes back, and the service goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wire.replayer import Answer, Service

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)
IDS = st.sampled_from(["fuzz-1", "", "..", "../x", "a/b", "\0", "模", "x" * 65]) | JSON
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "model_id": IDS,
        "algorithm": st.sampled_from(["inspect", "echo", "nope"]) | JSON,
        "model_path": st.sampled_from(["", "a/b", "../../etc/passwd", "/"]) | JSON,
        "features": st.dictionaries(st.text(max_size=4), JSON, max_size=3) | JSON,
        "params": JSON,
        "extend": JSON,
        "uuid": JSON,
        "trace": JSON,
    },
)
FEW = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def check_clear(answer: Answer) -> None:
    assert answer.status in (200, 400)
    assert answer.json["status"] in ("success", "fail", "arg_error")
    assert "Traceback" not in answer.text
    assert "internal error" not in answer.text


@pytest.mark.parametrize("path", ["/predict", "/load", "/unload", "/delete", "/cancel"])
@FEW
@given(fields=FIELDS)
def test_any_fields_get_a_clear_answer(plain: Service, path: str, fields: dict[str, Any]) -> None:
    check_clear(plain.post(path, json.dumps(fields)))


@pytest.mark.parametrize("path", ["/predict", "/load", "/train"])
@FEW
@given(
    body=st.text(max_size=60) | JSON.map(json.dumps), content_type=st.sampled_from(["application/json", "text/x", ""])
)
def test_any_body_gets_a_clear_answer(plain: Service, path: str, body: str, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    check_clear(plain.send({"method": "POST", "path": path, "headers": headers, "body": body}))


def test_the_service_still_answers_well(plain: Service) -> None:
    plain.post("/load", '{"algorithm": "echo", "model_id": "after"}')
    answer = plain.post("/predict", '{"model_id": "after", "features": {"sentence": "x"}}')
    assert answer.json["data"]["predictions"] == [{"label": "x", "score": 100}]
    assert plain.get("/health/ready").status == 200
