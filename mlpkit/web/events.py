"""Server-sent events: what happens to jobs and models.

Format: WHATWG HTML, "Server-sent events". An event with an `id` is in the journal; a client that comes back sends the
last one in `Last-Event-ID` and gets what it has missed. `reset` tells that this cannot be done.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from anyio import CapacityLimiter, to_thread

from mlpkit.errors import JobNotFound
from mlpkit.training import Event, job_data, progress_data
from mlpkit.web.jobs import number_of
from mlpkit.web.request import StreamedResponse

if TYPE_CHECKING:
    from mlpkit.web.routes import Dependencies, Request

_HEARTBEAT_SECONDS = 15.0
_HEARTBEAT = b": still here\n\n"
_LONGEST_LOG_PART = 64 << 10
_LONGEST_NUMBER = 15
"""Digits of a number in an id: larger ones are not an id that this service has given."""


class EventRoutes:
    """The functions of the streams."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._training = dependencies.training
        self._threads = CapacityLimiter(4)

    async def events(self, request: Request) -> StreamedResponse:
        """What happens to jobs and models, as server-sent events."""
        return StreamedResponse(self._all(_last_id(request)))

    async def job_events(self, request: Request) -> StreamedResponse:
        """State, progress and log of one job, as server-sent events.

        The last event is `end`.
        """
        model_id = request.path["model_id"]
        if self._training.summary(model_id) is None:
            raise JobNotFound(model_id)
        return StreamedResponse(self._of_job(model_id, _last_id(request), number_of(request, "tail", None)))

    async def _all(self, last: str | None) -> AsyncGenerator[bytes, None]:
        with self._training.events.listen() as listener:
            oldest, newest = await self._training.events.known()
            number = _whole(last) if last is not None else None
            reason = _why_reset(last, number, oldest, newest)
            if reason or number is None:
                yield _reset(str(newest), reason or "this is a new stream")
            else:
                async for text in self._missed(number, newest):
                    yield text
            while not listener.closed:
                text = b"".join([_text(event) for event in listener.take() if _is_new(event, newest)])
                if text:
                    yield text
                if listener.lost:
                    return
                if not await listener.wait(_HEARTBEAT_SECONDS):
                    yield _HEARTBEAT

    async def _of_job(self, model_id: str, last: str | None, tail: int | None) -> AsyncGenerator[bytes, None]:
        with self._training.events.listen(model_id) as listener:
            oldest, newest = await self._training.events.known()
            job = self._training.summary(model_id)
            if job is None:
                # It was removed between the look of the route and this one.
                return
            log = _LogReader(self._training.log_path(model_id), self._threads)
            number, place = _place(last)
            reason = _why_reset(last, number, oldest, newest)
            if not reason and place > await log.size():
                reason = "the log is not the one that you have read: the job was submitted again"
            if reason or number is None:
                log.place = 0 if tail is None else await log.start_of(tail)
                if reason:
                    yield _reset(f"{newest}.{log.place}", reason)
                yield _text(Event(newest, "job", model_id, job_data(job)), log.place)
                if job.progress is not None:
                    yield _text(Event(None, "progress", model_id, progress_data(job)))
            else:
                log.place = place
                async for text in self._missed(number, newest, model_id, log.place):
                    yield text
            ended = job.has_ended
            latest = newest
            while not listener.closed:
                events = [event for event in listener.take() if event.kind != "model" and _is_new(event, newest)]
                ended = ended or any(_tells_end(event) for event in events)
                # Before the states, so that nothing of the log comes after the end.
                async for part in log.new(latest, to_the_end=ended):
                    yield part
                if events:
                    latest = max([latest, *(event.number for event in events if event.number is not None)])
                    yield b"".join([_text(event, log.place) for event in events])
                if ended:
                    yield b"id: %d.%d\nevent: end\ndata: {}\n\n" % (latest, log.place)
                if ended or listener.lost:
                    return
                if not await listener.wait(_HEARTBEAT_SECONDS):
                    yield _HEARTBEAT

    async def _missed(
        self, number: int, newest: int, model_id: str | None = None, place: int | None = None
    ) -> AsyncIterator[bytes]:
        """The events of the journal after a number, up to the newest."""
        while number < newest:
            events = await self._training.events.after(number, model_id)
            if not events:
                return
            yield b"".join(
                [
                    _text(event, place)
                    for event in events
                    if not _is_new(event, newest) and (model_id is None or event.kind != "model")
                ]
            )
            number = max(event.number or 0 for event in events)


class _LogReader:
    """Reads a job's log on; `place` is the byte that comes next."""

    def __init__(self, path: Path, threads: CapacityLimiter) -> None:
        self.place = 0
        self._path = path
        self._threads = threads

    async def size(self) -> int:
        """Bytes of the log."""
        return await to_thread.run_sync(_size_of, self._path, limiter=self._threads)

    async def start_of(self, lines: int) -> int:
        """The byte at which the last `lines` lines begin."""
        return await to_thread.run_sync(_start_of_lines, self._path, lines, limiter=self._threads)

    async def new(self, number: int, *, to_the_end: bool) -> AsyncIterator[bytes]:
        """The lines that have come, as events; only whole lines."""
        while True:
            content = await to_thread.run_sync(_read_at, self._path, self.place, limiter=self._threads)
            whole = content.rfind(b"\n") + 1
            if whole == 0 and (to_the_end or len(content) == _LONGEST_LOG_PART):
                whole = len(content)
            if not whole:
                return
            # A part of a very long line may end inside a character, which then belongs to the next part.
            text, used = codecs.utf_8_decode(content[:whole], "replace", to_the_end)
            self.place += used
            data = msgspec.json.encode({"text": text})
            yield b"id: %d.%d\nevent: log\ndata: %b\n\n" % (number, self.place, data)


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _start_of_lines(path: Path, lines: int) -> int:
    size = _size_of(path)
    place = size
    found = 0
    while place > 0:
        start = max(0, place - _LONGEST_LOG_PART)
        content = _read_at(path, start)[: place - start]
        end = len(content)
        # The line feed at the very end of the log ends the last line.
        while (end := content.rfind(b"\n", 0, end)) >= 0:
            found += start + end + 1 < size
            if found == lines:
                return start + end + 1
        place = start
    return 0


def _read_at(path: Path, place: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(place)
            return file.read(_LONGEST_LOG_PART)
    except FileNotFoundError:
        # A job that waits has written nothing yet.
        return b""


class _State(msgspec.Struct):
    state: str


_decode_state = msgspec.json.Decoder(_State).decode


def _tells_end(event: Event) -> bool:
    return event.kind == "job" and _decode_state(event.data).state in ("completed", "error")


def _is_new(event: Event, newest: int) -> bool:
    """Whether an event came after this number, or has none."""
    return event.number is None or event.number > newest


def _last_id(request: Request) -> str | None:
    for name, value in request.context.headers:
        if name == b"last-event-id":
            return value.decode("latin-1")
    return request.query.get("last_event_id")


def _why_reset(last: str | None, number: int | None, oldest: int, newest: int) -> str:
    """Why a listener cannot continue where it was; empty if it can."""
    if last is None:
        return ""
    if number is None or number > newest:
        return "the id in Last-Event-ID is not from this service"
    if number < oldest - 1:
        return f"the events after {number} are not kept any more: the oldest is {oldest}"
    return ""


def _place(last: str | None) -> tuple[int | None, int]:
    """What an id names: an event's number, a place in the log."""
    first, _, second = (last or "").partition(".")
    place = _whole(second or "0")
    return (None, 0) if place is None else (_whole(first), place)


def _whole(text: str) -> int | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER
    return int(text) if is_number else None


def _reset(last: str, reason: str) -> bytes:
    return b"id: %b\nevent: reset\ndata: %b\n\n" % (last.encode(), msgspec.json.encode({"reason": reason}))


def _text(event: Event, place: int | None = None) -> bytes:
    """An event as it is sent; `place` is in the job's log."""
    number = b""
    if event.number is not None:
        number = b"id: %d\n" % event.number if place is None else b"id: %d.%d\n" % (event.number, place)
    # JSON has no line feeds, so an event is one line of data.
    return b"%bevent: %b\ndata: %b\n\n" % (number, event.kind.encode(), event.data)
