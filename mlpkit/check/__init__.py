"""`mlpkit check`: takes an algorithm through its life and reports each step."""

from mlpkit.check.report import CheckReport, LiveTable, StepResult, summary, to_json, write_junit
from mlpkit.check.service import CheckedService, running, started
from mlpkit.check.steps import STEPS, CheckRun, run_check

__all__ = [
    "STEPS",
    "CheckReport",
    "CheckRun",
    "CheckedService",
    "LiveTable",
    "StepResult",
    "run_check",
    "running",
    "started",
    "summary",
    "to_json",
    "write_junit",
]
