"""Aliases: names such as `sentiment@current` that lead to a model.

A move loads the new model first, writes the alias to disk, and then switches in one step: what has arrived before is
answered by the old model, what arrives later by the new one. Moves of one alias run one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from mlpkit.errors import ArgumentError, JournalError, TimeLimitExceeded
from mlpkit.log import logger
from mlpkit.serving.model import LoadedModelRecord
from mlpkit.serving.models import Models
from mlpkit.storage import decode_json, replace_file


class Alias(msgspec.Struct, frozen=True):
    """Where an alias leads.

    `previous` is the model that it named before. `since` is the time of the last move, in seconds since the epoch.
    """

    algorithm: str
    alias: str
    model_id: str
    previous: str | None = None
    since: float = 0.0

    @property
    def name(self) -> str:
        """What a prediction sends as `model_id`."""
        return alias_name(self.algorithm, self.alias)


_Announce = Callable[[Alias], Awaitable[None]]
"""Tells other replicas of a move, after the load and before the switch. If it raises, nothing is switched."""


class Aliases:
    """The aliases of a service, in the file `aliases.json` of its home.

    Used on one event loop.
    """

    def __init__(self, models: Models, home: Path, load_timeout: float) -> None:
        self._models = models
        self._file = home / "aliases.json"
        self._timeout = load_timeout
        self._aliases: dict[str, Alias] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._ended: dict[str, float] = {}
        self._writing = asyncio.Lock()
        self._problem = ""

    def open(self) -> None:
        """Reads what the last run has left.

        To be called before the models are opened.
        """
        try:
            aliases = decode_json(self._file.read_bytes(), list[Alias])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            self._problem = f"the aliases in {self._file} cannot be read, there are none now: {error}; make them again"
            logger.error(self._problem)
            return
        for alias in aliases:
            self._name(alias)

    def listed(self) -> list[Alias]:
        """All aliases by name."""
        return [alias for _, alias in sorted(self._aliases.items())]

    def warnings(self) -> list[str]:
        """What somebody should know, a sentence each."""
        missing = {model.model_id: model.reason for model in self._models.missing()} if self._aliases else {}
        unanswered = [
            f"alias [{alias.name}] leads to model [{alias.model_id}], which is not loaded: {missing[alias.model_id]}"
            for alias in self.listed()
            if alias.model_id in missing
        ]
        return [self._problem, *unanswered] if self._problem else unanswered

    def is_at_rest(self, name: str, since: float) -> bool:
        """Whether no move of the alias runs, or has ended since.

        `since` is in seconds of `time.monotonic`.
        """
        return not self._turns[name].locked() and self._ended.get(name, 0.0) < since

    async def move(self, algorithm: str, alias: str, model_id: str, announce: _Announce | None = None) -> Alias:
        """Makes an alias, or lets it lead to another model.

        Returns when predictions for the alias get the new model. The old one ends what it has, and is then unloaded if
        only the alias wanted it.

        Raises:
            AlgorithmNotFound, LoadFailed, ServiceStopping: as `Models.load`; the alias stays as it was.
            ArgumentError: the model is loaded with another algorithm, or a model has the name of the alias.
            JournalError: the home cannot be written; the alias stays as it was.
            TimeLimitExceeded: an earlier move of this alias has not ended.
        """
        name = alias_name(algorithm, alias)
        async with self._turn(name):
            if self._models.algorithm_of(name) is not None:
                raise ArgumentError(f"a model with the id [{name}] is loaded: an alias needs another name")
            before = self._aliases.get(name)
            previous = before.model_id if before is not None else None
            try:
                with self._models.claims.kept(model_id, name):
                    await self._models.load(algorithm, model_id, by_alias=True)
                    loaded = self._models.algorithm_of(model_id)
                    if loaded != algorithm:
                        raise ArgumentError(
                            f"model [{model_id}] is loaded with algorithm [{loaded}], not [{algorithm}]"
                        )
                    if before is not None and previous == model_id:
                        moved = before
                    else:
                        moved = Alias(algorithm, alias, model_id, previous, time.time())
                    if announce is not None:
                        await announce(moved)
                    if moved is not before:
                        await self._write(name, moved)
                        logger.info("alias {!r} leads to model {!r} (before: {!r})", name, model_id, previous)
            finally:
                # Whichever of the two is not named now.
                for unnamed in {model_id, previous} - {None}:
                    self._models.release(str(unnamed))
            return moved

    async def remove(self, algorithm: str, alias: str, announce: _Announce | None = None) -> None:
        """Removes an alias; one that does not exist is not an error.

        Raises:
            JournalError: the home cannot be written; the alias stays as it was.
            TimeLimitExceeded: a move of this alias has not ended.
        """
        name = alias_name(algorithm, alias)
        async with self._turn(name):
            before = self._aliases.get(name)
            if announce is not None:
                await announce(before or Alias(algorithm, alias, ""))
            if before is not None:
                await self._write(name, None)
                self._models.release(before.model_id)
                logger.info("alias {!r} is removed, it led to model {!r}", name, before.model_id)

    @contextlib.asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """Lets moves of one alias run one after the other."""
        turn = self._turns[name]
        try:
            await asyncio.wait_for(turn.acquire(), self._timeout)
        except asyncio.TimeoutError:
            raise TimeLimitExceeded(f"alias [{name}] is still being moved after {self._timeout:g} s") from None
        try:
            yield
        finally:
            self._ended[name] = time.monotonic()
            turn.release()

    async def _write(self, name: str, alias: Alias | None) -> None:
        """Writes an alias, or that it is gone, and then switches."""
        async with self._writing:
            others = [other for other in self._aliases.values() if other.name != name]
            content = msgspec.json.format(msgspec.json.encode([*others, *([alias] if alias is not None else [])]))
            try:
                await anyio.to_thread.run_sync(replace_file, self._file, content)
            except OSError as error:
                raise JournalError(
                    f"alias [{name}] stays as it was: {self._file} cannot be written ({error.strerror or error})"
                ) from error
            self._problem = ""
            if alias is not None:
                self._name(alias)
            else:
                del self._aliases[name]
                del self._models.claims.named[name]

    def _name(self, alias: Alias) -> None:
        self._aliases[alias.name] = alias
        self._models.claims.named[alias.name] = LoadedModelRecord(alias.algorithm, alias.model_id, by_alias=True)


def alias_name(algorithm: str, alias: str) -> str:
    """The whole name of an alias: `<algorithm>@<alias>`."""
    return f"{algorithm}@{alias}"
