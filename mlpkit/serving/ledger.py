"""Which models are loaded, on disk: so that a service that starts again loads them again."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from mlpkit.log import logger

_RETRY = 5.0
"""Seconds between two tries to write what could not be written."""


class Entry(msgspec.Struct, frozen=True):
    """A model that was asked for with `/load`. `extend` is JSON text.

    `given_up` says why it is not loaded any more: it ended its worker again and again.
    """

    algorithm: str
    model_id: str
    model_path: str | None = None
    extend: str = "null"
    given_up: str = ""


class Ledger:
    """A file that always holds one whole list. One that cannot be written is a warning, not the end of a load."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Entry] = {}
        self._given_up: dict[str, Entry] = {}
        self._disk = anyio.CapacityLimiter(1)
        self._problem = ""

    def read(self) -> list[Entry]:
        """The models of the last run, in the order in which they were loaded; none where the file cannot be read."""
        try:
            entries = msgspec.json.decode(self._path.read_bytes(), type=list[Entry])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            logger.error("the list of loaded models {} cannot be read, none is loaded again: {}", self._path, error)
            return []
        for entry in entries:
            self._put(entry)
        return [entry for entry in entries if not entry.given_up]

    async def add(self, entry: Entry) -> None:
        """Remembers a model that was loaded; it is on disk when this returns."""
        if self._entries.get(entry.model_id) == entry and not self._problem:
            # Loaded again after a restart: a thousand models would write the list a thousand times.
            return
        self._put(entry)
        await self._write()

    async def remove(self, model_id: str) -> None:
        """Forgets a model that was unloaded."""
        self._given_up.pop(model_id, None)
        if self._entries.pop(model_id, None) is not None:
            await self._write()

    async def give_up(self, entry: Entry, why: str) -> None:
        """Remembers that the model is not to be loaded again, until somebody asks for it."""
        self._put(msgspec.structs.replace(entry, given_up=why))
        await self._write()

    async def keep(self) -> None:
        """Writes again what could not be written, once there is room; never returns."""
        while True:
            await asyncio.sleep(_RETRY)
            if self._problem:
                await self._write()

    def warnings(self) -> list[str]:
        """What somebody should know, a sentence each: models that were given up, and a file that cannot be written."""
        given_up = [
            f"model [{entry.model_id}] was given up ({entry.given_up}): load it again, or unload it"
            for entry in self._given_up.values()
        ]
        return given_up + ([self._problem] if self._problem else [])

    def _put(self, entry: Entry) -> None:
        self._entries[entry.model_id] = entry
        self._given_up.pop(entry.model_id, None)
        if entry.given_up:
            self._given_up[entry.model_id] = entry

    async def _write(self) -> None:
        content = msgspec.json.encode(list(self._entries.values()))
        problem = ""
        try:
            await anyio.to_thread.run_sync(replace_file, self._path, content, limiter=self._disk)
        except OSError as error:
            problem = (
                f"the list of loaded models {self._path} cannot be written ({error.strerror or error}): until it can, "
                "a restart loads what was loaded before; free some space, or check the folder"
            )
        if problem and problem != self._problem:
            logger.error(problem)
        elif self._problem and not problem:
            logger.info("the list of loaded models {} is written again", self._path)
        self._problem = problem


def replace_file(path: Path, content: bytes) -> None:
    """Puts a whole file in place in one step; it is on the disk when this returns.

    Raises:
        OSError: the file is as it was.
    """
    beside = path.with_suffix(".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
