"""Moves the aliases of this replica to what the table says.

The replica that was asked to move an alias writes the table; all others follow with their next look. An alias leads to
its old model until the new one is loaded here. What fails is tried again with pauses that grow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import anyio

from mlpkit.errors import MlpkitError, ServiceStopping
from mlpkit.log import logger, with_request_id
from mlpkit.platform.database import Database, WantedAlias
from mlpkit.platform.gate import GateCheck
from mlpkit.serving import Alias, Aliases

_LONGEST_RETRY = 300.0


@dataclass
class _Failure:
    """Why an alias does not lead where it should.

    `due` is on the monotonic clock.
    """

    desired: WantedAlias
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
        self._desired: dict[str, WantedAlias] | None = None
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

    def _is_due(self, name: str, wanted: WantedAlias | None) -> bool:
        failure = self._failures.get(name)
        return failure is None or failure.desired != wanted or time.monotonic() >= failure.due

    async def _follow(self, name: str, wanted: WantedAlias | None, present: Alias | None, done: anyio.Event) -> None:
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

    def _note_failure(self, name: str, wanted: WantedAlias | None, error: str) -> None:
        desired = wanted or WantedAlias("", name, "nothing")
        before = self._failures.get(name)
        again = before is not None and before.desired == desired
        pause = min(_LONGEST_RETRY, before.pause * 2) if before is not None and again else self._period
        if not again:
            logger.error("alias {!r} should lead to {!r} and does not: {}", name, desired.model_id, error)
        self._failures[name] = _Failure(desired, error, pause, time.monotonic() + pause)
