"""What every ratio refers to: a bare ASGI callable that calls the model on the loop."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from tests.benchmarks.workloads import WORKLOADS

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

model, call = WORKLOADS[os.environ["WORKLOAD"]]
loaded = model()


class Envelope(msgspec.Struct):
    model_id: str
    features: Any = None


decoder = msgspec.json.Decoder(Envelope)


def answer(body: bytes) -> bytes:
    (prediction,) = call(loaded, [decoder.decode(body).features])
    return msgspec.json.encode({"status": "success", "data": {"predictions": prediction}})


async def asgi(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"])
        if not message.get("more_body"):
            break
    body = answer(b"".join(parts))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
