"""`mlpkit check` on sound algorithms, its report, and a service that is not mlpkit."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from mlpkit.check import (
    STEPS,
    CheckReport,
    CheckRun,
    LiveTable,
    StepResult,
    run_check,
    running,
    summary,
    to_json,
    write_junit,
)
from mlpkit.client import Client, LocalFiles
from mlpkit.errors import ArgumentError
from mlpkit.settings import load_settings
from mlpkit.storage import open_storage
from tests.check.conftest import Check
from tests.servers import LONG, S3Server, free_port, mood

REPORT = CheckReport(
    target="mood.py",
    algorithm="mood",
    throughput=120.0,
    outcomes=[
        StepResult(step="train", verdict="passed", seconds=0.5, memory=200 << 20),
        StepResult(step="data", verdict="skipped", sentence="no data was given"),
        StepResult(step="status", verdict="failed", sentence='ValueError: "no" & <none>', seconds=1.0),
    ],
)


def test_a_sound_algorithm_passes_every_step(check: Check) -> None:
    checked = check(data="a good day\tgood\t1\nbad weather\tbad\t1\n")
    assert checked.failed == {}
    assert list(checked.steps) == list(STEPS)
    assert checked.steps["data"].verdict == "warning"
    assert checked.steps["status"].sentence.endswith("completed")
    assert checked.report.throughput is not None
    assert checked.report.memory > 20 << 20


def test_an_algorithm_without_a_training_is_checked_from_load_on(check: Check) -> None:
    checked = check(train="", load="@app.load\ndef load() -> dict[str, float]:\n    return {'top': 60.0}\n")
    assert checked.failed == {}
    assert (checked.steps["train"].verdict, checked.steps["delete"].verdict) == ("skipped", "passed")


def test_a_service_that_is_not_mlpkit_is_checked_too(foreign: str) -> None:
    client = Client(foreign, "/mlp")
    with running(client, None, "text_custom", [{"sentence": "a"}, {"sentence": "b"}]) as service:
        report = run_check(CheckRun(service, timeout=LONG))
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
        target="", algorithm="", outcomes=[StepResult(step="delete", verdict="warning", sentence="still there")]
    )
    assert warned.passed
    assert summary(warned) == "no step failed, 1 warning, 0.0 s"


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


def test_a_running_service_is_checked_through_its_own_store(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets = {"MLPKIT_DATA_BUCKET": "check-data", "MLPKIT_MODEL_BUCKET": "check-models", "MLPKIT_HOME": str(tmp_path)}
    for name, value in {**s3.environment, **buckets}.items():
        monkeypatch.setenv(name, value)
    data = tmp_path / "data.tsv"
    data.write_text("a good day\tgood\t1\n" * 2 + "bad weather\tbad\t1\n" * 2, encoding="utf-8")
    port = free_port()
    script = str(Path(mood.__file__))
    process = subprocess.Popen([sys.executable, "-m", "mlpkit", "run", script, "--port", str(port), "--workers", "1"])
    try:
        client = Client(f"http://127.0.0.1:{port}")
        client.wait_ready(LONG)
        with running(client, "mood", "text_classification", []) as service:
            report = run_check(CheckRun(service, LocalFiles(data), {}, LONG))
    finally:
        process.terminate()
        process.wait(LONG)
    assert [outcome for outcome in report.outcomes if outcome.verdict == "failed"] == []
    with contextlib.closing(open_storage(load_settings())) as storage:
        assert storage.list("check-data/check") == []
