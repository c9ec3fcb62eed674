"""What the outermost layer lets in: token, origins, sizes; and true status codes where they are wanted."""

from __future__ import annotations

import pytest

from tests.web.conftest import ORIGIN, TOKEN
from tests.wire.replayer import Answer, Service

WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}


def preflight(service: Service, path: str, origin: str) -> Answer:
    return service.send({"method": "OPTIONS", "path": path, "headers": {"Origin": origin}})


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"])
def test_a_request_without_the_right_token_is_refused(strict: Service, authorization: str) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    for answer in (strict.get("/monitor", **headers), strict.post("/predict", "{}", **headers)):
        assert answer.status == 401
        assert answer.json["status"] == "arg_error"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answer.text


def test_the_right_token_is_let_in_and_probes_need_none(strict: Service) -> None:
    assert strict.get("/monitor", **WITH_TOKEN).json["status"] == "success"
    assert strict.get("/health/live").status == 200
    assert strict.get("/health/ready").status == 200


def test_an_allowed_origin_gets_what_the_original_meant_to_send(strict: Service) -> None:
    answer = preflight(strict, "/predict", ORIGIN)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-allow-methods"] == "*"
    assert answer.headers["access-control-max-age"] == "86400"
    assert answer.headers["access-control-allow-headers"] == "Authorization,Origin,Content-Type,Accept"
    assert answer.headers["vary"] == "Origin"
    refused = strict.get("/monitor", Origin=ORIGIN)
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN


def test_another_origin_gets_no_permission(strict: Service, plain: Service) -> None:
    assert "access-control-allow-origin" not in preflight(strict, "/predict", "https://evil.example").headers
    assert "access-control-allow-origin" not in plain.get("/monitor", Origin=ORIGIN).headers
    assert "access-control-allow-origin" not in preflight(plain, "/predict", ORIGIN).headers


@pytest.mark.parametrize("path", ["/train", "/predict"])
def test_json_that_is_sent_as_a_form_is_answered_with_the_missing_header(plain: Service, path: str) -> None:
    # What `curl -d` sends without -H.
    request = {"method": "POST", "path": path, "body": ' {"model_id": "m"}'}
    for content_type in ("application/x-www-form-urlencoded", "text/plain"):
        answer = plain.send({**request, "headers": {"Content-Type": content_type}})
        assert (answer.status, answer.json["status"]) == (200, "arg_error")
        assert "add the header Content-Type: application/json" in answer.json["message"]


def test_options_tells_the_methods_of_a_path(plain: Service) -> None:
    for path, allowed in (
        ("/predict", "OPTIONS, POST"),
        ("/train", "OPTIONS, POST"),
        ("/status", "GET, HEAD, OPTIONS"),
    ):
        answer = plain.send({"method": "OPTIONS", "path": path, "headers": {}})
        assert (answer.status, answer.headers["allow"]) == (200, allowed)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/load", '{"algorithm": "nope", "model_id": "x"}', 404),
        ("/load", '{"algorithm": "echo"}', 400),
        ("/load", '{"algorithm": "boom", "model_id": "x", "model_path": "raise"}', 500),
        ("/predict", '{"model_id": "nobody", "features": {}}', 404),
        ("/cancel", '{"model_id": "nobody"}', 404),
        ("/nowhere", "{}", 404),
    ],
)
def test_status_codes_are_true_where_they_are_wanted_and_200_otherwise(
    strict: Service, plain: Service, path: str, body: str, status: int
) -> None:
    true, always_fine = strict.post(path, body, **WITH_TOKEN), plain.post(path, body)
    assert (true.status, always_fine.status) == (status, 200)
    assert true.json == always_fine.json
    assert true.json["status"] in ("fail", "arg_error")


@pytest.mark.parametrize("path", ["/predict", "/load", "/train"])
@pytest.mark.parametrize("size", [20_000, 300_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused_and_the_service_goes_on(
    strict: Service, path: str, size: int, chunked: bool
) -> None:
    headers = {"Content-Type": "application/json", **WITH_TOKEN}
    body = '{"model_id": "x", "features": {"pad": "' + "y" * size + '"}}'
    answer = strict.send({"method": "POST", "path": path, "headers": headers, "body": body, "chunked": chunked})
    assert answer.status == 413
    assert answer.json["status"] == "arg_error"
    assert "MLPKIT_MAX_BODY" in answer.json["message"]
    assert answer.headers["connection"] == "close"
    assert strict.get("/monitor", **WITH_TOKEN).status == 200


@pytest.mark.parametrize("path", ["/predict", "/load", "/cancel"])
@pytest.mark.parametrize("body", ['{"a": ', "[]", '"text"', '{"a": NaN}', '{"a": 1} x', "[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused_with_the_reason(plain: Service, path: str, body: str) -> None:
    answer = plain.send({"method": "POST", "path": path, "headers": {"Content-Type": "application/json"}, "body": body})
    assert answer.status == 400
    assert answer.json["status"] == "arg_error"
    assert answer.json["message"].startswith("the body ")


def test_a_form_of_either_kind_is_read(plain: Service) -> None:
    parts = {"algorithm": "echo", "model_id": "form-1"}
    multipart = "".join(
        f'--edge\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in parts.items()
    )
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    sent = {"method": "POST", "path": "/load", "headers": headers, "body": multipart + "--edge--\r\n"}
    assert plain.send(sent).json == {"status": "success"}
    assert "form-1" in plain.get("/monitor").json["data"]["load"]
    broken = {**sent, "headers": {"Content-Type": "multipart/form-data"}}
    assert plain.send(broken).status == 400
