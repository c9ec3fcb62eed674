"""Runs the steps of a check one after the other, and collects how they went."""

from __future__ import annotations

import time
from collections.abc import Callable

from loguru import logger

from mlpkit.check.course import Course, Doubtful, Failed, Skipped
from mlpkit.check.report import CheckReport, Outcome, Verdict
from mlpkit.check.steps import NEEDED, STEPS, Step, clean_up
from mlpkit.check.subject import MemoryWatch
from mlpkit.errors import MlpkitError


def run_check(
    course: Course,
    *,
    on_begin: Callable[[str], None] = lambda step: None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
) -> CheckReport:
    """The report of the whole life of an algorithm.

    `on_begin` gets the name of every step that begins, `on_end` its outcome; steps that a failure makes pointless are
    skipped.
    """
    outcomes: list[Outcome] = []
    broken = ""
    with MemoryWatch(course.subject) as memory:
        for name, step in STEPS.items():
            on_begin(name)
            outcome = _outcome(name, step, course, memory) if not broken else _skipped(name, broken)
            on_end(outcome)
            outcomes.append(outcome)
            if outcome.verdict == "failed" and name in NEEDED:
                broken = name
    try:
        clean_up(course)
    except MlpkitError as error:
        logger.warning("the uploaded data could not be removed: {}", error)
    return CheckReport(
        target=course.subject.target,
        algorithm=course.subject.algorithm,
        outcomes=outcomes,
        throughput=course.throughput,
    )


def _outcome(name: str, step: Step, course: Course, memory: MemoryWatch) -> Outcome:
    memory.take()
    started = time.monotonic()
    verdict: Verdict = "passed"
    try:
        sentence = step(course)
    except Skipped as reason:
        verdict, sentence = "skipped", str(reason)
    except Doubtful as reason:
        verdict, sentence = "warning", str(reason)
    except (Failed, MlpkitError) as reason:
        verdict, sentence = "failed", str(reason)
    return Outcome(
        step=name, verdict=verdict, sentence=sentence, seconds=time.monotonic() - started, memory=memory.take()
    )


def _skipped(name: str, broken: str) -> Outcome:
    return Outcome(step=name, verdict="skipped", sentence=f"{broken} failed")
