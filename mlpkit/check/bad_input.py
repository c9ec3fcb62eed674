"""Input that no algorithm can expect, and what a service must do with it: a clear answer, soon, and no lasting harm."""

from __future__ import annotations

import json
import time

from mlpkit.check.course import Course, Doubtful, Failed
from mlpkit.client import data_of
from mlpkit.errors import MlpkitError, ServiceUnreachable, TimeLimitExceeded, UnexpectedAnswer, WorkerLost

_LONGEST_SECONDS = 10.0
_MUST_BE_REFUSED = {"text for features", "a number for features", "null inside", "no model_id", "broken JSON"}
"""What the protocol itself forbids; whether the rest is refused is the algorithm's choice."""


def bad_bodies(model_id: str) -> dict[str, bytes]:
    """Bodies of predict requests by what is wrong with them."""

    def body(**fields: object) -> bytes:
        return json.dumps({"model_id": model_id, **fields}).encode()

    return {
        "no features": body(),
        "text for features": body(features="text"),
        "a number for features": body(features=1),
        "null inside": body(features={"sentence": None}),
        "empty features": body(features={}),
        "wrong types inside": body(features={"sentence": {"a": [1, 2]}, "text": 1.5}),
        "strange characters": body(features={"sentence": "\x00\ud83d\ude00\u202e\ufeff" * 50}),
        "a long sentence": body(features={"sentence": "long " * 20_000}),
        "text for params": body(features={}, params="text"),
        "no model_id": b"{}",
        "broken JSON": b'{"model_id": ',
    }


def ask_badly(course: Course, name: str, body: bytes) -> bool:
    """Sends such a body; True where it was refused, False where the algorithm answered it.

    Raises:
        Failed: no answer, a late one, one that is none of the protocol, a dead worker, or a success where none can be.
        Doubtful: the answer shows a traceback.
    """
    client = course.subject.client
    started, refused = time.monotonic(), False
    try:
        answer = client.request("POST", f"{client.prefix}predict", body)
        data_of(answer)
    except (ServiceUnreachable, TimeLimitExceeded, UnexpectedAnswer, WorkerLost) as error:
        raise Failed(f"{name}: {error}") from None
    except MlpkitError:
        refused = True
    seconds = time.monotonic() - started
    if seconds > _LONGEST_SECONDS:
        raise Failed(f"{name}: the answer took {seconds:.0f} s")
    if name in _MUST_BE_REFUSED and not refused:
        raise Failed(f"{name}: it was accepted")
    if b"Traceback" in answer.body:
        raise Doubtful(f"{name}: the answer shows a traceback")
    return refused
