"""Which copies were compared with the store lately, and may be served without asking it again (MLPKIT_CACHE_TRUST).

The file `changes` in the cache's folder holds stamps of 8 random bytes. Whoever saves or deletes an object through the
cache, in whatever process, writes new stamps for it and for the folders that it is in, once the store has answered.
A comparison counts as long as the stamp that was there before it is still there. Names that share a stamp by chance
cost each other a question to the store, and no more.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlpkit.log import logger
from mlpkit.storage.store import write_at

_STAMPS = 512
_STAMP = 8
_MOST = 10_000


@dataclass(frozen=True)
class Question:
    """What the store is about to be asked, and the stamp at that time."""

    subject: str
    place: int
    stamp: bytes
    asked: float


class Trust:
    """The answers of the last `period` seconds in this process; none with a period of 0. Safe from every thread."""

    def __init__(self, file: Path, store: str, period: float) -> None:
        self._file, self._store, self._period = file, store, period
        self._lock = threading.Lock()
        self._answers: dict[str, tuple[Question, Path]] = {}
        # All of it is on the disk from the beginning, so that a disk that is full later is no obstacle.
        with self._opened() as changes:
            if os.fstat(changes).st_size < _STAMPS * _STAMP:
                write_at(changes, os.urandom(_STAMPS * _STAMP), 0)

    def known(self, subject: str) -> Path | None:
        """The copy that was the newest lately; None where the store must be asked."""
        if not self._period:
            return None
        answer = self._answers.get(subject)
        if answer is None:
            return None
        question, copy = answer
        if time.monotonic() - question.asked < self._period and self._stamp(question.place) == question.stamp:
            return copy
        with self._lock:
            self._answers.pop(subject, None)
        return None

    def asking(self, subject: str, path: str) -> Question:
        """Call it before the store is asked for a path, which ends with a slash for a folder."""
        place = self._place(path)
        return Question(subject, place, self._stamp(place) if self._period else b"", time.monotonic())

    def answered(self, question: Question, copy: Path) -> None:
        """The copy was the newest when the store was asked."""
        if self._period:
            with self._lock:
                if len(self._answers) >= _MOST:
                    self._answers.clear()
                self._answers[question.subject] = (question, copy)

    def changed(self, paths: Iterable[str]) -> None:
        """Says to all who use the cache that these objects are to be asked for; call it once the store has answered."""
        places = {self._place(each) for path in paths for each in _and_its_folders(path)}
        try:
            with self._opened() as changes:
                for place in places:
                    write_at(changes, os.urandom(_STAMP), place * _STAMP)
        except OSError as error:
            logger.warning("{} is out of date until MLPKIT_CACHE_TRUST is over ({})", self._file, error)

    def _stamp(self, place: int) -> bytes:
        try:
            with self._opened() as changes:
                return os.pread(changes, _STAMP, place * _STAMP)
        except OSError:
            # Equal to none: the store is asked, and the cache says in its own words what is wrong with the disk.
            return os.urandom(_STAMP)

    def _place(self, path: str) -> int:
        return zlib.crc32(f"{self._store}\n{path}".encode()) % _STAMPS

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _and_its_folders(path: str) -> Iterator[str]:
    yield path
    end = path.rfind("/")
    while end > 0:
        yield path[: end + 1]
        end = path.rfind("/", 0, end)
