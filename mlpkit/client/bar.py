"""A progress bar on the terminal for one training job; where there is no terminal, a line for every change of stage."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text


class ProgressBar:
    """Shows a job's state and progress while its block runs; the console is stderr, stdout stays free for results."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._title, self._console = title, console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=8,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._said = ""

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=None, detail="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Leaves the terminal alone from now on; `show` still says changes of the stage."""
        self._bar.stop()

    def show(self, state: str, progress: Mapping[str, Any] | None) -> None:
        """Shows a state (`init`, `training`, ...) and a job's progress, as `status` answers it."""
        progress = progress or {}
        fraction = progress.get("fraction")
        stage = str(progress.get("stage") or "")
        if self._task is not None:
            total = None if fraction is None else 1.0
            self._bar.update(self._task, total=total, completed=fraction or 0.0, detail=described(state, progress))
            if state == "completed":
                self._bar.update(self._task, total=1.0, completed=1.0)
        said = f"{state} {stage}".rstrip()
        # Between two stages there is nothing new to say.
        if not self._console.is_terminal and said != self._said and (stage or not self._said.startswith(state)):
            self._said = said
            self._console.print(Text(f"{self._title}: {said}"))


def described(state: str, progress: Mapping[str, Any]) -> str:
    """A job's progress in a few words: `training fit 45/100 loss=0.12`."""
    words = [state, str(progress.get("stage") or "")]
    done, total, fraction = progress.get("done"), progress.get("total"), progress.get("fraction")
    if done is not None:
        words.append(f"{done}/{total}" if total else str(done))
    elif fraction is not None:
        words.append(f"{fraction:.0%}")
    words += [f"{name}={_short(value)}" for name, value in (progress.get("metrics") or {}).items()]
    words.append(str(progress.get("message") or ""))
    return " ".join(word for word in words if word)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
