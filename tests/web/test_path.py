"""How far a prediction goes through the package: the fewer functions, the easier it is to follow, and the faster."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

from tests.servers import LONG
from tests.wire.replayer import Service

MOST_FILES = 14
MOST_CALLS = 55
REQUESTS = 20


def test_plain_prediction_takes_few_functions_of_few_files(tmp_path: Path) -> None:
    service = Service(
        "default",
        command=("-m", "mlpkit", "run", "tests.web.traced:app"),
        MLP_CLIENT_WORKER="1",
        TRACE_FOLDER=str(tmp_path),
    )
    try:
        assert service.post("/load", '{"algorithm": "traced", "model_id": "m"}').json == {"status": "success"}
        with socket.create_connection(("127.0.0.1", service.port), timeout=LONG) as connection:
            windows = [window_of_one(connection) for _ in range(REQUESTS)]
        paths = [path_between(tmp_path, *window) for window in windows]
    finally:
        service.stop()
    # The shortest: what happens in the background, such as the look at the time limits, falls into few of them.
    shortest = min(paths, key=len)
    files = sorted({line.split()[0] for line in shortest})
    shown = "\n".join([*shortest, f"{len(files)} files, {len(shortest)} calls"])
    assert any("web/connection.py" in line for line in shortest), shown
    assert any("serving/" in line for line in shortest), shown
    assert len(files) <= MOST_FILES, shown
    assert len(shortest) <= MOST_CALLS, shown


def window_of_one(connection: socket.socket) -> tuple[float, float]:
    """When a prediction was sent, and when all that belongs to it was over (`time.monotonic`)."""
    body = json.dumps({"model_id": "m", "features": {"text": "x"}}).encode()
    head = b"POST /predict HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n"
    started = time.monotonic()
    connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    received = b""
    while not received.endswith(b"}}"):
        received += connection.recv(1 << 16)
    # The access log's line is made after the answer is out.
    time.sleep(0.01)
    return started, time.monotonic()


def path_between(folder: Path, start: float, end: float) -> list[str]:
    """The calls in this time, in all processes, in their order: `file function`."""
    lines = [line.split(" ", 1) for file in folder.iterdir() for line in file.read_text().splitlines()]
    inside = sorted((float(moment), call) for moment, call in lines if start <= float(moment) <= end)
    return [call for _, call in inside]
