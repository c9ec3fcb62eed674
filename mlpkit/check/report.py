"""What `mlpkit check` found: one outcome a step, as data, as JSON and as JUnit XML."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import msgspec

Verdict = Literal["passed", "warning", "failed", "skipped"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one step went: `sentence` says it for a person, `seconds` is its time, `memory` the highest seen in bytes.

    `memory` counts the service and all its processes; it is 0 where they cannot be seen.
    """

    step: str
    verdict: Verdict
    sentence: str = ""
    seconds: float = 0.0
    memory: int = 0


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """The outcomes of all steps in order; `throughput` in predictions a second."""

    target: str
    algorithm: str
    outcomes: list[Outcome]
    throughput: float | None = None

    @property
    def passed(self) -> bool:
        """Whether no step failed; warnings are allowed."""
        return not any(outcome.verdict == "failed" for outcome in self.outcomes)

    @property
    def seconds(self) -> float:
        """The time of all steps together."""
        return sum(outcome.seconds for outcome in self.outcomes)

    @property
    def memory(self) -> int:
        """The highest memory of all steps, in bytes."""
        return max((outcome.memory for outcome in self.outcomes), default=0)


def to_json(report: CheckReport) -> str:
    """The report as one JSON object, with `passed` beside its fields."""
    return msgspec.json.encode({"passed": report.passed, **msgspec.structs.asdict(report)}).decode()


def write_junit(report: CheckReport, file: Path) -> None:
    """Writes the report as JUnit XML, a test case a step. Source of the format: the schema that Jenkins reads."""
    counted = {verdict: sum(each.verdict == verdict for each in report.outcomes) for verdict in ("failed", "skipped")}
    suite = ElementTree.Element(
        "testsuite",
        name=f"mlpkit check {report.algorithm}",
        tests=str(len(report.outcomes)),
        failures=str(counted["failed"]),
        errors="0",
        skipped=str(counted["skipped"]),
        time=f"{report.seconds:.3f}",
    )
    for outcome in report.outcomes:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"mlpkit.check.{report.algorithm}",
            name=outcome.step,
            time=f"{outcome.seconds:.3f}",
        )
        if outcome.verdict == "failed":
            ElementTree.SubElement(case, "failure", message=outcome.sentence).text = outcome.sentence
        elif outcome.verdict == "skipped":
            ElementTree.SubElement(case, "skipped", message=outcome.sentence)
        elif outcome.sentence:
            ElementTree.SubElement(case, "system-out").text = outcome.sentence
    file.parent.mkdir(parents=True, exist_ok=True)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)
