"""What happens to jobs and models, for those who listen.

A new state is an event with a number, and is in the journal before it is told. Progress and new lines of a log are only
told: a later one replaces what a listener has missed, and the lines are in the job's log.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

import anyio
import anyio.to_thread
import msgspec

from mlpkit.errors import JournalError, Overloaded
from mlpkit.log import logger

if TYPE_CHECKING:
    from mlpkit.training.job import Job
    from mlpkit.training.journal import Journal

T = TypeVar("T")
EventKind = Literal["job", "model", "progress"]

_MOST_LISTENERS = 1000
_MOST_WAITING = 256 << 10
"""Bytes of events that wait for one listener. One that has missed more is dropped, and can ask the journal."""
_MOST_UNWRITTEN = 10_000
_LONGEST_MESSAGE = 4000
_LONGEST_PROGRESS = 8 << 10
"""Bytes of a progress event. If it is longer, it leaves out metrics and bars: the job itself has them."""
_TOLD_TOGETHER = 0.05
_PROGRESS_SECONDS = 0.5
"""How often listeners are told the progress of jobs, which report up to ten times a second."""
_WOKEN_TOGETHER = 16
"""Listeners that are woken in one turn of the loop: hundreds at once would hold up predictions."""


class Event(msgspec.Struct, frozen=True):
    """One event; `data` is JSON.

    `number` is its place in the journal, and None if it is not kept there.
    """

    number: int | None
    kind: EventKind
    model_id: str
    data: bytes


def job_data(job: Job) -> bytes:
    """What an event tells of a job."""
    return _encoded(
        {
            "model_id": job.model_id,
            "algorithm": job.algorithm,
            "state": job.state,
            "message": job.note[:_LONGEST_MESSAGE],
            "attempt": job.attempt,
            "created": job.created,
            "started": job.started,
            "ended": job.ended,
            "uuid": job.log_uuid,
        }
    )


def progress_data(job: Job) -> bytes:
    """What an event tells of a job's progress."""
    content = {"model_id": job.model_id, "algorithm": job.algorithm, "progress": msgspec.to_builtins(job.progress)}
    data = _encoded(content)
    if len(data) > _LONGEST_PROGRESS and job.progress is not None:
        content["progress"] = msgspec.to_builtins(msgspec.structs.replace(job.progress, metrics={}, bars=()))
        data = _encoded({**content, "shortened": True})
    return data


def _encoded(content: dict[str, object]) -> bytes:
    return msgspec.json.encode({"time": time.time(), **content})


class Listener:
    """One who listens, to one job or to everything (`model_id` None).

    `lost`: more events came than it took, so that some are missing. `closed`: no more events will come.
    """

    __slots__ = ("_events", "_size", "_wake", "closed", "lost", "model_id")

    def __init__(self, model_id: str | None) -> None:
        self.model_id = model_id
        self.lost = False
        self.closed = False
        self._events: list[Event] = []
        self._size = 0
        self._wake: asyncio.Future[bool] | None = None

    def put(self, event: Event) -> None:
        """Lets an event wait for this listener."""
        self._size += len(event.data)
        if self._size > _MOST_WAITING:
            self.lost = True
            self._events = []
        if not self.lost:
            self._events.append(event)

    def take(self) -> Sequence[Event]:
        """The events that wait."""
        events = self._events
        if events:
            self._events = []
            self._size = 0
        return events

    async def wait(self, seconds: float) -> bool:
        """Waits until there is something new; False after `seconds`."""
        if self._events or self.lost or self.closed:
            return True
        loop = asyncio.get_running_loop()
        # Hundreds of listeners wait at the same time: `asyncio.wait` would take three times the memory.
        self._wake = loop.create_future()
        timer = loop.call_later(seconds, self._end_wait, False)
        try:
            return await self._wake
        finally:
            timer.cancel()
            self._wake = None

    def wake(self) -> None:
        """Ends its wait."""
        self._end_wait(True)

    def _end_wait(self, is_new: bool) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(is_new)


class Events:
    """Tells listeners what happens, and keeps the journal of it.

    Used on one event loop.
    """

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._unwritten: deque[tuple[EventKind, str, bytes]] = deque(maxlen=_MOST_UNWRITTEN)
        self._progress: dict[str, Job] = {}
        self._changed: set[str | None] = set()
        self._waking = False
        self._released = False
        self._closed = False

    def open(self, journal: Journal) -> None:
        """Begins to use the journal."""
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._arrived = anyio.Event()
        self._readers = anyio.CapacityLimiter(2)

    async def keep(self, on_disk: Callable[[Callable[[], list[Event]]], Awaitable[list[Event]]]) -> None:
        """Writes what was noted, until `close`."""
        while not self._closed or self._unwritten:
            await self._arrived.wait()
            self._arrived = anyio.Event()
            noted = list(self._unwritten)
            self._unwritten.clear()
            try:
                written = await on_disk(partial(self._journal.add_events, noted))
            except JournalError as error:
                logger.error("{}; {} events are not kept", error, len(noted))
                written = [Event(None, kind, model_id, data) for kind, model_id, data in noted]
            for event in written:
                self.publish(event)

    def release(self) -> None:
        """Lets the listeners go; what is noted is still written."""
        self._released = True
        for listener in self._listeners:
            listener.closed = True
            listener.wake()

    def close(self) -> None:
        """Lets `keep` end when it has written the rest."""
        self.release()
        self._closed = True
        self._arrived.set()

    @contextmanager
    def listen(self, model_id: str | None = None) -> Iterator[Listener]:
        """A listener for the length of a block.

        Raises:
            Overloaded: there are too many.
        """
        if len(self._listeners) >= _MOST_LISTENERS:
            raise Overloaded(f"{_MOST_LISTENERS} listeners follow events already: try again later")
        listener = Listener(model_id)
        listener.closed = self._released
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def note_model(self, model_id: str, content: dict[str, object]) -> None:
        """Notes what has happened to a model, to be written and told."""
        self._unwritten.append(("model", model_id, _encoded({"model_id": model_id, **content})))
        self._arrived.set()

    def publish(self, event: Event) -> None:
        """Tells an event to those who listen."""
        if event.kind == "job":
            # What is still to be told of its progress is older.
            self._progress.pop(event.model_id, None)
        for listener in self._listeners:
            if listener.model_id is None or listener.model_id == event.model_id:
                listener.put(event)
        if self._listeners:
            self._changed.add(None)
            self._tell(event.model_id)

    def progress(self, job: Job) -> None:
        """Tells how far a job is, with what the others report soon."""
        if not self._listeners:
            return
        if not self._progress:
            self._loop.call_later(_PROGRESS_SECONDS, self._tell_progress)
        self._progress[job.model_id] = job

    def log_grew(self, model_id: str) -> None:
        """Tells that the job's log has new lines."""
        if self._listeners:
            self._tell(model_id)

    async def known(self) -> tuple[int, int]:
        """The numbers of the oldest and the newest event in the journal."""
        return await self._read(self._journal.event_numbers)

    async def after(self, number: int, model_id: str | None) -> list[Event]:
        """The events after this number, some hundreds at most."""
        return await self._read(lambda: self._journal.events_after(number, model_id))

    async def _read(self, call: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(call, limiter=self._readers)

    def _tell_progress(self) -> None:
        jobs = self._progress
        self._progress = {}
        for job in jobs.values():
            self.publish(Event(None, "progress", job.model_id, progress_data(job)))

    def _tell(self, model_id: str) -> None:
        self._changed.add(model_id)
        if not self._waking:
            self._waking = True
            self._loop.call_later(_TOLD_TOGETHER, self._wake)

    def _wake(self) -> None:
        changed = self._changed
        self._changed = set()
        self._waking = False
        self._wake_some([listener for listener in self._listeners if listener.model_id in changed])

    def _wake_some(self, listeners: list[Listener]) -> None:
        for listener in listeners[:_WOKEN_TOGETHER]:
            listener.wake()
        if len(listeners) > _WOKEN_TOGETHER:
            self._loop.call_soon(self._wake_some, listeners[_WOKEN_TOGETHER:])
