"""The table that `mlpkit check` shows while it works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from mlpkit.check.report import CheckReport, Outcome

_MARKS = {
    "passed": Text("passed", "green"),
    "warning": Text("warning", "yellow"),
    "failed": Text("failed", "bold red"),
    "skipped": Text("skipped", "dim"),
}
_MIB = 1 << 20


class LiveTable:
    """Shows the steps as they begin and end; on something that is no terminal, the finished table."""

    def __init__(self, title: str, console: Console) -> None:
        self._title, self._console = title, console
        self._outcomes: list[Outcome] = []
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

    def end(self, outcome: Outcome) -> None:
        """A step has ended."""
        self._running = ""
        self._outcomes.append(outcome)

    def _table(self) -> Table:
        return table_of(self._title, self._outcomes, self._running)


def table_of(title: str, outcomes: Sequence[Outcome], running: str = "") -> Table:
    """The steps so far, and the one that is running."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("step", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for each in outcomes:
        memory = f"{each.memory / _MIB:.0f} MiB" if each.memory else ""
        table.add_row(each.step, _MARKS[each.verdict], f"{each.seconds:.2f}", memory, Text(each.sentence))
    if running:
        table.add_row(running, Spinner("dots"), "", "", "")
    return table


def summary(report: CheckReport) -> str:
    """The last line: whether the platform would accept the algorithm, and the figures."""
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
