"""Progress bars on the terminal for one training job.

In a pipe, there is one line for each change of the stage.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

_MOST_BARS = 8


class ProgressBar:
    """Shows a job's state and progress while its block runs.

    It draws on stderr, so stdout stays free for results. A job with several bars, such as nested loops with tqdm, gets
    a line for each.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._title = title
        # The stream at this moment: a later one may print its lines through this bar.
        self._console = console or Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=8,
            disable=not self._console.is_terminal,
        )
        self._tasks: list[TaskID] = []
        self._said = ""

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        self._tasks = [self._bar.add_task(self._title, total=None, detail="")]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the bars; in a pipe, `show` still prints new stages."""
        self._bar.stop()

    def erase(self) -> None:
        """Ends like `stop`, and removes what was drawn."""
        self._bar.live.transient = True
        self._bar.stop()

    def print(self, text: str) -> None:
        """Prints a line above the bars."""
        self._console.print(Text.from_ansi(text), soft_wrap=True)

    def show(self, state: str, progress: Mapping[str, Any] | None) -> None:
        """Shows a job's state and its progress, as `status` answers them."""
        progress = progress or {}
        stage = str(progress.get("stage") or "")
        if self._tasks:
            self._draw(state, progress)
        said = f"{state} {stage}".rstrip()
        # Between two stages there is nothing new to print.
        if not self._console.is_terminal and said != self._said and (stage or not self._said.startswith(state)):
            self._said = said
            self._console.print(Text(f"{self._title}: {said}"), soft_wrap=True)

    def _draw(self, state: str, progress: Mapping[str, Any]) -> None:
        fraction = 1.0 if state == "completed" else progress.get("fraction")
        self._update(0, self._title, described(state, progress), fraction)
        # The outermost bar is what the first line shows.
        bars = [] if state == "completed" else list(progress.get("bars") or [])[1 : _MOST_BARS + 1]
        for number, bar in enumerate(bars, 1):
            self._update(number, "", described("", bar), bar.get("fraction"))
        while len(self._tasks) > len(bars) + 1:
            self._bar.remove_task(self._tasks.pop())

    def _update(self, number: int, title: str, detail: str, fraction: float | None) -> None:
        if number == len(self._tasks):
            self._tasks.append(self._bar.add_task(title, total=None, detail=""))
        total = None if fraction is None else 1.0
        self._bar.update(self._tasks[number], total=total, completed=fraction or 0.0, detail=detail)


def described(state: str, progress: Mapping[str, Any]) -> str:
    """A job's progress in a few words: `training fit 45/100 loss=0.12`.

    Metrics of several values, such as the evaluation, are left out.
    """
    words = [state, str(progress.get("stage") or "")]
    done = progress.get("done")
    total = progress.get("total")
    fraction = progress.get("fraction")
    if done is not None:
        words.append(f"{done}/{total}" if total else str(done))
    elif fraction is not None:
        words.append(f"{fraction:.0%}")
    metrics = (progress.get("metrics") or {}).items()
    words += [f"{name}={_short(value)}" for name, value in metrics if not isinstance(value, (dict, list, tuple))]
    words.append(str(progress.get("message") or ""))
    return " ".join(word for word in words if word)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
