"""Which models are loaded, on disk: so that a service that starts again loads them again."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from loguru import logger


class Entry(msgspec.Struct, frozen=True):
    """A model that was asked for with `/load`. `extend` is JSON text."""

    algorithm: str
    model_id: str
    model_path: str | None = None
    extend: str = "null"


class Ledger:
    """A file that always holds one whole list: it is written beside and put in place in one step."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Entry] = {}

    def read(self) -> list[Entry]:
        """The models of the last run, in the order in which they were loaded; none where the file cannot be read."""
        try:
            entries = msgspec.json.decode(self._path.read_bytes(), type=list[Entry])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            logger.error("the list of loaded models {} cannot be read, none is loaded again: {}", self._path, error)
            return []
        self._entries = {entry.model_id: entry for entry in entries}
        return entries

    def add(self, entry: Entry) -> None:
        """Remembers a model that was loaded."""
        self._entries[entry.model_id] = entry
        self._write()

    def remove(self, model_id: str) -> None:
        """Forgets a model that was unloaded."""
        if self._entries.pop(model_id, None) is not None:
            self._write()

    def _write(self) -> None:
        beside = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(msgspec.json.encode(list(self._entries.values())))
            os.replace(beside, self._path)
        except OSError as error:
            logger.error("the list of loaded models {} cannot be written: {}", self._path, error)
