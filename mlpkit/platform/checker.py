"""Loads and unloads models until this replica has what the table wants.

Every period one query asks when each algorithm's models changed last. The rows are read only if the answer differs
from the one before. Loads and unloads run in the background, so that a slow load does not delay the next look. Models
that `/load` loaded here stay as they are until the table wants them. While the database cannot be reached nothing
changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import anyio
import anyio.to_thread

from mlpkit.errors import DatabaseError, JournalError, MlpkitError, ServiceStopping
from mlpkit.log import level_of_failure, logger, with_request_id
from mlpkit.platform.aliases import AliasFollower
from mlpkit.platform.database import Change, Database
from mlpkit.platform.gate import GateCheck
from mlpkit.platform.notes import FollowedModel, Notes
from mlpkit.platform.rows import RowProblems, checked
from mlpkit.serving import Models

Start = Callable[..., object]
"""Starts a coroutine function with its arguments as a task."""

_AT_ONCE = 8
_LONGEST_RETRY = 300.0
_SAME_SECOND = 1.0
"""How many seconds after a change the rows are read again: a second change may have the same time."""


@dataclass(eq=False)
class DesiredModel:
    """A model that the table wants, and its state here.

    `since` is when this replica heard of it, `next_try` when it tries again after a failure; both are in seconds since
    the epoch. `loaded_from` is the path that the model was loaded from, None if that is not known.
    """

    model_id: str
    algorithm: str
    path: str | None
    wanted: bool = True
    since: float = 0.0
    loaded_from: str | None = None
    error: str = ""
    failures: int = 0
    due: float = 0.0
    busy: bool = False

    @property
    def next_try(self) -> float | None:
        """The time of the next try after a failure, otherwise None."""
        return time.time() + max(0.0, self.due - time.monotonic()) if self.error else None

    @property
    def has_moved(self) -> bool:
        """Whether the table names another path than was loaded."""
        return self.loaded_from is not None and self.loaded_from != (self.path or "")

    def change(self, *, wanted: bool, algorithm: str, path: str | None) -> None:
        """Takes note of what the table says now."""
        if (wanted, algorithm, path) != (self.wanted, self.algorithm, self.path):
            self.wanted = wanted
            self.algorithm = algorithm
            self.path = path
            self.since = time.time()
            # Only its own change: a model that fails keeps its pause if other rows change.
            self.due = 0.0
            self.failures = 0


@dataclass(frozen=True)
class _Seen:
    """What was last read of an algorithm's changes.

    `since` is when this change was seen first, on the monotonic clock.
    """

    change: Change
    since: float
    is_settled: bool


class Checker:
    """Follows the table, for each algorithm.

    Used on one event loop.
    """

    def __init__(
        self,
        database: Database,
        notes: Notes,
        models: Models,
        aliases: AliasFollower,
        algorithms: Iterable[str],
        gate: GateCheck,
        period: float,
    ) -> None:
        self._database = database
        self._notes = notes
        self._models = models
        self._aliases = aliases
        self._algorithms = list(algorithms)
        self._gate = gate
        self._period = period
        self._seen: dict[str, _Seen] = {}
        self._desired: dict[str, DesiredModel] = {}
        self._noted: dict[str, FollowedModel] = {}
        self._limiter = anyio.CapacityLimiter(_AT_ONCE)
        self._starting = "the models have not been compared with the database yet"
        self._scope = anyio.CancelScope()
        self.row_problems = RowProblems()
        self.looked: float | None = None
        """When the database was asked last and answered, in seconds since the epoch."""

    def problems(self) -> list[str]:
        """Why this replica may lack models that others have.

        Empty once what was read first has been done.
        """
        return [self._starting] if self._starting else []

    def desired_models(self) -> list[DesiredModel]:
        """The models that the table wants, or has just stopped wanting."""
        return list(self._desired.values())

    def disown(self, model_id: str) -> None:
        """Notes that the table no longer wants this model."""
        if (desired := self._desired.get(model_id)) is not None:
            desired.change(wanted=False, algorithm=desired.algorithm, path=desired.path)

    async def run(self) -> None:
        """Looks and acts every period, until `stop`."""
        with self._scope:
            await self._remember()
            async with anyio.create_task_group() as tasks:
                begun = await self._pass(tasks.start_soon)
                tasks.start_soon(self._end_start, begun)
                while True:
                    await anyio.sleep(self._period)
                    await self._pass(tasks.start_soon)

    def stop(self) -> None:
        """Starts no more loads and unloads, and does not wait for any."""
        self._scope.cancel()

    async def _remember(self) -> None:
        """Starts with what the last run wanted, until the database answers."""
        try:
            followed = await anyio.to_thread.run_sync(self._notes.followed)
        except JournalError as error:
            logger.error("{}: which models earlier runs loaded for the database is not known", error)
            return
        self._noted = {model.model_id: model for model in followed}
        self._models.claims.in_table = frozenset(self._noted)
        for model in followed:
            if model.algorithm in self._algorithms:
                self._desired[model.model_id] = DesiredModel(
                    model.model_id, model.algorithm, model.path, since=time.time(), loaded_from=model.path or ""
                )

    async def _end_start(self, begun: list[anyio.Event]) -> None:
        self._starting = f"{len(begun)} models that the database wants are being loaded"
        for done in begun:
            await done.wait()
        self._starting = ""

    async def _pass(self, start: Start) -> list[anyio.Event]:
        """Reads the table once, and starts what must change.

        Gives an event for each model that is being changed.
        """
        try:
            await self._look()
            self.looked = time.time()
            await self._write_notes()
            await self._aliases.look()
        except DatabaseError:
            pass  # The database has logged it, and lists it in its problems.
        except JournalError as error:
            logger.error("{}: after a restart this replica may not know which models to unload", error)
        except Exception:
            logger.exception("the models could not be compared with the database")
        return [*self._begin(start), *self._aliases.begin(start)]

    async def _look(self) -> None:
        changes = await self._database.changes(self._algorithms)
        now = time.monotonic()
        seen = {name: self._see(name, changes[name], now) for name in self._algorithms if name in changes}
        stale = [name for name, change in seen.items() if change is not self._seen.get(name)]
        if not stale:
            return
        rows = await self._database.wanted(stale)
        foreign = await self._database.foreign(self._algorithms)
        models = checked(rows, stale, self.row_problems)
        self.row_problems.update_foreign(foreign, rows, self._algorithms)
        for model in models.values():
            desired = self._desired.setdefault(model.model_id, DesiredModel(model.model_id, "", None))
            desired.change(wanted=True, algorithm=model.algorithm, path=model.path)
        for desired in self._desired.values():
            if desired.algorithm in stale and desired.model_id not in models:
                desired.change(wanted=False, algorithm=desired.algorithm, path=desired.path)
        wanted = (desired.model_id for desired in self._desired.values() if desired.wanted)
        self._models.claims.in_table = frozenset(wanted)
        self._seen.update(seen)

    def _see(self, name: str, change: Change, now: float) -> _Seen:
        """What to remember of an algorithm's changes.

        The same object as before if there is nothing to read.
        """
        before = self._seen.get(name)
        if before is None or before.change != change:
            return _Seen(change, now, is_settled=False)
        if before.is_settled:
            return before
        return _Seen(change, before.since, is_settled=now - before.since >= _SAME_SECOND)

    def _begin(self, start: Start) -> list[anyio.Event]:
        begun = []
        for desired in list(self._desired.values()):
            if desired.busy or time.monotonic() < desired.due:
                continue
            if (
                desired.wanted
                and self._models.algorithm_of(desired.model_id) == desired.algorithm
                and not desired.has_moved
                and not self._models.is_wanted_by_aliases_only(desired.model_id)
            ):
                # From now on the table decides about a model that `/load` loaded here.
                desired.loaded_from = desired.path or ""
                desired.error = ""
                desired.failures = 0
            else:
                desired.busy = True
                begun.append(anyio.Event())
                start(self._change, desired, begun[-1])
        return begun

    async def _change(self, desired: DesiredModel, done: anyio.Event) -> None:
        try:
            async with self._limiter:
                with with_request_id("checker"):
                    await self._fulfil(desired)
        except ServiceStopping:
            pass
        except MlpkitError as error:
            self._note_failure(desired, str(error))
        except Exception as error:
            logger.exception("model {!r} could not be made what the database wants", desired.model_id)
            self._note_failure(desired, repr(error))
        else:
            desired.error = ""
            desired.failures = 0
        finally:
            desired.busy = False
            done.set()

    async def _fulfil(self, desired: DesiredModel) -> None:
        # What the table wants may change while this waits.
        algorithm = desired.algorithm
        path = desired.path
        wanted = desired.wanted
        here = self._models.algorithm_of(desired.model_id)
        if not wanted:
            # Even if it is not loaded yet: a service that starts may be about to load it again.
            await self._models.leave_to_aliases(desired.model_id)
            desired.loaded_from = None
        elif here is not None and (here != algorithm or desired.has_moved):
            await self._models.unload(desired.model_id)
            desired.loaded_from = None
        if wanted and here is None:
            await self._gate.check(algorithm, desired.model_id, path)
        if wanted:
            await self._models.load(algorithm, desired.model_id, path, failures=desired.failures)
            desired.loaded_from = path or ""
        elif not desired.wanted:
            del self._desired[desired.model_id]

    def _note_failure(self, desired: DesiredModel, error: str) -> None:
        desired.failures += 1
        pause = min(_LONGEST_RETRY, self._period * 2 ** min(desired.failures - 1, 20))
        desired.due = time.monotonic() + pause
        verb = "loaded" if desired.wanted else "unloaded"
        times = f" {desired.failures} times" if desired.failures > 1 else ""
        logger.log(
            level_of_failure(desired.failures),
            "model {!r} of {} could not be {}{}: {}; it is tried again, next in {:g} s",
            *(desired.model_id, desired.algorithm, verb, times, error, pause),
        )
        desired.error = error

    async def _write_notes(self) -> None:
        """Writes to disk which models were loaded for the table.

        A later run may then unload them.
        """
        now = {
            desired.model_id: FollowedModel(
                desired.model_id, desired.algorithm, desired.loaded_from if desired.has_moved else desired.path
            )
            for desired in self._desired.values()
        }
        add = [model for model_id, model in now.items() if self._noted.get(model_id) != model]
        remove = self._noted.keys() - now.keys()
        if add or remove:
            await anyio.to_thread.run_sync(self._notes.change_followed, add, remove)
            self._noted = now
