"""What mlpkit is compared with: a bare ASGI callable and a bare Starlette route, both calling the model on the loop."""

from __future__ import annotations

import os
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.benchmarks.workloads import WORKLOADS

model, call = WORKLOADS[os.environ["WORKLOAD"]]
loaded = model()


class Envelope(msgspec.Struct):
    model_id: str
    features: Any = None


decoder = msgspec.json.Decoder(Envelope)


def answer(body: bytes) -> bytes:
    (prediction,) = call(loaded, [decoder.decode(body).features])
    return msgspec.json.encode({"status": "success", "data": {"predictions": prediction}})


async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
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


async def predict(request: Request) -> Response:
    return Response(answer(await request.body()), media_type="application/json")


starlette = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
