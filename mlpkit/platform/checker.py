"""The checker: which models the platform's table wants on every replica, against which are loaded on this one.

Every period one query asks when each algorithm's models changed last; only where that differs from the last look are
the rows read. What differs is loaded and unloaded in the background, so that a slow load holds up no look. Models that
`/load` brought here are left alone until the table wants them. While the database is away nothing changes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import anyio
import anyio.to_thread

from mlpkit.algorithm import Algorithm
from mlpkit.errors import DatabaseError, JournalError, MlpkitError, ServiceStopping
from mlpkit.log import logger, with_request_id
from mlpkit.platform.database import Change, Database
from mlpkit.platform.notes import FollowedModel, Notes
from mlpkit.platform.rows import Complaints, checked
from mlpkit.serving import Models

Start = Callable[..., object]
"""Starts a coroutine function with its arguments as a task."""

_AT_ONCE = 8
_LONGEST_RETRY = 300.0
_SAME_SECOND = 1.0
"""For so many seconds after a change the rows are read again: a second change may carry the same instant."""


@dataclass(eq=False)
class Wish:
    """What the table wants of a model, and how far this replica is.

    `since` is when this replica heard of it, `next_try` when it tries again after a failure; both are in seconds since
    the epoch. `loaded_from` is the path that the model was loaded from, None where that is not known.
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
        """None where the last try did not fail."""
        return time.time() + max(0.0, self.due - time.monotonic()) if self.error else None

    @property
    def has_moved(self) -> bool:
        """Whether the model was loaded from another path than the table says now."""
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


@dataclass(frozen=True)
class _Seen:
    """The last look at an algorithm. `since` is when this change was seen first, on the monotonic clock."""

    change: Change
    since: float
    is_settled: bool


class Checker:
    """Makes the models of this replica those that the table wants, per algorithm. Used on one event loop."""

    def __init__(
        self, database: Database, notes: Notes, models: Models, algorithms: Mapping[str, Algorithm], period: float
    ) -> None:
        self._database, self._notes, self._models = database, notes, models
        self._algorithms, self._period = list(algorithms), period
        self._seen: dict[str, _Seen] = {}
        self._wishes: dict[str, Wish] = {}
        self._noted: dict[str, FollowedModel] = {}
        self._limiter = anyio.CapacityLimiter(_AT_ONCE)
        self._starting = "the models have not been compared with the database yet"
        self._scope = anyio.CancelScope()
        self.complaints = Complaints()
        self.looked: float | None = None
        """When the database was asked last and answered, in seconds since the epoch."""

    def problems(self) -> list[str]:
        """Why this replica may lack models that others have; nothing once the first look has been acted on."""
        return [self._starting] if self._starting else []

    def wishes(self) -> list[Wish]:
        """What the table wants of this replica, and what it has ceased to want and is still here."""
        return list(self._wishes.values())

    def disown(self, model_id: str) -> None:
        """Takes note that the table has just been told not to want the model."""
        if (wish := self._wishes.get(model_id)) is not None:
            wish.change(wanted=False, algorithm=wish.algorithm, path=wish.path)

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
        """Begins no more loads and unloads, and does not wait for those that have begun."""
        self._scope.cancel()

    async def _remember(self) -> None:
        """Until the database answers, the table wants what it wanted in the last run."""
        try:
            followed = await anyio.to_thread.run_sync(self._notes.followed)
        except JournalError as error:
            logger.error("{}: which models earlier runs loaded for the database is not known", error)
            return
        self._noted = {each.model_id: each for each in followed}
        for each in followed:
            if each.algorithm in self._algorithms:
                self._wishes[each.model_id] = Wish(
                    each.model_id, each.algorithm, each.path, since=time.time(), loaded_from=each.path or ""
                )

    async def _end_start(self, begun: list[asyncio.Event]) -> None:
        self._starting = f"{len(begun)} models that the database wants are being loaded"
        for done in begun:
            await done.wait()
        self._starting = ""

    async def _pass(self, start: Start) -> list[asyncio.Event]:
        """One look, and the beginning of what follows from it; an event for each model that is being changed."""
        try:
            await self._look()
            self.looked = time.time()
            await self._write_notes()
        except DatabaseError:
            pass  # The database has logged it, and it is among its problems.
        except JournalError as error:
            logger.error("{}: after a restart this replica may not know which models to unload", error)
        except Exception:
            logger.exception("the models could not be compared with the database")
        return self._begin(start)

    async def _look(self) -> None:
        changes = await self._database.changes(self._algorithms)
        now = time.monotonic()
        seen = {name: self._see(name, changes[name], now) for name in self._algorithms if name in changes}
        stale = [name for name, each in seen.items() if each is not self._seen.get(name)]
        if not stale:
            return
        rows = await self._database.wanted(stale)
        foreign = await self._database.foreign(self._algorithms)
        models = checked(rows, stale, self.complaints)
        self.complaints.hear_foreign(foreign, rows, self._algorithms)
        for model in models.values():
            wish = self._wishes.setdefault(model.model_id, Wish(model.model_id, "", None))
            wish.change(wanted=True, algorithm=model.algorithm, path=model.path)
        for wish in self._wishes.values():
            if wish.algorithm in stale and wish.model_id not in models:
                wish.change(wanted=False, algorithm=wish.algorithm, path=wish.path)
        self._seen.update(seen)

    def _see(self, name: str, change: Change, now: float) -> _Seen:
        """What is to be remembered of this look: the same object as before where there is nothing to read."""
        before = self._seen.get(name)
        if before is None or before.change != change:
            return _Seen(change, now, is_settled=False)
        if before.is_settled:
            return before
        return _Seen(change, before.since, is_settled=now - before.since >= _SAME_SECOND)

    def _begin(self, start: Start) -> list[asyncio.Event]:
        begun = []
        for wish in list(self._wishes.values()):
            if wish.busy or time.monotonic() < wish.due:
                continue
            if wish.wanted and self._models.algorithm_of(wish.model_id) == wish.algorithm and not wish.has_moved:
                # A model that `/load` brought here is followed from now on.
                wish.loaded_from, wish.error, wish.failures = wish.path or "", "", 0
            else:
                wish.busy = True
                begun.append(asyncio.Event())
                start(self._change, wish, begun[-1])
        return begun

    async def _change(self, wish: Wish, done: asyncio.Event) -> None:
        try:
            async with self._limiter:
                with with_request_id("checker"):
                    await self._fulfil(wish)
        except ServiceStopping:
            pass
        except MlpkitError as error:
            self._note_failure(wish, str(error))
        except Exception as error:
            logger.exception("model {!r} could not be made what the database wants", wish.model_id)
            self._note_failure(wish, repr(error))
        else:
            wish.error, wish.failures = "", 0
        finally:
            wish.busy = False
            done.set()

    async def _fulfil(self, wish: Wish) -> None:
        algorithm, path, wanted = wish.algorithm, wish.path, wish.wanted
        here = self._models.algorithm_of(wish.model_id)
        if not wanted or (here is not None and (here != algorithm or wish.has_moved)):
            # Also where it is not loaded yet: a service that starts may be about to bring it back.
            await self._models.unload(wish.model_id)
            wish.loaded_from = None
        if wanted:
            await self._models.load(algorithm, wish.model_id, path)
            wish.loaded_from = path or ""
        elif not wish.wanted:
            del self._wishes[wish.model_id]

    def _note_failure(self, wish: Wish, error: str) -> None:
        wish.failures += 1
        pause = min(_LONGEST_RETRY, self._period * 2 ** min(wish.failures - 1, 20))
        wish.due = time.monotonic() + pause
        if error != wish.error:
            verb = "loaded" if wish.wanted else "unloaded"
            logger.error(
                "model {!r} of {} is to be {} and was not: {}; it is tried again, next in {:g} s",
                *(wish.model_id, wish.algorithm, verb, error, pause),
            )
        wish.error = error

    async def _write_notes(self) -> None:
        """Puts on disk what this replica loads for the table: a later run may then unload it."""
        now = {
            wish.model_id: FollowedModel(
                wish.model_id, wish.algorithm, wish.loaded_from if wish.has_moved else wish.path
            )
            for wish in self._wishes.values()
        }
        add = [each for model_id, each in now.items() if self._noted.get(model_id) != each]
        remove = self._noted.keys() - now.keys()
        if add or remove:
            await anyio.to_thread.run_sync(self._notes.change_followed, add, remove)
            self._noted = now
