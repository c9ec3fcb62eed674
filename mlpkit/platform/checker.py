"""Loads models and moves aliases as the platform's tables want it.

Every period one query asks when each algorithm's models changed last. The rows are read only if the answer differs
from the one before. Loads and unloads run in the background, so that a slow load does not delay the next look. Models
that `/load` loaded here stay as they are until the table wants them. While the database cannot be reached nothing
changes.

The replica that was asked to move an alias writes the table of aliases; all others follow with their next look. An
alias leads to its old model until the new one is loaded here. What fails is tried again with pauses that grow.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import anyio
import anyio.to_thread

from mlpkit.algorithm import Algorithm
from mlpkit.errors import BelowGate, DatabaseError, JournalError, MlpkitError, ServiceStopping, StorageError
from mlpkit.log import level_of_failure, logger, with_request_id
from mlpkit.platform.database import Change, Database, WantedModel
from mlpkit.platform.outbox import FollowedModel, Notes
from mlpkit.serving import Alias, Aliases, Models, pause_after
from mlpkit.settings import Settings
from mlpkit.storage import ModelDir, Storage, gate_problem
from mlpkit.training import LONGEST_ID, takes

Start = Callable[..., object]
"""Starts a coroutine function with its arguments as a task."""

_AT_ONCE = 8
"""Models that are loaded or unloaded at the same time, and manifests that are asked for."""
_MOST_LOGGED = 20
"""Rows of an algorithm that are named in the log because they cannot be used."""
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
        self.row_problems = _RowProblems()
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
        models = _checked(rows, stale, self.row_problems)
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
            await self._models.load(algorithm, desired.model_id, path, failures=desired.failures, by_table=True)
            desired.loaded_from = path or ""
        elif not desired.wanted:
            del self._desired[desired.model_id]

    def _note_failure(self, desired: DesiredModel, error: str) -> None:
        desired.failures += 1
        pause = pause_after(desired.failures, self._period, _LONGEST_RETRY)
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


@dataclass
class _Failure:
    """Why an alias does not lead where it should.

    `due` is on the monotonic clock.
    """

    desired: Alias
    error: str
    pause: float
    due: float


class AliasFollower:
    """Follows the table of aliases.

    Used on one event loop.
    """

    def __init__(
        self, database: Database, aliases: Aliases, algorithms: Iterable[str], gate: GateCheck, period: float
    ) -> None:
        self._database = database
        self._aliases = aliases
        self._algorithms = list(algorithms)
        self._gate = gate
        self._period = period
        self._desired: dict[str, Alias] | None = None
        self._read = 0.0
        self._busy: set[str] = set()
        self._failures: dict[str, _Failure] = {}

    def problems(self) -> list[str]:
        """Which aliases do not lead where the table says, and why."""
        return [
            f"alias [{name}] should lead to model [{failure.desired.model_id}] and does not: {failure.error}"
            for name, failure in sorted(self._failures.items())
        ]

    async def look(self) -> None:
        """Reads the table.

        Without a table, aliases stay as they are.
        """
        started = time.monotonic()
        found = await self._database.aliases(self._algorithms)
        self._desired = None if found is None else {alias.name: alias for alias in found}
        self._read = started

    def begin(self, start: Callable[..., object]) -> list[anyio.Event]:
        """Starts the moves that are due; gives an event for each."""
        desired = self._desired
        if desired is None:
            return []
        here = {alias.name: alias for alias in self._aliases.listed() if alias.algorithm in self._algorithms}
        begun = []
        for name in sorted(here.keys() | desired.keys()):
            wanted = desired.get(name)
            present = here.get(name)
            if wanted is not None and present is not None and wanted.model_id == present.model_id:
                self._failures.pop(name, None)
            elif name not in self._busy and self._is_due(name, wanted) and self._aliases.is_at_rest(name, self._read):
                self._busy.add(name)
                begun.append(anyio.Event())
                start(self._follow, name, wanted, present, begun[-1])
        return begun

    def _is_due(self, name: str, wanted: Alias | None) -> bool:
        failure = self._failures.get(name)
        return failure is None or failure.desired != wanted or time.monotonic() >= failure.due

    async def _follow(self, name: str, wanted: Alias | None, present: Alias | None, done: anyio.Event) -> None:
        try:
            with with_request_id("checker"):
                if wanted is not None:
                    # The replica that was asked has done so, but rows may also be written by hand.
                    await self._gate.check(wanted.algorithm, wanted.model_id)
                    await self._aliases.move(wanted.algorithm, wanted.alias, wanted.model_id)
                elif present is not None:
                    await self._aliases.remove(present.algorithm, present.alias)
        except ServiceStopping:
            pass
        except MlpkitError as error:
            self._note_failure(name, wanted, str(error))
        except Exception as error:
            logger.exception("alias {!r} could not be made what the database wants", name)
            self._note_failure(name, wanted, repr(error))
        else:
            self._failures.pop(name, None)
        finally:
            self._busy.discard(name)
            done.set()

    def _note_failure(self, name: str, wanted: Alias | None, error: str) -> None:
        desired = wanted or Alias("", name, "nothing")
        before = self._failures.get(name)
        again = before is not None and before.desired == desired
        pause = min(_LONGEST_RETRY, before.pause * 2) if before is not None and again else self._period
        if not again:
            logger.error("alias {!r} should lead to {!r} and does not: {}", name, desired.model_id, error)
        self._failures[name] = _Failure(desired, error, pause, time.monotonic() + pause)


class _RowProblems:
    """What is wrong with the rows, by algorithm.

    A problem is logged when it is new.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[str]] = {}
        self._foreign: set[str | None] = set()

    def listed(self) -> list[str]:
        """The present problems, at most `_MOST_LOGGED` of each algorithm."""
        return [problem for problems in self._rows.values() for problem in problems[:_MOST_LOGGED]]

    def update(self, algorithm: str, rows: Iterable[str]) -> None:
        """Replaces what was wrong with the rows of an algorithm."""
        before = set(self._rows.get(algorithm, ()))
        now = list(dict.fromkeys(rows))
        new = [problem for problem in now if problem not in before]
        for problem in new[:_MOST_LOGGED]:
            logger.warning("{}", problem)
        if len(new) > _MOST_LOGGED:
            logger.warning("{} more rows of algorithm [{}] cannot be used", len(new) - _MOST_LOGGED, algorithm)
        self._rows[algorithm] = now

    def update_foreign(
        self, counts: Mapping[str | None, int], rows: Iterable[WantedModel], algorithms: Collection[str]
    ) -> None:
        """Notes models whose algorithm is not here, or is missing."""
        # A database that ignores case finds rows whose algorithm is written differently.
        found = {*counts, *(row.algorithm for row in rows if row.algorithm not in algorithms)}
        for algorithm in sorted(found - self._foreign, key=str):
            if algorithm:
                logger.info(
                    "the database wants models of algorithm {!r}, which this service has not: they are for another",
                    algorithm,
                )
            else:
                logger.warning("the database wants models that have no algorithm: nobody can load them")
        self._foreign = found


def _checked(
    rows: Iterable[WantedModel], algorithms: Iterable[str], row_problems: _RowProblems
) -> dict[str, FollowedModel]:
    """The models of these algorithms, by id.

    If two rows have the same id, the first one counts.
    """
    found: dict[str, FollowedModel] = {}
    wrong: dict[str, list[str]] = {name: [] for name in algorithms}
    for row in rows:
        if row.algorithm is None or row.algorithm not in wrong:
            continue
        problem = _problem_of(row, found)
        if problem:
            wrong[row.algorithm].append(f"a row of algorithm [{row.algorithm}] cannot be used: {problem}")
        else:
            model_id = str(row.model_id)
            found[model_id] = FollowedModel(model_id, row.algorithm, row.path)
    for algorithm, problems in wrong.items():
        row_problems.update(algorithm, problems)
    return found


def _problem_of(row: WantedModel, found: Mapping[str, FollowedModel]) -> str:
    if not row.model_id:
        return "it has no model id"
    if len(row.model_id) > LONGEST_ID:
        shown = repr(row.model_id[:LONGEST_ID])
        return f"the model id {shown}... has {len(row.model_id)} characters, {LONGEST_ID} are allowed"
    if (other := found.get(row.model_id)) is not None:
        return (
            f"model {row.model_id!r} has another row, which counts (algorithm [{other.algorithm}], path {other.path!r})"
        )
    return ""


class GateCheck:
    """Keeps models below their gate (`min_f1`) from being loaded."""

    def __init__(self, algorithms: Mapping[str, Algorithm], storage: Storage, settings: Settings) -> None:
        # Only their models have a manifest: asking for those of a thousand others takes longer than their loads.
        self._with_files = {name for name, algorithm in algorithms.items() if _has_files(algorithm)}
        self._storage = storage
        self._settings = settings
        self._threads = anyio.CapacityLimiter(_AT_ONCE)

    async def check(self, algorithm: str, model_id: str, path: str | None = None) -> None:
        """Refuses a model below its gate.

        If the store cannot be asked, the load says why.

        Raises:
            BelowGate: with the figure.
        """
        if algorithm not in self._with_files:
            return
        with contextlib.suppress(StorageError):
            arguments = (self._storage, self._settings, model_id, path)
            problem = await anyio.to_thread.run_sync(gate_problem, *arguments, limiter=self._threads)
            if problem:
                raise BelowGate(f"it is below its gate: {problem}")


def _has_files(algorithm: Algorithm) -> bool:
    """Whether models of the algorithm may be folders in the store."""
    return any(plan is not None and takes(plan, ModelDir) for plan in map(algorithm.plan, ("load", "train")))
