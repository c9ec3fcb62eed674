"""Numbers that all processes of a service count, each in its file.

A file has one float for each number, always at the same place, so that nobody reads half of one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from array import array
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

_PREFIX = "numbers-"


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
