"""The jobs on disk: a SQLite file in the home.

One service at a time may use it. Every write is a transaction of its own, in WAL mode with `synchronous=FULL`: a job
that `/train` has accepted is still there after a `kill -9` and after a power cut. A job costs three such writes, so the
slower setting does not matter.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import msgspec

from mlpkit.errors import JournalError, SettingsError
from mlpkit.training.events import Event, EventKind, job_data
from mlpkit.training.job import REQUEST_FIELDS, Job

VERSION = 2
"""Of the schema; stored in the file as `user_version`. Version 1 had the request inside the record."""

_JOB_TABLE = """
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
_REQUEST_TABLE = "CREATE TABLE request (model_id TEXT PRIMARY KEY, content TEXT NOT NULL);"
"""A table of its own, so that neither a list of jobs nor a new state reads or writes requests of many megabytes."""
_EVENT_TABLES = """
CREATE TABLE IF NOT EXISTS event (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    model_id TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS event_by_model ON event (model_id, number);
"""
"""What has happened to jobs and models; only the newest are kept. An older mlpkit does not look at it."""
EVENTS_KEPT = 10_000
_READ_TOGETHER = 500
_CLAIM_SECONDS = 2.0
"""How long the home may still be held: a service that was just killed may have been starting a process."""
_LONGEST_WAIT = 10.0
_decoder = msgspec.json.Decoder(Job)
_request_decoder = msgspec.json.Decoder(tuple[str, str, str])


@dataclass(frozen=True)
class JobFilter:
    """Which jobs are asked for; None asks for all.

    `since` and `until` are about the job's creation, in seconds since the epoch; `find` is a part of its model id.
    """

    state: str | None = None
    algorithm: str | None = None
    since: float | None = None
    until: float | None = None
    find: str | None = None

    def clause(self) -> tuple[str, tuple[object, ...]]:
        """The condition in SQL, and its values."""
        conditions = (
            ("state = ?", self.state),
            ("algorithm = ?", self.algorithm),
            ("json_extract(record, '$.created') >= ?", self.since),
            ("json_extract(record, '$.created') < ?", self.until),
            ("instr(lower(model_id), lower(?))", self.find),
        )
        used = [(text, value) for text, value in conditions if value is not None]
        return " AND ".join(["true", *(text for text, _ in used)]), tuple(value for _, value in used)


class Journal:
    """All jobs of a home, in the order of their acceptance.

    Every call goes to the disk; any thread may call.

    Raises:
        SettingsError: another service uses this home, or the file was written by a newer mlpkit.
        JournalError: the file cannot be read or written; from every method too.
    """

    def __init__(self, home: Path) -> None:
        self.path = home / "jobs.db"
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._lock = filelock.FileLock(home / "service.lock", timeout=_CLAIM_SECONDS, thread_local=False)
        with self._translated("opened"):
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._claim(home)
            try:
                self._writer = self._connect()
                self._reader = self._connect()
                self._prepare()
            except BaseException:
                self._lock.release()
                raise

    def add(self, job: Job) -> Event:
        """Puts a job at the end, replacing one of its id.

        Like `update`, it gives the event that tells of it.
        """
        with self._transaction() as writer:
            _delete(writer, [job.model_id])
            writer.execute(
                "INSERT INTO job (model_id, algorithm, state, record) VALUES (?, ?, ?, ?)",
                (job.model_id, job.algorithm, job.state, _record(job)),
            )
            writer.execute("INSERT INTO request VALUES (?, ?)", (job.model_id, _request(job)))
            return _add_event(writer, "job", job.model_id, job_data(job))

    def update(self, job: Job) -> Event:
        """Replaces what is known of the job, but not its request."""
        with self._transaction() as writer:
            writer.execute(
                "UPDATE job SET state = ?, record = ? WHERE model_id = ?", (job.state, _record(job), job.model_id)
            )
            return _add_event(writer, "job", job.model_id, job_data(job))

    def add_events(self, noted: Iterable[tuple[EventKind, str, bytes]]) -> list[Event]:
        """Puts events at the end, given as kind, model id and data."""
        with self._transaction() as writer:
            return [_add_event(writer, kind, model_id, data) for kind, model_id, data in noted]

    def event_numbers(self) -> tuple[int, int]:
        """The numbers of the oldest and the newest event, or 0."""
        rows = self._rows("SELECT coalesce(min(number), 0), coalesce(max(number), 0) FROM event", ())
        oldest, newest = rows[0]
        return oldest, newest

    def events_after(self, number: int, model_id: str | None = None) -> list[Event]:
        """The next 500 events, if asked those of one model id."""
        chosen = "" if model_id is None else "AND model_id = ?"
        values = (number,) if model_id is None else (number, model_id)
        rows = self._rows(
            f"SELECT number, kind, model_id, data FROM event WHERE number > ? {chosen} "  # nosec B608  # noqa: S608 - our own text
            f"ORDER BY number LIMIT {_READ_TOGETHER}",
            values,
        )
        return [Event(number, kind, model_id, data.encode()) for number, kind, model_id, data in rows]

    def job(self, model_id: str) -> Job | None:
        """The job with this model id."""
        found = self._with_requests("WHERE model_id = ?", (model_id,))
        return found[0] if found else None

    def summary(self, model_id: str) -> Job | None:
        """The job with this model id, without its data, parameters and extend."""
        found = self._select("WHERE model_id = ?", (model_id,))
        return found[0] if found else None

    def jobs(self, limit: int | None = None, offset: int = 0, chosen: JobFilter | None = None) -> list[Job]:
        """Jobs without their requests, newest first."""
        where, values = (chosen or JobFilter()).clause()
        return self._select(
            f"WHERE {where} ORDER BY number DESC LIMIT ? OFFSET ?", (*values, -1 if limit is None else limit, offset)
        )

    def count(self, chosen: JobFilter | None = None) -> int:
        """How many jobs there are."""
        where, values = (chosen or JobFilter()).clause()
        rows = self._rows(f"SELECT count(*) FROM job WHERE {where}", values)  # nosec B608  # noqa: S608 - our own text
        return int(rows[0][0])

    def unfinished(self) -> list[Job]:
        """The jobs that have not ended, oldest first."""
        return self._with_requests("WHERE state IN ('init', 'training') ORDER BY number", ())

    def oldest_ended(self, limit: int) -> list[Job]:
        """The jobs that have ended, oldest first, without data, parameters and extend."""
        # Without the index on the state, which would sort all of them.
        return self._select("WHERE +state NOT IN ('init', 'training') ORDER BY number LIMIT ?", (limit,))

    def last_starts(self) -> dict[str, float]:
        """When a job of each app was last started, by `app_id`."""
        rows = self._rows(
            "SELECT coalesce(json_extract(record, '$.app_id'), ''), max(json_extract(record, '$.started')) FROM job "
            "WHERE json_extract(record, '$.started') IS NOT NULL GROUP BY 1",
            (),
        )
        return dict(rows)

    def remove(self, model_ids: Iterable[str]) -> None:
        """Removes jobs that have ended."""
        with self._transaction() as writer:
            _delete(writer, model_ids)

    def close(self) -> None:
        """Closes the file, and releases the home."""
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()
        self._lock.release()

    def _select(self, clause: str, values: tuple[object, ...]) -> list[Job]:
        rows = self._rows(f"SELECT record FROM job {clause}", values)  # nosec B608  # noqa: S608 - our own text
        return [self._decoded(record) for (record,) in rows]

    def _with_requests(self, clause: str, values: tuple[object, ...]) -> list[Job]:
        rows = self._rows(f"SELECT record, content FROM job JOIN request USING (model_id) {clause}", values)  # nosec B608  # noqa: S608 - our own text
        return [self._decoded(record, content) for record, content in rows]

    def _rows(self, query: str, values: tuple[object, ...]) -> list[Any]:
        with self._reading, self._translated("read"):
            return self._reader.execute(query, values).fetchall()

    def _decoded(self, record: str, content: str | None = None) -> Job:
        with self._translated("read"):
            job = _decoder.decode(record)
            if content is None:
                return job
            request = zip(REQUEST_FIELDS, _request_decoder.decode(content), strict=True)
            return msgspec.structs.replace(job, **dict(request))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing, self._translated("written"), self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            yield self._writer

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
        with self._transaction() as writer:
            for statement in _EVENT_TABLES.split(";"):
                writer.execute(statement)
        if version < VERSION:
            with self._transaction() as writer:
                for statement in (_JOB_TABLE if version == 0 else "").split(";"):
                    writer.execute(statement)
                writer.execute(_REQUEST_TABLE)
                _move_requests(writer)
                writer.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            full = "disk is full" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            advice = ": free some space on that disk" if full else ""
            raise JournalError(f"the journal {self.path} cannot be {what}: {error}{advice}") from error


def _move_requests(writer: sqlite3.Connection) -> None:
    """Moves the requests out of the records of version 1.

    One job at a time, because requests can be long.
    """
    for (number,) in writer.execute("SELECT number FROM job").fetchall():
        (record,) = writer.execute("SELECT record FROM job WHERE number = ?", (number,)).fetchone()
        job = _decoder.decode(record)
        writer.execute("UPDATE job SET record = ? WHERE number = ?", (_record(job), number))
        writer.execute("INSERT INTO request VALUES (?, ?)", (job.model_id, _request(job)))


def _add_event(writer: sqlite3.Connection, kind: EventKind, model_id: str, data: bytes) -> Event:
    values = (kind, model_id, data.decode())
    number = writer.execute("INSERT INTO event (kind, model_id, data) VALUES (?, ?, ?)", values).lastrowid
    assert number is not None
    writer.execute("DELETE FROM event WHERE number <= ?", (number - EVENTS_KEPT,))
    return Event(number, kind, model_id, data)


def _delete(writer: sqlite3.Connection, model_ids: Iterable[str]) -> None:
    for model_id in model_ids:
        writer.execute("DELETE FROM job WHERE model_id = ?", (model_id,))
        writer.execute("DELETE FROM request WHERE model_id = ?", (model_id,))


def _record(job: Job) -> str:
    return msgspec.json.encode(job.without_request()).decode()


def _request(job: Job) -> str:
    return msgspec.json.encode([getattr(job, name) for name in REQUEST_FIELDS]).decode()
