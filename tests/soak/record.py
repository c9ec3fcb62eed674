"""What users asked and what came of it; and the troubles that were made, which excuse some of it."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

from mlpkit.errors import MlpkitError

T = TypeVar("T")
Kind = Literal["server", "worker", "store"]

SLACK = 5.0
"""Seconds after a trouble during which it still excuses an error."""
ANSWERED, GONE = "answered", "caller gone"
_EXCUSES: dict[str, tuple[Kind, ...]] = {
    "ServiceUnreachable": ("server",),
    "ModelNotLoaded": ("server",),
    "WorkerLost": ("server", "worker"),
    "LoadFailed": ("server", "worker", "store"),
    "StorageUnavailable": ("server", "store"),
    "TrainFailed": ("server", "store"),
}
_MOST_BLAMES = 50


class Ask(NamedTuple):
    """A request. Times are in seconds since the epoch; `outcome` is `ANSWERED`, `GONE` or the name of an error."""

    route: str
    uuid: str
    began: float
    ended: float
    outcome: str


@dataclass
class Trouble:
    """Something that was killed or stopped, until everything works again."""

    kind: Kind
    what: str
    began: float = field(default_factory=time.time)
    ended: float = math.inf


@dataclass
class Training:
    """An accepted job: what it was to do, and whether somebody cancelled it or deleted its model."""

    algorithm: str
    do: str
    cancelled: bool = False
    deleted: bool = False


class Record:
    """Written by all users at once, read at the end. `wrong` is what nothing excuses, a sentence each."""

    def __init__(self) -> None:
        self.asks: list[Ask] = []
        self.troubles: list[Trouble] = []
        self.trainings: dict[str, Training] = {}
        self.wrong: list[str] = []
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def ask(self, route: str, call: Callable[[str], T], allowed: Collection[str] = ()) -> T | None:
        """What `call` returns for the uuid of a new request; None where it failed, which `allowed` errors may do."""
        uuid, began, outcome = self.new_uuid(), time.time(), ANSWERED
        try:
            return call(uuid)
        except MlpkitError as error:
            outcome = type(error).__name__
            if outcome not in allowed and not self.excused(began, time.time(), *_EXCUSES.get(outcome, ())):
                self.blame(f"{route} {uuid} failed without a reason to: {outcome}: {error}")
            return None
        finally:
            self.asks.append(Ask(route, uuid, began, time.time(), outcome))

    def new_uuid(self) -> str:
        """A uuid that no other request has."""
        return f"soak-{next(self._numbers)}"

    def blame(self, sentence: str) -> None:
        """Notes and prints what is wrong; the first fifty sentences are kept."""
        with self._lock:
            if len(self.wrong) < _MOST_BLAMES:
                self.wrong.append(f"{time.strftime('%H:%M:%S')} {sentence}"[:1000])
                print(f"wrong: {self.wrong[-1]}", flush=True)

    @contextmanager
    def trouble(self, kind: Kind, what: str) -> Iterator[None]:
        """Around a trouble, until everything works again."""
        made = Trouble(kind, what)
        self.troubles.append(made)
        try:
            yield
        finally:
            made.ended = time.time()

    def excused(self, began: float, ended: float, *kinds: Kind) -> bool:
        """Whether there was such a trouble between two times, or shortly before."""
        return any(
            each.kind in kinds and each.began <= ended and each.ended + SLACK >= began for each in list(self.troubles)
        )
