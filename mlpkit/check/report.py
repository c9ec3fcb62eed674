"""What `mlpkit check` found, as data, table, JSON and JUnit XML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal
from xml.etree import ElementTree

import msgspec
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

_MARKS = {
    "passed": Text("passed", "green"),
    "warning": Text("warning", "yellow"),
    "failed": Text("failed", "bold red"),
    "skipped": Text("skipped", "dim"),
}
_MIB = 1 << 20

Verdict = Literal["passed", "warning", "failed", "skipped"]


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one step; `sentence` is for the reader.

    `seconds` is its time, `memory` the highest that was seen, in bytes. `memory` counts the service and all its
    processes; it is 0 if they cannot be seen.
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
    outcomes: list[StepResult]
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
    """The report as one JSON object, with `passed` added to its fields."""
    return msgspec.json.encode({"passed": report.passed, **msgspec.structs.asdict(report)}).decode()


def write_junit(report: CheckReport, file: Path) -> None:
    """Writes the report as JUnit XML, one test case for each step.

    Source of the format: the schema that Jenkins reads.
    """
    counted = {
        verdict: sum(result.verdict == verdict for result in report.outcomes) for verdict in ("failed", "skipped")
    }
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


class LiveTable:
    """Shows the steps as they begin and end.

    If the output is not a terminal, it shows the finished table only.
    """

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._console = console
        self._outcomes: list[StepResult] = []
        self._running = ""
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=8, redirect_stderr=False)

    def __enter__(self) -> LiveTable:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = ""
        self._live.stop()
        if not self._console.is_terminal:
            self._console.print(self._table())

    def begin(self, step: str) -> None:
        """A step begins."""
        self._running = step

    def end(self, outcome: StepResult) -> None:
        """A step has ended."""
        self._running = ""
        self._outcomes.append(outcome)

    def _table(self) -> Table:
        return _table_of(self._title, self._outcomes, self._running)


def _table_of(title: str, outcomes: Sequence[StepResult], running: str = "") -> Table:
    """The steps so far, and the one that is running."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("step", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for result in outcomes:
        memory = f"{result.memory / _MIB:.0f} MiB" if result.memory else ""
        table.add_row(result.step, _MARKS[result.verdict], f"{result.seconds:.2f}", memory, Text(result.sentence))
    if running:
        table.add_row(running, Spinner("dots"), "", "", "")
    return table


def summary(report: CheckReport) -> str:
    """The last line: the verdict and the figures."""
    counts = Counter(outcome.verdict for outcome in report.outcomes)
    words = [] if counts["failed"] else ["no step failed"]
    words += [
        f"{counts[verdict]} {verdict}" for verdict in ("failed", "warning", "passed", "skipped") if counts[verdict]
    ]
    words.append(f"{report.seconds:.1f} s")
    if report.memory:
        words.append(f"peak memory {report.memory / _MIB:.0f} MiB")
    if report.throughput is not None:
        words.append(f"{report.throughput:.0f} predictions a second")
    return ", ".join(words)
