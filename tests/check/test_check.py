"""`mlpkit check` on sound algorithms, its report, and a service that is not mlpkit."""

from __future__ import annotations

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from mlpkit.check import CheckReport, Course, Outcome, run_check, running, to_json, write_junit
from mlpkit.check.steps import STEPS
from mlpkit.check.table import LiveTable, summary
from mlpkit.client import Client
from mlpkit.errors import ArgumentError
from tests.check.conftest import Check

REPORT = CheckReport(
    target="mood.py",
    algorithm="mood",
    throughput=120.0,
    outcomes=[
        Outcome(step="train", verdict="passed", seconds=0.5, memory=200 << 20),
        Outcome(step="data", verdict="skipped", sentence="no data was given"),
        Outcome(step="status", verdict="failed", sentence='ValueError: "no" & <none>', seconds=1.0),
    ],
)


@pytest.mark.timeout(180)
def test_a_sound_algorithm_passes_every_step(check: Check) -> None:
    checked = check(data="a good day\tgood\t1\nbad weather\tbad\t1\n")
    assert checked.failed == {}
    assert list(checked.steps) == list(STEPS)
    assert checked.steps["data"].verdict == "warning"
    assert checked.steps["status"].sentence.endswith("completed")
    assert checked.report.throughput is not None
    assert checked.report.memory > 20 << 20


@pytest.mark.timeout(180)
def test_a_service_that_is_not_mlpkit_is_checked_too(foreign: str) -> None:
    client = Client(foreign, "/mlp")
    with running(client, None, "text_custom", [{"sentence": "a"}, {"sentence": "b"}]) as subject:
        report = run_check(Course(subject, timeout=30))
    verdicts = {outcome.step: outcome.verdict for outcome in report.outcomes}
    assert [name for name, verdict in verdicts.items() if verdict == "failed"] == ["bad input"]
    assert verdicts["memory"] == "skipped"
    assert verdicts["delete"] == "warning"


def test_an_algorithm_that_the_service_does_not_have_is_an_error(foreign: str) -> None:
    with (
        pytest.raises(ArgumentError, match=r"no algorithm 'mood' \(echo\)"),
        running(Client(foreign, "/mlp"), "mood", "", []),
    ):
        pass


def test_the_report_as_json() -> None:
    written = json.loads(to_json(REPORT))
    assert written["passed"] is False
    assert written["outcomes"][2]["sentence"] == 'ValueError: "no" & <none>'


def test_the_report_as_junit(tmp_path: Path) -> None:
    write_junit(REPORT, tmp_path / "reports" / "check.xml")
    suite = ElementTree.parse(tmp_path / "reports" / "check.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    failure = suite.find("testcase[@name='status']/failure")
    assert failure is not None
    assert failure.get("message") == 'ValueError: "no" & <none>'


def test_warnings_do_not_fail_a_report() -> None:
    warned = CheckReport(
        target="", algorithm="", outcomes=[Outcome(step="delete", verdict="warning", sentence="still there")]
    )
    assert warned.passed
    assert summary(warned) == "all 1 steps are well, 1 with a warning, 0.0 s"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table_shows_every_step_once(terminal: bool) -> None:
    file = io.StringIO()
    with LiveTable("mood of mood.py", Console(file=file, force_terminal=terminal, width=100)) as table:
        for outcome in REPORT.outcomes:
            table.begin(outcome.step)
            table.end(outcome)
    last = file.getvalue().rpartition("mood of mood.py")[2]
    assert last.count('ValueError: "no" & <none>') == 1
    assert last.count("200 MiB") == 1
