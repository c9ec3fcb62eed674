"""The document of the service's own routes is true: schemathesis asks what it allows, and what it does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import Start
from tests.conftest import Report

pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")
pytestmark = pytest.mark.slow

_CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"
_LEAST_CASES = 400


def test_every_route_answers_as_its_schema_says_to_whatever_is_sent(start: Start, report: Report) -> None:
    service = start(Path(__file__).resolve().parents[2] / "examples" / "two_in_one.py")
    url = f"http://127.0.0.1:{service.port}/openapi.json"
    bounds = ["--max-examples", "40", "--request-timeout", "20", "--generation-deterministic"]

    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", url, "--checks", _CHECKS, *bounds],
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found is not None, done.stdout
    report(f"schemathesis: {found[1]} requests generated, {found[2]} passed")
    assert int(found[1]) == int(found[2]) >= _LEAST_CASES
    assert service.client.ready().ready
    assert "Traceback" not in service.log
