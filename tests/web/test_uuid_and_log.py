"""The uuid of a request, and its line in the log."""

from __future__ import annotations

import re
import time
from typing import Any

from tests.servers import LONG
from tests.wire.replayer import Service


def the_line(service: Service, wanted: str) -> str:
    """The line of the log that holds `wanted`, which may take a moment to be written."""
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        for line in service.log().splitlines():
            if wanted in line and " access | " in line:
                return line
        time.sleep(0.02)
    raise AssertionError(f"no access line with {wanted!r}")


def inspected(service: Service, model_id: str, **headers: str) -> tuple[str, Any]:
    """The answer's X-Request-ID, and the uuid that the handler got."""
    assert service.post("/load", f'{{"algorithm": "inspect", "model_id": "{model_id}"}}').json == {"status": "success"}
    answer = service.post("/predict", f'{{"model_id": "{model_id}", "features": {{}}}}', **headers)
    return answer.headers["x-request-id"], answer.json["data"]["predictions"][0]["uuid"]


def test_the_uuid_of_the_body_wins_over_the_header(either: Service) -> None:
    body = '{"model_id": "nobody", "features": {}, "uuid": "of-the-body"}'
    answer = either.post("/predict", body, **{"X-Request-ID": "of-the-header"})
    assert answer.headers["x-request-id"] == "of-the-body"


def test_the_uuid_of_the_header_is_the_caller_s_own(either: Service) -> None:
    assert inspected(either, "uuid-1", **{"X-Request-ID": "of-the-header"}) == ("of-the-header", "of-the-header")


def test_a_uuid_is_made_where_the_caller_sends_none_and_the_handler_gets_none(either: Service) -> None:
    made, seen = inspected(either, "uuid-2")
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert seen is None


def test_a_refused_request_has_the_uuid_of_its_body(either: Service) -> None:
    for body in (
        '{"uuid": "refused-1", "features": {"a": null}, "model_id": "x"}',
        '{"uuid": "refused-2", "features": 5}',
    ):
        answer = either.post("/predict", body)
        assert answer.json["status"] == "arg_error"
        assert answer.headers["x-request-id"].startswith("refused-")


def test_a_uuid_cannot_break_a_header_or_a_line(either: Service) -> None:
    answer = either.post("/load", '{"algorithm": "nope", "model_id": "x", "uuid": "u\\r\\nX-Evil: 1 \\u6a21"}')
    assert "x-evil" not in answer.headers
    assert "\n" not in answer.headers["x-request-id"]


def test_every_request_has_one_line_with_what_it_was_and_how_it_ended(either: Service) -> None:
    either.post("/unload", '{"algorithm": "nope", "model_id": "x", "uuid": "line-1"}')
    line = the_line(either, "line-1")
    assert re.search(r"\[line-1\] server access \| POST /unload 200 arg_error \d+\.\d ms \d+ B$", line)
    assert either.log().count("[line-1] server access") == 1


def test_a_path_cannot_write_a_line_of_its_own(either: Service) -> None:
    either.get("/nothing%0A2026-01-01%20forged-line")
    assert "%0A2026-01-01%20forged-line" in the_line(either, "forged-line")


def test_payloads_are_not_in_the_log(either: Service) -> None:
    either.post("/predict", '{"model_id": "x", "features": {"sentence": "a-private-sentence"}, "uuid": "payload-1"}')
    the_line(either, "payload-1")
    assert "a-private-sentence" not in either.log()
