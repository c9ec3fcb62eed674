"""What real clients send beside plain requests: offers to upgrade, encodings, texts that were cut, tiny chunks."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlpkit.service import url_of
from tests.impossible import impossible
from tests.servers import LONG
from tests.web.test_connection import everything
from tests.web.test_uuid_and_log import the_line
from tests.wire.replayer import Service

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
WEBSOCKET = b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
BODIES = {
    "/train": {"algorithm": "echo", "model_path": "", "data": {}, "parameter": {}, "extend": {}},
    "/load": {"algorithm": "echo", "model_id": "offered"},
    "/predict": {"model_id": "offered", "features": {"sentence": "x"}},
    "/unload": {"algorithm": "echo", "model_id": "not loaded"},
}


@pytest.fixture
def loaded(either: Service) -> Service:
    """The service, with the model that the requests name."""
    either.post("/load", json.dumps(BODIES["/load"]))
    return either


@pytest.fixture
def connected(loaded: Service) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", loaded.port), timeout=LONG) as connection:
        yield connection


def head(path: str, more: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n%b" % (path.encode(), more)


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("path", BODIES)
def test_offer_to_upgrade_is_ignored_and_the_request_answered(
    connected: socket.socket, path: str, offer: bytes
) -> None:
    body = json.dumps(BODIES[path]).encode()
    whole = head(path, offer) + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:]))
    chunked = head(path, offer) + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    answers = []
    for pieces in (
        [whole],
        [whole[: -len(body)], body],
        [whole[:70], whole[70:-5], whole[-5:]],
        [chunked],
        [chunked * 2],
    ):
        for piece in pieces:
            connected.sendall(piece)
        received = b""
        while received.count(b'"status": "success"') < max(1, len(pieces[0]) // len(chunked)):
            received += connected.recv(1 << 16)
        answers.append(received)
    assert all(answer.startswith(b"HTTP/1.1 200 OK\r\n") for answer in answers)


def test_offer_in_a_request_without_a_body_is_ignored_too(connected: socket.socket) -> None:
    connected.sendall(b"GET /monitor HTTP/1.1\r\nHost: service\r\n%b\r\n" % H2C)
    answer = b""
    while b'"algorithms"' not in answer and (arrived := connected.recv(1 << 16)):
        answer += arrived
    assert b'"algorithms"' in answer
    connected.sendall(b"GET /monitor HTTP/1.1\r\nHost: service\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n")
    assert b"connection: close\r\n" in everything(connected)


def test_many_offers_that_are_sent_ahead_are_all_ignored(connected: socket.socket) -> None:
    request = b"GET /health/live HTTP/1.1\r\nHost: service\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    connected.sendall(request * 2000 + request.replace(b"Upgrade\r", b"Upgrade, close\r"))
    assert everything(connected).count(b"HTTP/1.1 200 OK\r\n") == 2001


def test_connect_is_refused_and_ends_the_connection(connected: socket.socket) -> None:
    connected.sendall(b"CONNECT service:443 HTTP/1.1\r\nHost: service:443\r\n\r\n")
    assert everything(connected).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_stock_java_client_is_answered(loaded: Service, tmp_path: Path) -> None:
    if shutil.which("javac") is None:
        impossible("there is no JDK on this machine")
    program = Path(__file__).with_name("Caller.java")
    arguments = [f"http://127.0.0.1:{loaded.port}"]
    for path in ("/train", "/load", "/predict"):
        arguments += [path, json.dumps(BODIES[path])]
    done = subprocess.run(["java", program, *arguments], capture_output=True, text=True, timeout=LONG, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["success"] * 3


@pytest.mark.parametrize("path", ["/predict", "/load", "/train"])
def test_compressed_body_is_refused_by_name(loaded: Service, path: str) -> None:
    body = gzip.compress(json.dumps(BODIES[path]).encode())
    with socket.create_connection(("127.0.0.1", loaded.port), timeout=LONG) as connection:
        connection.sendall(head(path, b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)) + body)
        received = everything(connection)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Encoding: gzip, which is not supported" in received


def test_body_that_says_it_has_no_encoding_is_read(loaded: Service) -> None:
    answer = loaded.post("/predict", json.dumps(BODIES["/predict"]), **{"Content-Encoding": "identity"})
    assert answer.json["status"] == "success"


@pytest.mark.parametrize("path", ["/predict", "/load"])
@pytest.mark.parametrize(
    ("text", "named"),
    [
        (r"ab\ud83d", r"\ud83d (byte "),
        (r"\ud83d ab", r"\ud83d (byte "),
        (r"\ude00", r"\ude00 (byte "),
        (r"\ud83d\u0041", r"\ud83d (byte "),
        (r"\\\ud83d\ude00\uDE00", r"\uDE00 (byte "),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_with_its_place(plain: Service, path: str, text: str, named: str) -> None:
    answer = plain.post(path, f'{{"model_id": "offered", "features": {{"sentence": "{text}"}}}}')
    assert (answer.status, answer.json["status"]) == (400, "arg_error")
    assert named in answer.json["message"]
    assert "half of a surrogate pair" in answer.json["message"]


def test_whole_surrogate_pair_and_escaped_backslash_are_read(loaded: Service) -> None:
    answer = loaded.post("/predict", r'{"model_id": "offered", "features": {"sentence": "\ud83d\ude00 \\ud83d"}}')
    assert answer.json["data"]["predictions"][0]["label"] == "\N{GRINNING FACE} \\ud83d"


def test_successful_probes_are_not_logged_if_the_log_is_to_be_without() -> None:
    service = Service("default", MLP_CLIENT_WORKER="1", MLPKIT_ACCESS_LOG="no-probes")
    try:
        for path in ("/health/live", "/health/ready", "/monitor"):
            assert service.get(path).status == 200
        the_line(service, "GET /monitor")
        assert " 200 " not in "".join(line for line in service.log().splitlines() if "/health/" in line)
    finally:
        service.stop()


def test_address_of_ip_version_6_is_shown_in_brackets() -> None:
    assert url_of(("::", 8000, 0, 0)) == "http://[::]:8000"
    assert url_of(("127.0.0.1", 8000)) == "http://127.0.0.1:8000"
