"""A service that speaks the platform's protocol and is not mlpkit: it has none of the further routes, and says `ok`.

`python -m tests.servers.foreign PORT` serves it below `/mlp`. Its one algorithm, `echo`, answers a prediction with
the features it got; ids that begin with `stuck` never end their training, ids that begin with `bad` end it with
`error`.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.servers.ports import LONG, accepts, free_port, wait_until

_numbers = itertools.count(1)
_looks: dict[str, int] = {}
_loaded: set[str] = set()
_seen: list[dict[str, Any]] = []


def _answer(content: object) -> Response:
    return Response(json.dumps(content), media_type="application/json")


def _fail(message: str, status: str = "fail") -> Response:
    return _answer({"status": status, "message": message, "trace": ""})


async def train(request: Request) -> Response:
    fields = await request.json()
    _seen.append({**fields, "authorization": request.headers.get("authorization")})
    if fields.get("algorithm") != "echo":
        return _fail(f"algorithm [{fields.get('algorithm')}] not support", "arg_error")
    return _answer(
        {"status": "ok", "data": {"model_id": f"{fields['parameter'].get('name', 'model')}-{next(_numbers)}"}}
    )


async def status(request: Request) -> Response:
    model_id = request.query_params["model_id"]
    looks = _looks[model_id] = _looks.get(model_id, 0) + 1
    word = ("init", "training", "completed")[min(looks, 3) - 1]
    if model_id.startswith("bad") and word == "completed":
        return _answer({"status": "ok", "data": {"status": "error"}})
    if model_id.startswith(("stuck", "bad")):
        word = "training"
        if model_id.startswith("bad"):
            _looks[model_id] = 3
    if model_id.startswith("nobody"):
        word = "unknown"
    return _answer({"status": "ok", "data": {"status": word}})


async def load(request: Request) -> Response:
    fields = await request.json()
    if fields["model_id"].startswith("broken"):
        return _fail("load fail no such file")
    _loaded.add(fields["model_id"])
    return _answer({"status": "ok"})


async def unload(request: Request) -> Response:
    _loaded.discard((await request.json())["model_id"])
    return _answer({"status": "ok"})


async def predict(request: Request) -> Response:
    fields = await request.json()
    if fields["model_id"] not in _loaded:
        return _fail(f"model [{fields['model_id']}] not loaded")
    features = fields.get("features")
    if not isinstance(features, dict):
        return _fail("expect [features] to be type [<class 'dict'>]", "arg_error")
    if features.get("sentence") == "boom":
        return _fail("predict fail division by zero")
    if features.get("sentence") == "nan":
        return Response('{"status": "ok", "data": {"predictions": NaN}}', media_type="application/json")
    return _answer({"status": "ok", "data": {"predictions": [features, fields.get("params")]}})


async def monitor(request: Request) -> Response:
    return _answer({"status": "ok", "data": {"load": {each: [0] for each in sorted(_loaded)}, "algorithms": ["echo"]}})


async def node_info(request: Request) -> Response:
    facts = {"totol_memory": 7.7, "totol_cpu": 2, "idle_memory_rate": 0.5, "idle_cpu_rate": 0.97}
    return _answer({"status": "ok", "data": {**facts, "net_io": "1.0/2.0", "block_io": "0.1/0.2"}})


async def seen(request: Request) -> Response:
    return _answer(_seen)


async def unknown(request: Request, error: Exception) -> Response:
    return Response(
        '{"message":"404 Not Found: The requested URL was not found","status":"fail"}\n', media_type="application/json"
    )


def _post(name: str, endpoint: Any) -> Route:
    return Route(f"/mlp/{name}", endpoint, methods=["POST"])


app = Starlette(
    routes=[
        _post("train", train),
        _post("load", load),
        _post("unload", unload),
        _post("delete", unload),
        _post("predict", predict),
        Route("/mlp/status", status),
        Route("/mlp/monitor", monitor),
        Route("/node_info", node_info),
        Route("/seen", seen),
    ],
    exception_handlers={404: unknown},
)


@contextmanager
def foreign_service() -> Iterator[str]:
    """The address of such a service, which runs in a process of its own until the end of the block."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.servers.foreign", str(port)])
    try:
        wait_until(lambda: accepts(port), "the foreign service listens")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(LONG)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
