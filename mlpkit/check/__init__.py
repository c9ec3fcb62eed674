"""`mlpkit check`: leads an algorithm through its life on the platform, and says plainly what went wrong."""

from mlpkit.check.course import Course
from mlpkit.check.report import CheckReport, Outcome, to_json, write_junit
from mlpkit.check.run import run_check
from mlpkit.check.subject import Subject, running, started

__all__ = ["CheckReport", "Course", "Outcome", "Subject", "run_check", "running", "started", "to_json", "write_junit"]
