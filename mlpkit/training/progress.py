"""How far a training job is: the `Progress` service of `train` handlers, and the snapshots that it sends.

A handler tells it (`track`, `stage`, `update`), or a progress bar does: lines that tqdm redraws on stderr are
understood, so that code with tqdm in it needs no change.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import length_hint
from typing import TypeVar

import msgspec

from mlpkit.injection import service
from mlpkit.log import printable

T = TypeVar("T")

_INTERVAL = 0.1
_LONGEST_TEXT = 1000
_LARGEST = 2**63 - 1
"""No larger number goes through the channel."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BAR = re.compile(
    r"(?:(?P<stage>.*?):?\s*)?(?P<percent>\d{1,3})%\|.*?\|\s*(?P<done>[\d.]+[kKMGTP]?)/(?P<total>[\d.]+[kKMGTP]?)\S*"
    r"\s*(?:\[[^<\]]*<(?P<left>[\d:?]+).*)?"
)
_COUNT = re.compile(r"(?:(?P<stage>.*?):\s+)?(?P<done>[\d.]+[kKMGTP]?)[^\s\d/]*\s*\[\d[\d:]*,.*\]")
_THOUSANDS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}


class Snapshot(msgspec.Struct, frozen=True):
    """How far a job is. `fraction` is 0 to 1; `seconds` since the start, `remaining` of the stage; None: not known."""

    stage: str = ""
    fraction: float | None = None
    done: int | None = None
    total: int | None = None
    message: str = ""
    metrics: dict[str, object] = msgspec.field(default_factory=dict)
    seconds: float = 0.0
    remaining: float | None = None

    def completed(self) -> Snapshot:
        """How it looks when the job is completed: all is done, and only the metrics are still worth knowing."""
        done = self.done if self.done == self.total else None
        return Snapshot(fraction=1.0, done=done, total=done, metrics=self.metrics, seconds=self.seconds, remaining=0.0)


@dataclass(eq=False)
class _Stage:
    name: str = ""
    tracked: bool = False
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
        if self.remaining is not None or not fraction:
            return self.remaining
        return (time.monotonic() - self.started) * (1 - fraction) / fraction


@service("train")
class Progress:
    """Tells the service, and so everybody who asks for the job's status, how far the job is.

    Args:
        send: gets a snapshot after a change, at most ten a second; the last one always. It is called in a thread.
    """

    def __init__(self, send: Callable[[Snapshot], None]) -> None:
        self._send, self._started = send, time.monotonic()
        self._stages = [_Stage()]
        self._message, self._metrics = "", dict[str, object]()
        self._lock, self._changed, self._closed = threading.Lock(), threading.Event(), threading.Event()
        self._sender: threading.Thread | None = None

    def track(self, items: Iterable[T], stage: str = "", total: float | None = None) -> Iterator[T]:
        """The items, one by one, counted as a stage; `total` where their number cannot be seen (rounded up)."""
        expected = length_hint(items) or None if total is None else _whole(total)
        with self.stage(stage) as current:
            current.tracked, current.done, current.total = True, 0, expected
            self._tell()
            for done, item in enumerate(items, 1):
                yield item
                current.done = done
                if not self._changed.is_set():
                    self._tell()

    @contextmanager
    def stage(self, name: str) -> Iterator[_Stage]:
        """Names what is done inside the block. Stages can be inside each other; the innermost is shown."""
        current = _Stage(_text(name) or self._stages[-1].name)
        self._stages.append(current)
        self._tell()
        try:
            yield current
        finally:
            self._stages.remove(current)
            self._tell()

    def update(self, fraction: float | None = None, message: str | None = None, **metrics: object) -> None:
        """Sets how much of the stage is done (0 to 1; what is outside is cut), a sentence, and metrics by name.

        Metrics are kept: the last value of each is in the job's record and in the model's manifest. A value that JSON
        does not have (a numpy scalar or array too) is turned into one that it has, in the last resort into its text.
        """
        with self._lock:
            if fraction is not None:
                self._stages[-1].fraction = max(0.0, min(1.0, float(fraction)))
            if message is not None:
                self._message = _text(message)
            self._metrics.update({_text(name): _plain(value) for name, value in metrics.items()})
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
        )

    def redrawn(self, line: str) -> None:
        """Takes over what a progress bar shows; other lines change nothing.

        Its title names the stage where the handler has named none; what `track` counts goes before what a bar shows.
        """
        bar, current = read_bar(line), self._stages[-1]
        if bar is None or current.tracked:
            return
        if len(self._stages) == 1 and bar.stage:
            current.name = _text(bar.stage)
        current.done, current.total = bar.done, bar.total
        current.fraction, current.remaining = bar.fraction, bar.remaining
        self._tell()

    def close(self) -> None:
        """Sends what has not been sent yet, and ends the thread."""
        if self._sender is not None:
            self._closed.set()
            self._changed.set()
            self._sender.join(5)

    def _tell(self) -> None:
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


def read_bar(line: str) -> Snapshot | None:
    """What a line of tqdm says (`fit:  45%|####5     | 45/100 [00:01<00:01, 50.0it/s]`), or None where it is none."""
    if len(line) > _LONGEST_TEXT:
        return None
    text = _ESCAPES.sub("", line).strip()
    bar = _BAR.fullmatch(text)
    if bar is not None:
        done, total = _number(bar["done"]), _number(bar["total"])
        return Snapshot(
            stage=(bar["stage"] or "").strip(),
            fraction=min(1.0, done / total) if total else int(bar["percent"]) / 100,
            done=done,
            total=total,
            remaining=_duration(bar["left"]),
        )
    count = _COUNT.fullmatch(text)
    return None if count is None else Snapshot(stage=(count["stage"] or "").strip(), done=_number(count["done"]))


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
    return seconds


def _whole(number: float) -> int | None:
    """The number rounded up; None for what is none, and for the endless total that some loaders tell."""
    number = float(number)
    return math.ceil(number) if abs(number) <= _LARGEST else None


def _text(value: object) -> str:
    """Text that a message and a log can carry, of any value."""
    return printable(str(value)[:_LONGEST_TEXT])


def _plain(value: object) -> object:
    """The value as JSON and the channel have it."""
    for convert in ("tolist", "item"):
        method = getattr(value, convert, None)
        if callable(method):
            value = method()
            break
    made = msgspec.to_builtins(value, enc_hook=str, str_keys=True)
    try:
        msgspec.msgpack.encode(made)
    except (OverflowError, UnicodeEncodeError):
        return _text(made)
    return made
