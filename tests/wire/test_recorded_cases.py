"""Every recorded request of the original, sent to mlpkit: a test per case, named by the case's id."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.wire.fixed import ACCEPTED, FIXED, NAMED, NEVER_STARTED, REFUSED
from tests.wire.replayer import PROFILES, Case, Service, alike, filled, read_cases

ServiceFor = Callable[[Case], Service]
CASES = [case for case in read_cases() if case.profile in PROFILES]


def of(verdict: str) -> pytest.MarkDecorator:
    others = {*REFUSED, *ACCEPTED, *NAMED, *NEVER_STARTED}
    cases = [case for case in CASES if case.verdict == verdict and case.id not in others]
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases])


@of("keep")
def test_what_a_client_can_rely_on_is_answered_as_recorded(case: Case, service_for: ServiceFor) -> None:
    answer, variables = service_for(case).replay(case)
    want = json.loads(filled(json.dumps(case.response["json"]), variables))

    assert alike(want, answer.json, any_order=case.match == "shape"), (want, answer.json)
    assert answer.status == case.response["status"]
    assert answer.content_type == case.response["content_type"].split(";")[0]
    assert answer.headers.get("allow") == case.response.get("headers", {}).get("allow")


@pytest.mark.parametrize("case", [case for case in CASES if case.id in REFUSED], ids=lambda case: case.id)
def test_what_can_only_fail_is_refused_immediately(case: Case, service_for: ServiceFor) -> None:
    answer, _ = service_for(case).replay(case)

    assert (answer.status, answer.json) == REFUSED[case.id]


@pytest.mark.parametrize("case", [case for case in CASES if case.id in ACCEPTED], ids=lambda case: case.id)
def test_an_answer_that_the_original_cannot_write_is_written(case: Case, service_for: ServiceFor) -> None:
    answer, _ = service_for(case).replay(case)

    assert (answer.status, answer.json) == ACCEPTED[case.id]


@pytest.mark.parametrize("case", [case for case in CASES if case.id in NAMED], ids=lambda case: case.id)
def test_failure_without_a_text_is_reported_by_the_type_of_its_exception(case: Case, service_for: ServiceFor) -> None:
    answer, _ = service_for(case).replay(case)

    assert (answer.status, answer.json) == NAMED[case.id]


@of("fix")
def test_a_defect_of_the_original_is_answered_better(case: Case, service_for: ServiceFor) -> None:
    answer, _ = service_for(case).replay(case)
    status, want = FIXED[case.id]

    assert alike(want, answer.json), (want, answer.json)
    assert answer.status == status


@of("either")
def test_an_accident_of_the_original_still_gets_a_clear_answer(case: Case, service_for: ServiceFor) -> None:
    answer, _ = service_for(case).replay(case)

    if case.request["method"] == "HEAD" or case.id == "http-root":
        # mlpkit has a page at `/`.
        assert answer.status == 200
    elif case.request["method"] in ("GET", "POST"):
        assert answer.status in (200, 400)
        assert answer.json["status"] in ("success", "fail", "arg_error")
        assert answer.json["status"] == "success" or answer.json["message"]


def test_no_fixed_case_is_forgotten() -> None:
    assert {case.id for case in CASES if case.verdict == "fix"} == set(FIXED)
