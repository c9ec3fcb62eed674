"""Follows the events of a service, over broken connections too.

Format: WHATWG HTML, "Server-sent events". `docs/reference/http.md` says what the events mean.
"""

from __future__ import annotations

import collections
import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeAlias

import msgspec

from mlpkit.client.answers import data_of, typed
from mlpkit.client.transport import Answer, StreamedAnswer
from mlpkit.errors import (
    MlpkitError,
    Overloaded,
    ServiceUnreachable,
    TimeLimitExceeded,
    UnexpectedAnswer,
    WorkerLost,
)

_SILENCE_SECONDS = 45.0
"""A connection is broken after this silence: the service says something every 15 seconds."""
_AWAY_SECONDS = 60.0
"""How long a service may be away, such as for a restart."""
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
_LONGEST_EVENT = 16 << 20


class JobEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A job has a new state. Times are seconds since the epoch."""

    id: str | None = None
    model_id: str
    algorithm: str = ""
    state: str = "unknown"
    message: str = ""
    attempt: int = 0
    time: float | None = None
    created: float | None = None
    started: float | None = None
    ended: float | None = None
    uuid: str | None = None


class ProgressEvent(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job is; only the newest counts."""

    id: str | None = None
    model_id: str
    algorithm: str = ""
    progress: dict[str, Any] | None = None
    time: float | None = None


class LogEvent(msgspec.Struct, frozen=True, kw_only=True):
    """New lines of a job's log, with their line feeds."""

    id: str | None = None
    text: str


class ModelEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A model has a new state."""

    id: str | None = None
    model_id: str
    algorithm: str = ""
    state: str = "unknown"
    message: str = ""
    workers: list[int] = []
    time: float | None = None


class ResetEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What was missed cannot be given: forget what you know."""

    id: str | None = None
    reason: str = ""


ServiceEvent: TypeAlias = JobEvent | ProgressEvent | LogEvent | ModelEvent | ResetEvent

_KINDS: dict[str, type[ServiceEvent]] = {
    "job": JobEvent,
    "progress": ProgressEvent,
    "log": LogEvent,
    "model": ModelEvent,
    "reset": ResetEvent,
}


def follow(
    connect: Callable[[str | None, float], StreamedAnswer], last: str | None, timeout: float
) -> Generator[ServiceEvent, None, None]:
    """The events of a stream until its `end`.

    `connect` opens the stream after the event with this id; its second argument is the longest silence in seconds.
    """
    deadline = time.monotonic() + timeout
    heard: float | None = None
    pause = _FIRST_PAUSE
    while True:
        problem: MlpkitError = ServiceUnreachable("the service has ended its stream of events")
        try:
            answer = _opened(connect(last, min(_SILENCE_SECONDS, max(0.1, deadline - time.monotonic()))))
        except (ServiceUnreachable, TimeLimitExceeded, Overloaded, WorkerLost, UnexpectedAnswer) as error:
            # UnexpectedAnswer: a proxy says in its own words that the service is away.
            if heard is None:
                raise
            problem = error
        else:
            with contextlib.closing(answer.parts):
                messages = _messages(answer.parts)
                while True:
                    try:
                        message = next(messages, None)
                    except (ServiceUnreachable, TimeLimitExceeded) as error:
                        problem = error
                        break
                    if message is None:
                        break
                    heard = time.monotonic()
                    pause = _FIRST_PAUSE
                    kind = message.get("event")
                    last = message.get("id", last)
                    if kind == "end":
                        # Only a connection whose answer was read to its end can be used again.
                        with contextlib.suppress(ServiceUnreachable, TimeLimitExceeded):
                            collections.deque(messages, maxlen=0)
                        return
                    if kind in _KINDS:
                        yield _event(_KINDS[kind], message)
                    if time.monotonic() > deadline:
                        break
        now = time.monotonic()
        if now > deadline:
            raise TimeLimitExceeded(f"the events have not ended within {timeout:g} s")
        heard = now if heard is None else heard
        if now - heard > _AWAY_SECONDS:
            raise problem
        time.sleep(min(pause, max(0.0, deadline - now)))
        pause = min(pause * 2, _LONGEST_PAUSE)


def _opened(answer: StreamedAnswer) -> StreamedAnswer:
    """The answer, if it is a stream of events.

    Raises:
        MlpkitError: it is a refusal.
    """
    if answer.status == 200 and answer.headers.get("content-type", "").startswith("text/event-stream"):
        return answer
    with contextlib.closing(answer.parts):
        data_of(Answer(answer.status, answer.headers, b"".join(answer.parts)))
    raise UnexpectedAnswer(f"HTTP {answer.status} is not a stream of events")


def _messages(parts: Iterator[bytes]) -> Iterator[dict[str, str]]:
    """The fields of each message, also of a comment, which has none.

    What was cut off by the end of the stream is left out.
    """
    rest = b""
    for part in parts:
        *blocks, rest = (rest + part).split(b"\n\n")
        if len(rest) > _LONGEST_EVENT:
            raise UnexpectedAnswer(f"the service sends an event of more than {_LONGEST_EVENT >> 20} MiB")
        for block in blocks:
            lines = [line.partition(": ") for line in block.decode("utf-8", "replace").split("\n")]
            yield {name: value for name, _, value in lines if name}


def _event(kind: type[ServiceEvent], message: dict[str, str]) -> ServiceEvent:
    try:
        data = json.loads(message.get("data", ""))
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise UnexpectedAnswer(f"an event of the service is not JSON: {message.get('data', '')[:200]!r}")
    return typed({**data, "id": message.get("id")}, kind)
