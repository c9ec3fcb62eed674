"""How far a training job is: the `Progress` service and its snapshots.

A handler reports it (`track`, `stage`, `update`), or a progress bar does: the lines that tqdm redraws are understood,
so that code with tqdm in it needs no change. A bar below another one ends its line with cursor movements ("up one
line"), one for each bar above it; this is how several bars are told apart.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import length_hint
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from mlpkit.injection import service
from mlpkit.log import printable

T = TypeVar("T")

_INTERVAL = 0.1
_LONGEST_TEXT = 1000
_LARGEST = 2**63 - 1
"""No larger number goes through the channel."""
_LONGEST_METRIC = 1 << 20
"""Bytes of one metric in msgpack; a longer one is shown by the beginning of its text."""
_MOST_BARS = 20
_MOST_CURVES = 24
_MOST_POINTS = 400
_BAR_SECONDS = 10.0
"""How often the state of progress bars is written to a job's log."""
_ESCAPE = r"(?:\x1b|\\x1b)\[[0-9;?]*[A-Za-z]"
"""A control sequence of a terminal, also as `printable` escapes it."""
_ESCAPES = re.compile(_ESCAPE)
_UP = re.compile(r"(?:\x1b|\\x1b)\[(\d*)A")
_BAR = re.compile(
    r"(?:(?P<stage>.*?):?\s*)?(?P<percent>\d{1,3})%\|.*?\|\s*(?P<done>[\d.]+[kKMGTP]?)/(?P<total>[\d.]+[kKMGTP]?)\S*"
    r"\s*(?:\[[^<\]]*<(?P<left>[\d:?]+)(?:[^\]]*|.*\]))?"
)
_COUNT = re.compile(r"(?:(?P<stage>.*?):\s+)?(?P<done>[\d.]+[kKMGTP]?)[^\s\d/]*\s*\[\d[\d:]*,.*\]")
_THOUSANDS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}


class BarState(msgspec.Struct, frozen=True):
    """One progress bar; the fields are those of `Snapshot`."""

    stage: str = ""
    fraction: float | None = None
    done: int | None = None
    total: int | None = None
    remaining: float | None = None


StopReason = Literal["drain", "cancel"]
"""Why a job is asked to stop: the service ends, or a soft cancel."""


class CheckpointState(msgspec.Struct, frozen=True):
    """What a job has to do with checkpoints.

    `resumed_from` is the model id of the checkpoint with which this attempt began, or None; `resumed_at` is how far
    that was, from 0 to 1, if it is known. `saved` is when the job last saved one, in seconds since the epoch, and
    `saved_at` how far it was.
    """

    resumed_from: str | None = None
    resumed_at: float | None = None
    saved: float | None = None
    saved_at: float | None = None


class Snapshot(msgspec.Struct, frozen=True):
    """How far a job is; None is not known.

    `fraction` is 0 to 1, `seconds` counts from the start, `remaining` is of the stage. `bars` are the progress bars
    that are shown at the same time, the outermost first; it is empty if there are fewer than two. `checkpoint` is None
    if the job neither began with a checkpoint nor saved one. `rows` is how many rows the data check has counted.
    """

    stage: str = ""
    fraction: float | None = None
    done: int | None = None
    total: int | None = None
    message: str = ""
    metrics: dict[str, Any] = msgspec.field(default_factory=dict)
    seconds: float = 0.0
    remaining: float | None = None
    bars: tuple[BarState, ...] = ()
    checkpoint: CheckpointState | None = None
    rows: int | None = None

    def completed(self) -> Snapshot:
        """The snapshot of a completed job: all is done, the metrics stay."""
        done = self.done if self.done == self.total else None
        return Snapshot(
            fraction=1.0,
            done=done,
            total=done,
            metrics=self.metrics,
            seconds=self.seconds,
            remaining=0.0,
            checkpoint=self.checkpoint,
            rows=self.rows,
        )


@dataclass(eq=False)
class _Stage:
    name: str = ""
    tracked: bool = False
    begun: int = 0
    started: float = field(default_factory=time.monotonic)
    done: int | None = None
    total: int | None = None
    fraction: float | None = None
    remaining: float | None = None

    def fraction_now(self) -> float | None:
        if self.done is not None and self.total:
            return min(1.0, self.done / self.total)
        return self.fraction

    def remaining_now(self) -> float | None:
        fraction = self.fraction_now()
        # An earlier attempt has done this much, in another time.
        before = self.begun / self.total if self.total else 0.0
        if self.remaining is not None or fraction is None or fraction <= before:
            return self.remaining
        return _finite_or_none((time.monotonic() - self.started) * (1 - fraction) / (fraction - before))


@service("train")
class Progress:
    """Reports how far the job is, for its status.

    Args:
        send: gets a snapshot after a change, at most ten a second; the last one always. It is called in a thread.
        asked_to_stop: looks whether the job is asked to stop, and returns immediately. It is called if somebody wants
            to know, and not in a thread of its own: `train` may fork, and a process with one thread does it safely.
    """

    def __init__(
        self, send: Callable[[Snapshot], None], asked_to_stop: Callable[[], StopReason | None] = lambda: None
    ) -> None:
        self._send = send
        self._asked_to_stop = asked_to_stop
        self._started = time.monotonic()
        self._stages = [_Stage()]
        self._bars: dict[int, BarState] = {}
        self._message = ""
        self._metrics: dict[str, object] = {}
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._sender: threading.Thread | None = None
        self._process = os.getpid()
        self._checkpoint: CheckpointState | None = None
        self._rows: int | None = None
        self._stop_reason: StopReason | None = None
        self._stop_lock = threading.Lock()
        self.stop_seen = False

    @property
    def stopping(self) -> bool:
        """Whether the job should end soon, because otherwise it is killed.

        The service ends (SIGTERM), or somebody has sent a soft cancel.
        """
        self.stop_seen = self.stop_reason is not None
        return self.stop_seen

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the job was asked to stop; None if it was not."""
        if self._stop_reason is None:
            with self._stop_lock:
                self._stop_reason = self._stop_reason or self._asked_to_stop()
        return self._stop_reason

    @stop_reason.setter
    def stop_reason(self, reason: StopReason) -> None:
        self._stop_reason = reason

    def track(self, items: Iterable[T], stage: str = "", total: float | None = None, *, done: int = 0) -> Iterator[T]:
        """The items, one by one, counted as a stage.

        Give `total` if their number cannot be seen; it is rounded up. `done` is how many were done before, if a job
        continues; they are not among the items, but `total` counts them.
        """
        hint = length_hint(items)
        expected = (hint + done if hint else None) if total is None else _whole(total)
        with self.stage(stage) as current:
            current.tracked = True
            current.begun = done
            current.done = done
            current.total = expected
            self._tell()
            for count, item in enumerate(items, done + 1):
                yield item
                current.done = count
                if not self._changed.is_set():
                    self._tell()

    @contextmanager
    def stage(self, name: str) -> Iterator[_Stage]:
        """Names what is done inside the block.

        Stages can be inside each other; the innermost is shown.
        """
        current = _Stage(_text(name) or self._stages[-1].name)
        self._stages.append(current)
        self._tell()
        try:
            yield current
        finally:
            self._stages.remove(current)
            self._tell()

    def update(self, fraction: float | None = None, message: str | None = None, **metrics: object) -> None:
        """Sets the done part of the stage, a sentence, and metrics.

        `fraction` is 0 to 1; what is outside is cut, and nan means that it is not known. Metrics are kept: the last
        value of each is in the job's record and in the model's manifest. They become what JSON has: scalars and arrays
        of numpy become numbers and lists, nan and infinite numbers become null, and other values become text.
        """
        if os.getpid() != self._process:
            return  # A process that `train` has forked does not speak for the job.
        made = {_text(name): _plain(value) for name, value in metrics.items()}
        with self._lock:
            if fraction is not None:
                fraction = float(fraction)
                self._stages[-1].fraction = None if math.isnan(fraction) else max(0.0, min(1.0, fraction))
            if message is not None:
                self._message = _text(message)
            self._metrics.update(made)
        self._tell()

    @property
    def metrics(self) -> dict[str, object]:
        """The last value of every metric."""
        with self._lock:
            return dict(self._metrics)

    def snapshot(self) -> Snapshot:
        """How far the job is now."""
        current = self._stages[-1]
        return Snapshot(
            stage=current.name,
            fraction=current.fraction_now(),
            done=current.done,
            total=current.total,
            message=self._message,
            metrics=self.metrics,
            seconds=time.monotonic() - self._started,
            remaining=current.remaining_now(),
            bars=self._shown_bars(),
            checkpoint=self._checkpoint,
            rows=self._rows,
        )

    def note_checkpoint(self, **changes: Any) -> None:
        """Changes fields of the `CheckpointState`."""
        self._checkpoint = msgspec.structs.replace(self._checkpoint or CheckpointState(), **changes)
        self._tell()

    def note_rows(self, rows: int) -> None:
        """Tells how many rows the training data has."""
        self._rows = rows
        self._tell()

    def redrawn(self, line: str) -> None:
        """Takes over what a progress bar shows; other lines change nothing.

        The title of the outermost bar names the stage if the handler has named none. What `track` counts goes before
        what a bar shows.
        """
        bar = read_bar(line)
        current = self._stages[-1]
        if bar is None or current.tracked or os.getpid() != self._process:
            return
        depth = depth_of(line)
        with self._lock:
            outer = self._bars.get(0)
            if depth == 0 and (outer is None or outer.stage != bar.stage):
                # An inner bar that stays when it has ended is drawn a last time in the place of the outermost.
                depth = next((depth for depth, other in self._bars.items() if depth and other.stage == bar.stage), 0)
            if depth == 0 and (outer is None or outer.stage != bar.stage):
                self._bars.clear()
            if depth < _MOST_BARS:
                self._bars[depth] = bar
        if depth == 0 or outer is None:
            if len(self._stages) == 1 and bar.stage:
                current.name = _text(bar.stage)
            current.done = bar.done
            current.total = bar.total
            current.fraction = bar.fraction
            current.remaining = bar.remaining
        self._tell()

    def _shown_bars(self) -> tuple[BarState, ...]:
        with self._lock:
            if len(self._bars) < 2 or self._stages[-1].tracked:
                return ()
            return tuple(self._bars[depth] for depth in sorted(self._bars))

    def close(self) -> None:
        """Sends what has not been sent yet, and ends the thread."""
        if self._sender is not None:
            self._closed.set()
            self._changed.set()
            self._sender.join(5)

    def _tell(self) -> None:
        if os.getpid() != self._process:
            return
        self._changed.set()
        if self._sender is None:
            with self._lock:
                if self._sender is None:
                    self._sender = threading.Thread(target=self._send_changes, name="mlpkit-progress", daemon=True)
                    self._sender.start()

    def _send_changes(self) -> None:
        while not self._closed.is_set():
            self._changed.wait()
            self._changed.clear()
            self._send(self.snapshot())
            self._closed.wait(_INTERVAL)
        if self._changed.is_set():
            self._send(self.snapshot())


class Curves:
    """The course of a job's metrics that are numbers.

    A metric keeps at most 400 points: when it has more, every second one is dropped, and from then on only every
    second value is taken. So the points have equal distances, and the last value is always there.
    """

    def __init__(self) -> None:
        self._points: dict[str, list[tuple[float, float]]] = {}
        self._steps: dict[str, int] = {}
        self._seen: dict[str, int] = {}

    def add(self, snapshot: Snapshot) -> None:
        """Takes the metrics that have changed."""
        for name, value in snapshot.metrics.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            points = self._points.get(name)
            if points is None:
                if len(self._points) >= _MOST_CURVES:
                    continue
                points = self._points[name] = []
            elif points[-1][1] == value:
                continue
            self._put(name, points, (round(snapshot.seconds, 1), float(value)))

    def _put(self, name: str, points: list[tuple[float, float]], point: tuple[float, float]) -> None:
        step = self._steps.get(name, 1)
        seen = self._seen[name] = self._seen.get(name, 0) + 1
        # The last point stands for all since the one before; it is replaced until its step is full.
        if (seen - 1) % step and len(points) > 1:
            points[-1] = point
        else:
            points.append(point)
        if len(points) > _MOST_POINTS:
            del points[1::2]
            self._steps[name] = 2 * step
            self._seen[name] = 0

    def points(self) -> dict[str, list[tuple[float, float]]]:
        """The points of each metric: seconds since the start, and value."""
        return {name: list(points) for name, points in self._points.items()}

    def write(self, path: Path) -> None:
        """Writes the points into a file, if there are any."""
        if self._points:
            # A full disk must not end a job: it has no curves then.
            with contextlib.suppress(OSError):
                path.write_bytes(msgspec.json.encode(self._points))


def read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """What `Curves.write` has written; empty if it cannot be read."""
    try:
        # Not `decode_json`: a script that imports Progress need not import the storage.
        return msgspec.json.decode(path.read_bytes(), type=dict[str, list[tuple[float, float]]])
    except (OSError, ValueError):
        return {}


class BarLines:
    """Writes only the last state of each progress bar, every ten seconds.

    Args:
        write: writes one line to the log.
        room: bytes of the log that bars may take, so that they never displace other lines.
    """

    def __init__(self, write: Callable[[str], None], room: int) -> None:
        self._write = write
        self._room = room
        self._last: dict[tuple[int, str], str] = {}
        self._due = 0.0
        self._lock = threading.Lock()

    def take(self, line: str) -> bool:
        """Whether the line is a progress bar's.

        Then it is kept here, and written later if no newer state replaces it.
        """
        bar = read_bar(line)
        if bar is None:
            # Cursor movements alone show nothing.
            return line.lstrip()[:4].startswith(("\x1b", "\\x1b")) and not _ESCAPES.sub("", line).strip()
        key = (depth_of(line), bar.stage)
        now = time.monotonic()
        with self._lock:
            if not self._last and now > self._due:
                self._due = now + _BAR_SECONDS
            self._last.pop(key, None)
            self._last[key] = _ESCAPES.sub("", line).strip()
            if len(self._last) > _MOST_BARS:
                del self._last[next(iter(self._last))]
        if now >= self._due:
            self.flush()
        return True

    def flush(self) -> None:
        """Writes the last state of each bar that has changed since."""
        with self._lock:
            lines = list(self._last.values())
            self._last.clear()
            self._due = time.monotonic() + _BAR_SECONDS
        for line in lines:
            self._room -= len(line)
            if self._room >= 0:
                self._write(line)


def depth_of(line: str) -> int:
    """How many bars are above the one that wrote this line."""
    return sum(int(count or 1) for count in _UP.findall(line[-8 * _MOST_BARS :]))


def read_bar(line: str) -> BarState | None:
    """What a line of tqdm says; None if it is not one.

    Such a line is `fit:  45%|####5     | 45/100 [00:01<00:01, 50.0it/s]`.
    """
    # First what is quick: every line of the author's code comes here.
    if len(line) > _LONGEST_TEXT or ("%|" not in line and "[" not in line):
        return None
    text = _ESCAPES.sub("", line).strip()
    bar = _BAR.fullmatch(text)
    if bar is not None:
        done = _number(bar["done"])
        total = _number(bar["total"])
        return BarState(
            stage=(bar["stage"] or "").strip(),
            fraction=min(1.0, done / total) if total else min(100, int(bar["percent"])) / 100,
            done=done,
            total=total,
            remaining=_duration(bar["left"]),
        )
    count = _COUNT.fullmatch(text)
    return None if count is None else BarState(stage=(count["stage"] or "").strip(), done=_number(count["done"]))


def _number(text: str) -> int:
    unit = text[-1] if text[-1].isalpha() else ""
    try:
        return min(_LARGEST, round(float(text.removesuffix(unit)) * _THOUSANDS[unit.replace("K", "k")]))
    except (ValueError, OverflowError):
        return 0


def _duration(text: str | None) -> float | None:
    if not text or "?" in text:
        return None
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part or 0)
    return _finite_or_none(seconds)


def _finite_or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _whole(number: float) -> int | None:
    """The number rounded up; None if it is nan or infinite."""
    number = float(number)
    return math.ceil(number) if abs(number) <= _LARGEST else None


def _text(value: object) -> str:
    """Text that a message and a log can carry, of any value."""
    try:
        text = str(value)
    except Exception:  # an author's own `__str__`, or an integer with more digits than Python prints
        text = f"<{type(value).__name__}>"
    return printable(text[:_LONGEST_TEXT])


def _plain(value: object) -> object:
    """The value as JSON and the channel have it."""
    try:
        made = _without_nan(msgspec.to_builtins(value, enc_hook=_of_numpy_or_text, str_keys=True))
        if len(msgspec.msgpack.encode(made)) <= _LONGEST_METRIC:
            return made
    except Exception:  # too large a number, a lone surrogate, a circle, or a method of the author's that fails
        return _text(value)
    return _text(made)


def _of_numpy_or_text(value: object) -> object:
    for convert in ("tolist", "item"):
        method = getattr(value, convert, None)
        if callable(method):
            return method()
    return _text(value)


def _without_nan(value: object) -> object:
    """The value with None in place of nan and infinite numbers."""
    if isinstance(value, float):
        return _finite_or_none(float(value))
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
