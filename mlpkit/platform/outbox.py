"""What a replica notes on disk for the database: how trainings ended.

The notes are a SQLite file in the home: the trainings whose end the table has not heard of yet, and the models that the
table has asked this replica to load (which it may therefore unload).

A note is made before a job is accepted, and the end is written to the table when the job has ended. The note stays on
disk until then, so neither an outage of the database nor a restart of the service loses one. The words are `inactive`
(a success) and `error`; they replace only `training`.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import msgspec

from mlpkit.errors import DatabaseError, JournalError
from mlpkit.log import logger
from mlpkit.platform.database import Database
from mlpkit.training import Job

T = TypeVar("T")

_FIRST_RETRY = 0.5
_LONGEST_RETRY = 30.0
_LONGEST_WAIT = 3600.0
"""How many seconds after its end a training may wait for the platform to make its row."""


_SCHEMA = """
CREATE TABLE IF NOT EXISTS report (model_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS followed (model_id TEXT PRIMARY KEY, algorithm TEXT NOT NULL, path TEXT) WITHOUT ROWID;
"""


class FollowedModel(msgspec.Struct, frozen=True):
    """A model that the table wants, and where it comes from."""

    model_id: str
    algorithm: str
    path: str | None


class Notes:
    """The notes on disk. Every call reads or writes the file.

    Any thread may call.

    Raises:
        JournalError: the file cannot be read or written; from every method too.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "cluster.db"
        self._lock = threading.Lock()
        with self._translated():
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = sqlite3.connect(self._path, timeout=10.0, check_same_thread=False)
            self._path.chmod(0o600)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = FULL")
            self._file.executescript(_SCHEMA)

    def reports(self) -> list[str]:
        """The ids of the trainings whose end is still to be written."""
        with self._translated():
            return [model_id for (model_id,) in self._file.execute("SELECT model_id FROM report")]

    def add_report(self, model_id: str) -> bool:
        """Notes that this training's end must be written.

        False if that is noted already.
        """
        with self._translated(), self._file:
            return self._file.execute("INSERT OR IGNORE INTO report VALUES (?)", (model_id,)).rowcount == 1

    def remove_report(self, model_id: str) -> None:
        """Removes the note that a training's end must be written."""
        with self._translated(), self._file:
            self._file.execute("DELETE FROM report WHERE model_id = ?", (model_id,))

    def followed(self) -> list[FollowedModel]:
        """The models that the table has asked for."""
        with self._translated():
            rows = self._file.execute("SELECT model_id, algorithm, path FROM followed")
            return [FollowedModel(*row) for row in rows]

    def change_followed(self, add: Iterable[FollowedModel], remove: Iterable[str]) -> None:
        """Adds or replaces some models and removes others, in one step."""
        with self._translated(), self._file:
            self._file.executemany("DELETE FROM followed WHERE model_id = ?", [(model_id,) for model_id in remove])
            self._file.executemany(
                "INSERT OR REPLACE INTO followed VALUES (?, ?, ?)",
                [(model.model_id, model.algorithm, model.path) for model in add],
            )

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._file.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                raise JournalError(f"{self._path} cannot be read or written: {error}") from error


@dataclass(eq=False)
class _PendingStatus:
    """A training whose state must be written.

    Its beginning if `begun` is set, its end if `ended` is.

    `announced` is True once its beginning is in `begun`, or if the platform writes it.
    """

    model_id: str
    begun: Job | None = None
    ended: Job | None = None
    announced: bool = False
    pause: float = _FIRST_RETRY
    due: float = field(default_factory=time.monotonic)

    @property
    def has_work(self) -> bool:
        return self.begun is not None or self.ended is not None

    def postpone(self) -> None:
        self.due = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, _LONGEST_RETRY)


class StatusOutbox:
    """Writes the states of trainings into the table.

    Args:
        announce: make the row of a training when it is accepted (`MLPKIT_SYNC=lead`); else the platform makes it.
    """

    def __init__(self, database: Database, notes: Notes, *, announce: bool) -> None:
        self._database = database
        self._notes = notes
        self._announce = announce
        self._pending: dict[str, _PendingStatus] = {}
        self._disk = anyio.CapacityLimiter(1)
        self._changed = anyio.Event()

    async def open(self, job_of: Callable[[str], Job | None]) -> None:
        """Reads what an earlier service left.

        `job_of` gives the job with a model id.
        """
        for model_id in await self._on_disk(self._notes.reports):
            job = job_of(model_id)
            if job is None:
                await self._on_disk(partial(self._notes.remove_report, model_id))
            else:
                self._pending[model_id] = _PendingStatus(model_id, ended=job if job.has_ended else None, announced=True)

    @asynccontextmanager
    async def expected(self, job: Job) -> AsyncIterator[None]:
        """Surrounds a job's acceptance; its end will be written if accepted."""
        is_new = await self._on_disk(partial(self._notes.add_report, job.model_id))
        before = self._pending.get(job.model_id)
        report = self._pending[job.model_id] = _PendingStatus(job.model_id, announced=not self._announce)
        try:
            yield
        except Exception:
            # Not if the caller was cancelled (BaseException): the job may have been accepted even so.
            if before is not None:
                self._pending[job.model_id] = before
            elif self._pending.pop(job.model_id) and is_new:
                with anyio.CancelScope(shield=True):
                    await self._on_disk(partial(self._notes.remove_report, job.model_id))
            raise
        self._begin(report, job)
        self._look()

    def end(self, job: Job) -> None:
        """Says that a job has ended."""
        if (report := self._pending.get(job.model_id)) is not None:
            self._begin(report, job)
            report.ended = job
            report.due = time.monotonic()
            self._look()

    def waiting(self) -> int:
        """How many ends of trainings are not in the table yet."""
        return sum(report.ended is not None for report in self._pending.values())

    async def run(self) -> None:
        """Writes what there is to write, until it is cancelled."""
        while True:
            changed = self._changed
            await self.flush()
            dues = [report.due for report in self._pending.values() if report.has_work]
            with anyio.move_on_after(max(0.0, min(dues) - time.monotonic()) if dues else None):
                await changed.wait()

    async def flush(self, *, everything: bool = False) -> None:
        """Tries once what is due, or everything.

        Ends early if the database cannot be used.
        """
        now = time.monotonic()
        due = [report for report in self._pending.values() if report.has_work and (everything or report.due <= now)]
        for report in due:
            try:
                is_told = await self._tell(report)
            except DatabaseError:
                for waiting in due:
                    waiting.postpone()
                return
            if not is_told:
                report.postpone()

    async def _tell(self, report: _PendingStatus) -> bool:
        """Writes what there is; False if there is no row yet."""
        if report.begun is not None:
            await self._database.begin_training(report.begun.model_id, report.begun.algorithm)
            report.begun = None
        job = report.ended
        if job is None:
            return True
        has_row = await self._database.end_training(job.model_id, "inactive" if job.state == "completed" else "error")
        if not has_row and not _is_hopeless(job):
            return False
        if report.ended is job:
            await self._forget(report)
        return True

    async def _forget(self, report: _PendingStatus) -> None:
        report.ended = None
        if self._pending.get(report.model_id) is not report:
            return
        del self._pending[report.model_id]
        try:
            await self._on_disk(partial(self._notes.remove_report, report.model_id))
        except JournalError as error:
            logger.error("{}: the next start writes the end of training [{}] again", error, report.model_id)

    def _begin(self, report: _PendingStatus, job: Job) -> None:
        if not report.announced:
            report.begun = job
            report.announced = True

    def _look(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(call, limiter=self._disk)


def _is_hopeless(job: Job) -> bool:
    if job.ended is None or time.time() - job.ended < _LONGEST_WAIT:
        return False
    logger.warning(
        "the database has no row for training [{}], which is {}: nothing is written", job.model_id, job.state
    )
    return True
