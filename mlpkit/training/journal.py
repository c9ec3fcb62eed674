"""The jobs on disk: a SQLite file in the home, which one service at a time may use.

Every write is a transaction of its own, in WAL mode with `synchronous=FULL`: what `train` has answered is there after a
`kill -9` and after a power cut too. A job costs three such writes, so the slower setting is not felt.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import msgspec

from mlpkit.errors import JournalError, SettingsError
from mlpkit.training.job import Job

VERSION = 1
"""Of the schema; stored in the file as `user_version`."""

_SCHEMA = """
CREATE TABLE job (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    model_id TEXT NOT NULL UNIQUE,
    algorithm TEXT NOT NULL,
    state TEXT NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX job_by_state ON job (state, number);
CREATE INDEX job_by_algorithm ON job (algorithm, number);
"""
_CLAIM_SECONDS = 2.0
"""How long the home may still be held: a service that was just killed may have been starting a process."""
_LONGEST_WAIT = 10.0
_decoder = msgspec.json.Decoder(Job)


class Journal:
    """All jobs of a home, in the order in which they were accepted. Every call goes to the disk; any thread may call.

    Raises:
        SettingsError: another service uses this home, or the file was written by a newer mlpkit.
        JournalError: the file cannot be read or written; from every method too.
    """

    def __init__(self, home: Path) -> None:
        self.path = home / "jobs.db"
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._lock = filelock.FileLock(home / "service.lock", timeout=_CLAIM_SECONDS, thread_local=False)
        with self._translated("opened"):
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._claim(home)
            try:
                self._writer, self._reader = self._connect(), self._connect()
                self._prepare()
            except BaseException:
                self._lock.release()
                raise

    def add(self, job: Job) -> None:
        """Puts a job behind all others; takes the place of an ended one with the same model id."""
        with self._writing, self._translated("written"), self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.execute("DELETE FROM job WHERE model_id = ?", (job.model_id,))
            self._writer.execute(
                "INSERT INTO job (model_id, algorithm, state, record) VALUES (?, ?, ?, ?)",
                (job.model_id, job.algorithm, job.state, _text(job)),
            )

    def update(self, job: Job) -> None:
        """Replaces the job's record; the job keeps its place."""
        with self._writing, self._translated("written"), self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.execute(
                "UPDATE job SET state = ?, record = ? WHERE model_id = ?", (job.state, _text(job), job.model_id)
            )

    def job(self, model_id: str) -> Job | None:
        """The job with this model id."""
        found = self._select("WHERE model_id = ?", (model_id,))
        return found[0] if found else None

    def jobs(
        self, limit: int | None = None, offset: int = 0, *, state: str | None = None, algorithm: str | None = None
    ) -> list[Job]:
        """Jobs, newest first: all of them, or those in one state, or of one algorithm."""
        wanted = {name: value for name, value in (("state", state), ("algorithm", algorithm)) if value is not None}
        where = " AND ".join(["true", *(f"{name} = ?" for name in wanted)])
        values = (*wanted.values(), -1 if limit is None else limit, offset)
        return self._select(f"WHERE {where} ORDER BY number DESC LIMIT ? OFFSET ?", values)

    def unfinished(self) -> list[Job]:
        """The jobs that have not ended, oldest first."""
        return self._select("WHERE state IN ('init', 'training') ORDER BY number", ())

    def oldest_ended(self, limit: int) -> list[Job]:
        """The jobs that have ended, in the order of their acceptance."""
        # Without the index on the state, which would sort all of them.
        return self._select("WHERE +state NOT IN ('init', 'training') ORDER BY number LIMIT ?", (limit,))

    def remove(self, model_ids: Iterable[str]) -> None:
        """Forgets jobs that have ended."""
        with self._writing, self._translated("written"), self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.executemany("DELETE FROM job WHERE model_id = ?", [(each,) for each in model_ids])

    def close(self) -> None:
        """Closes the file, and lets go of the home."""
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()
        self._lock.release()

    def _select(self, clause: str, values: tuple[object, ...]) -> list[Job]:
        with self._reading, self._translated("read"):
            rows = self._reader.execute(f"SELECT record FROM job {clause}", values).fetchall()  # nosec B608  # noqa: S608 - our own text
            return [_decoder.decode(record) for (record,) in rows]

    def _claim(self, home: Path) -> None:
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise SettingsError(
                f"the home {home} is in use by another service: stop that one, or set MLPKIT_HOME to another folder"
            ) from None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_LONGEST_WAIT, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _prepare(self) -> None:
        self.path.chmod(0o600)
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise SettingsError(
                f"{self.path} was written by a newer mlpkit (version {version}, this one knows {VERSION})"
            )
        if version == 0:
            self._writer.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            full = "disk is full" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            advice = ": free some space on that disk" if full else ""
            raise JournalError(f"the journal {self.path} cannot be {what}: {error}{advice}") from error


def _text(job: Job) -> str:
    return msgspec.json.encode(job).decode()
