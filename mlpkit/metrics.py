"""What is counted: values by size, and numbers of all processes.

Two ways bring the numbers of several processes together, each with files in one folder:

- What mlpkit counts itself, such as the operations of the store (`SharedNumbers`). A file has one float for each
  number, always at the same place, so that nobody reads half of one.
- What scripts count with prometheus_client in its multiprocess mode (`AuthorMetrics`). When a process has ended, its
  counters and histograms are added to those of a process 0 that does not exist: the sums stay, the files go.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from mlpkit.log import logger

MOMENTS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper limits in seconds of the parts of a prediction."""
HOURS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0)
"""Upper limits in seconds of what may take hours, such as a training."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper limits of a number of things."""
_PREFIX = "numbers-"
_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_KEPT = ("counter", "histogram", "summary")
"""Kinds whose values count on after their process has ended. A gauge has no value then."""


class Histogram:
    """How many values there were up to each limit, and their sum."""

    __slots__ = ("counts", "limits", "sum")

    def __init__(self, limits: Sequence[float]) -> None:
        self.limits = limits
        self.counts = [0] * (len(limits) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.limits, value)] += 1
        self.sum += value

    def __add__(self, other: Histogram) -> Histogram:
        both = Histogram(self.limits)
        both.counts = [own + others for own, others in zip(self.counts, other.counts, strict=True)]
        both.sum = self.sum + other.sum
        return both

    def lines(self) -> list[tuple[str, float]]:
        """The counts as Prometheus has them: each includes those before."""
        total = 0
        lines = []
        for limit, count in zip((*map(str, self.limits), "+Inf"), self.counts, strict=True):
            total += count
            lines.append((limit, float(total)))
        return lines

    def quantile(self, share: float) -> float | None:
        """The value below which this share is; None if there are none."""
        found = quantile(self.limits, self.counts, share)
        return None if math.isnan(found) else found


def quantile(limits: Sequence[float], counts: Sequence[int], share: float) -> float:
    """The value below which this share of values is.

    It is nan if there is no value. Between the limits of a bucket it is interpolated, as Prometheus does it.
    """
    wanted = share * sum(counts)
    if not wanted:
        return float("nan")
    below = 0.0
    for number, count in enumerate(counts[:-1]):
        if below + count >= wanted:
            lower = limits[number - 1] if number else 0.0
            return lower + (limits[number] - lower) * (wanted - below) / count
        below += count
    return limits[-1]


def metrics_folder(home: Path) -> Path:
    """Where the processes of a service write what they count."""
    return home / "metrics"


class SharedNumbers:
    """The numbers of this process, from 0 on; any thread may add.

    Nothing is written if there is no such folder: no service of this home runs here, so nobody would read it.
    """

    def __init__(self, folder: Path, length: int) -> None:
        self._folder = folder
        self._values = array("d", bytes(8 * length))
        self._lock = threading.Lock()
        self._file: int | None = None

    def add(self, changes: Mapping[int, float]) -> None:
        """Adds to the numbers at these places."""
        with self._lock:
            for place, amount in changes.items():
                self._values[place] += amount
            # What cannot be counted, as on a full disk, must not hold up what is counted.
            with contextlib.suppress(OSError):
                # A service that starts removes the files of the last one.
                if self._file is None or not os.fstat(self._file).st_nlink:
                    self._open()
                os.pwrite(self._file or 0, self._values, 0)

    def _open(self) -> None:
        name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        file = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        if self._file is not None:
            os.close(self._file)
        self._file = file


class SumOfNumbers:
    """The sum of what all processes have counted; any thread may ask."""

    def __init__(self, folder: Path, length: int) -> None:
        self._folder = folder
        self._length = length
        self._lock = threading.Lock()
        self._ended = [0.0] * length

    def total(self) -> list[float]:
        """The sums.

        Files of processes that have ended are read for the last time.
        """
        with self._lock:
            total = list(self._ended)
            for file in self._folder.glob(f"{_PREFIX}*"):
                # Asked before the file is read: a process may count and end in between.
                alive = is_alive(int(file.name.split("-")[1]))
                values = array("d", file.read_bytes())
                if len(values) != self._length:
                    continue
                total = [sum(both) for both in zip(total, values, strict=True)]
                if not alive:
                    self._ended = [sum(both) for both in zip(self._ended, values, strict=True)]
                    file.unlink()
            return total


def numbers_of_process(folder: Path, length: int) -> SharedNumbers:
    """The numbers of this process in a folder, the same for all."""
    return _numbers_of(folder, length, os.getpid())


@lru_cache(maxsize=64)
def _numbers_of(folder: Path, length: int, process: int) -> SharedNumbers:
    return SharedNumbers(folder, length)


def is_alive(process: int) -> bool:
    """Whether there is a process with this id."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def metrics_environment(home: Path) -> dict[str, str]:
    """What makes prometheus_client in a child write its values for the service.

    Nothing, if the operator uses that mode otherwise.
    """
    return {} if os.environ.get(_VARIABLE) else {_VARIABLE: str(metrics_folder(home))}


class AuthorMetrics:
    """The metrics of all scripts' processes; any thread may call."""

    def __init__(self, home: Path) -> None:
        self._folder = metrics_folder(home)
        self._lock = threading.Lock()

    def open(self) -> None:
        """Begins at 0, as all counters of a service do."""
        shutil.rmtree(self._folder, ignore_errors=True)
        # A full disk must not stop the service: it has no such metrics then.
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700)

    def collect(self) -> Iterator[Any]:
        """The metric families, without names that are mlpkit's own."""
        from prometheus_client import multiprocess

        collector: Any = multiprocess.MultiProcessCollector
        with self._lock:
            if not any(self._folder.glob("*.db")):
                return
            families = list(collector(None, str(self._folder)).collect())
        yield from (family for family in families if not family.name.startswith("mlpkit_"))

    def fold(self) -> None:
        """Adds what processes that have ended have counted to process 0."""
        with self._lock:
            for file in self._folder.glob("*_*.db"):
                kind, _, process = file.stem.rpartition("_")
                if process.isdigit() and int(process) and not is_alive(int(process)):
                    if kind in _KEPT:
                        self._add(file, file.with_name(f"{kind}_0.db"))
                    file.unlink(missing_ok=True)

    def _add(self, file: Path, target: Path) -> None:
        from prometheus_client import mmap_dict

        # It has no types.
        mapped: Any = mmap_dict.MmapedDict
        try:
            values = list(mapped.read_all_values_from_file(str(file)))
            total = mapped(str(target))
            for key, value, moment, _ in values:
                total.write_value(key, total.read_value(key)[0] + value, moment)
            total.close()
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            logger.debug("the metrics of a process that was killed cannot be read: {}", error)
