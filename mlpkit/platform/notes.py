"""What a replica must remember of the platform's database, on disk.

A SQLite file in the home: the trainings whose end the table has not heard of yet, and the models that the table has
asked this replica to load (which it may therefore unload).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mlpkit.errors import JournalError

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
