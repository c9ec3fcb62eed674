"""What scripts count with prometheus_client, summed over all processes.

In prometheus_client's multiprocess mode each process writes its values into files of one folder. When a process has
ended, its counters and histograms are added to those of a process 0 that does not exist: the sums stay, the files go.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from mlpkit.log import logger
from mlpkit.metrics.shared import is_alive

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_KEPT = ("counter", "histogram", "summary")
"""Kinds whose values count on after their process has ended. A gauge has no value then."""


def metrics_folder(home: Path) -> Path:
    """Where the processes of a service write what they count."""
    return home / "metrics"


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
