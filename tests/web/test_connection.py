"""The shortcut of predictions, and that all requests get the same answers on uvicorn's way."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.servers import LONG
from tests.web.conftest import ORIGIN, TOKEN
from tests.web.test_uuid_and_log import the_line
from tests.wire.replayer import Service

HEALTH = b"GET /health/live HTTP/1.1\r\nHost: service\r\n\r\n"
CLOSE = b"Connection: close\r\n"


@pytest.fixture(scope="module")
def echo(either: Service) -> Service:
    """The service with a model that answers the sentence it is given."""
    either.post("/load", '{"algorithm": "echo", "model_id": "e"}')
    return either


@pytest.fixture
def connected(echo: Service) -> Iterator[socket.socket]:
    """A connection to it."""
    with socket.create_connection(("127.0.0.1", echo.port), timeout=LONG) as connection:
        yield connection


def prediction(sentence: str, more: bytes = b"", version: bytes = b"1.1", **fields: str) -> bytes:
    """The bytes of a request; `more` are further header lines."""
    body = json.dumps({"model_id": "e", "features": {"sentence": sentence}, **fields}).encode()
    head = b"POST /predict HTTP/%b\r\nHost: service\r\nContent-Type: application/json\r\n" % version
    return head + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


def answers(connection: socket.socket, count: int) -> bytes:
    """What arrives until so many answers are whole."""
    received = b""
    while len(labels(received)) < count or not received.endswith(b"}}"):
        received += connection.recv(1 << 16)
    return received


def everything(connection: socket.socket) -> bytes:
    """What arrives until the service closes the connection."""
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def labels(received: bytes) -> list[str]:
    """The labels in the answers, in the order of their arrival."""
    return re.findall(r'"label": ?"([^"]*)"', received.decode())


def test_head_and_body_of_a_prediction_arrive_in_one_piece(plain: Service) -> None:
    plain.post("/load", '{"algorithm": "echo", "model_id": "e"}')
    with socket.create_connection(("127.0.0.1", plain.port), timeout=LONG) as connection:
        pieces_are_whole(connection)


def pieces_are_whole(connection: socket.socket) -> None:
    for number in range(50):
        connection.sendall(prediction(f"sentence {number}"))
        piece = connection.recv(1 << 16)
        assert piece.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\ndate: " in piece
        assert labels(piece) == [f"sentence {number}"]
        assert piece.endswith(b"}}")


def test_answers_to_requests_sent_ahead_come_whole_and_in_order(connected: socket.socket) -> None:
    connected.sendall(prediction("a") + HEALTH + prediction("b") + prediction("c") + HEALTH + prediction("d", CLOSE))
    received = everything(connected)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 6
    assert labels(received) == ["a", "b", "c", "d"]
    lengths = [int(each) for each in re.findall(rb"content-length: (\d+)", received)]
    assert received.endswith(b"}}")
    assert len(received) == sum(lengths) + len(b"".join(re.findall(rb"HTTP/1.1 .*?\r\n\r\n", received, re.DOTALL)))


def test_a_prediction_in_pieces_is_answered_like_a_whole_one(connected: socket.socket) -> None:
    request = prediction("in pieces")
    for cut in (1, 30, len(request) - 60, len(request) - 1):
        connected.sendall(request[:cut])
        connected.sendall(request[cut:])
        assert labels(answers(connected, 1)) == ["in pieces"]


def test_a_prediction_in_chunks_is_answered_like_one_of_known_length(connected: socket.socket) -> None:
    head, _, body = prediction("in chunks").partition(b"\r\n\r\n")
    head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]))
    connected.sendall(head + b"\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert labels(answers(connected, 1)) == ["in chunks"]


def test_token_origin_and_limit_hold_for_predictions(strict: Service) -> None:
    token, origin = b"Authorization: Bearer %b\r\n" % TOKEN.encode(), b"Origin: %b\r\n" % ORIGIN.encode()
    strict.post("/load", '{"algorithm": "echo", "model_id": "e"}', Authorization=f"Bearer {TOKEN}")
    for more, sentence, line in [
        (token + origin, "x", b"HTTP/1.1 200 OK\r\n"),
        (b"", "x", b"HTTP/1.1 401 Unauthorized\r\n"),
        (b"Authorization: Bearer no\r\n", "x", b"HTTP/1.1 401 Unauthorized\r\n"),
        (token, "x" * 11_000, b"HTTP/1.1 413 "),
    ]:
        with socket.create_connection(("127.0.0.1", strict.port), timeout=LONG) as connection:
            connection.sendall(prediction(sentence, more + CLOSE))
            received = everything(connection)
        assert received.startswith(line)
        assert (b"access-control-allow-origin: %b\r\n" % ORIGIN.encode() in received) == (origin in more)


def test_a_prediction_whose_body_pauses_is_read_to_its_end_all_the_same(connected: socket.socket) -> None:
    request = prediction("after a pause")
    connected.sendall(request[:-20])
    # Longer than the connection holds it for the short way.
    time.sleep(1.3)
    connected.sendall(request[-20:])
    received = connected.recv(1 << 16)
    while b"}}" not in received:
        received += connected.recv(1 << 16)
    assert labels(received) == ["after a pause"]


@pytest.mark.parametrize(
    "request_of",
    [lambda: prediction("last", CLOSE), lambda: prediction("last", version=b"1.0")],
    ids=["Connection: close", "HTTP/1.0"],
)
def test_a_connection_is_closed_after_the_answer_where_the_caller_asks_for_it(
    connected: socket.socket, request_of: Callable[[], bytes]
) -> None:
    connected.sendall(request_of())
    received = everything(connected)
    # HTTP/1.0 closes without saying so, and the oldest uvicorn that we allow does not say it there.
    assert b"connection: close\r\n" in received or b"HTTP/1.0" in request_of()
    assert labels(received) == ["last"]


def test_an_idle_connection_keeps_nothing_of_its_last_prediction(echo: Service) -> None:
    server, size, count = psutil.Process(echo.pid), 16 << 20, 8
    features = {"sentence": "x", "more": "y" * size}
    whole = json.dumps({"model_id": "e", "features": features}).encode()
    request = prediction("x").partition(b"Content-Length")[0] + b"Content-Length: %d\r\n\r\n" % len(whole) + whole
    before = server.memory_info().rss
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", echo.port), timeout=LONG))
            connection.sendall(request)
            assert labels(answers(connection, 1)) == ["x"]
        grown = server.memory_info().rss - before
    # Half of it, and what the allocator keeps for the next.
    assert grown < count * size * 0.6


@pytest.mark.parametrize(("old", "new"), [(b'"e"', b'"f"'), (b"features", b"featurex"), (b'"x"', b"null")])
def test_a_failed_prediction_leaves_its_connection_usable(connected: socket.socket, old: bytes, new: bytes) -> None:
    failing = prediction("x").replace(old, new, 1)
    length = b"Content-Length: %d" % len(failing.partition(b"\r\n\r\n")[2])
    failing = re.sub(rb"Content-Length: \d+", length, failing)
    connected.sendall(failing + prediction("after", CLOSE))
    received = everything(connected)
    assert received.count(b'"message": "') == 1
    assert labels(received) == ["after"]


def test_prediction_leaves_a_line_in_the_log_and_a_count(echo: Service, connected: socket.socket) -> None:
    def counted() -> float:
        found = re.search(
            r'mlpkit_requests_total\{route="predict",status="success"\} ([\d.]+)', echo.get("/metrics").text
        )
        assert found is not None
        return float(found[1])

    connected.sendall(prediction("x", uuid="one-prediction"))
    assert b"x-request-id: one-prediction\r\n" in answers(connected, 1)
    assert re.search(r"POST /predict 200 \d+\.\d ms \d+ B$", the_line(echo, "one-prediction"))
    before = counted()
    connected.sendall(prediction("x"))
    answers(connected, 1)
    assert counted() == before + 1


def test_a_caller_who_hangs_up_is_noted_soon(echo: Service) -> None:
    echo.post("/load", '{"algorithm": "slow", "model_id": "s"}')
    with socket.create_connection(("127.0.0.1", echo.port), timeout=LONG) as connection:
        slow = prediction("x", uuid="hung-up").replace(b'"model_id": "e"', b'"model_id": "s"')
        connection.sendall(slow.replace(b'{"sentence": "x"}', b'{"seconds": 1  } '))
    assert " 499 " in the_line(echo, "hung-up")


def test_same_head_again_and_again_is_read_with_what_follows_it(connected: socket.socket) -> None:
    whole = prediction("known")
    head, _, body = whole.partition(b"\r\n\r\n")
    for _ in range(2):
        connected.sendall(whole)
        assert labels(answers(connected, 1)) == ["known"]
    # With its body later, with a byte of the next request, with two more requests, with a line before it.
    connected.sendall(head + b"\r\n\r\n")
    connected.sendall(body + whole[:1])
    assert labels(answers(connected, 1)) == ["known"]
    connected.sendall(whole[1:] + whole + b"\r\n" + prediction("last", CLOSE))
    assert labels(everything(connected)) == ["known", "known", "last"]


def test_head_that_differs_by_a_byte_is_another_request(echo: Service) -> None:
    body = b'{"model_id": "e", "features": {"sentence": "x"}}'
    for head, expected in [
        (b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n", b"200 OK"),
        (b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n", b"200 OK"),
        (b"POST /predicu HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n", b"404 Not Found:"),
        (b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain000000\r\n", b"arg_error"),
        (b"PUT  /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n", b"405 "),
    ]:
        with socket.create_connection(("127.0.0.1", echo.port), timeout=LONG) as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            received = connection.recv(1 << 16)
            while not received.endswith(b"}"):
                received += connection.recv(1 << 16)
        assert expected in received


def test_token_is_asked_for_each_time_on_one_connection_too(strict: Service) -> None:
    token = b"Authorization: Bearer %b\r\n" % TOKEN.encode()
    strict.post("/load", '{"algorithm": "echo", "model_id": "e"}', Authorization=f"Bearer {TOKEN}")
    for more in (token, token, token[:-3] + b"\r\n", token):
        with socket.create_connection(("127.0.0.1", strict.port), timeout=LONG) as connection:
            connection.sendall(prediction("x", more))
            assert (b" 200 OK" in connection.recv(1 << 16)) == (more == token)


def test_plain_uvicorn_serves_if_its_internals_are_not_as_expected() -> None:
    code = (
        "from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol\n"
        "Protocol.send_400 = Protocol.send_400_response; del Protocol.send_400_response\n"
        "from mlpkit.cli import main; main()"
    )
    service = Service("default", command=("-c", code, "run", "wire_algorithms:app"), MLP_CLIENT_WORKER="1")
    try:
        service.post("/load", '{"algorithm": "echo", "model_id": "e"}')
        answer = service.post("/predict", '{"model_id": "e", "features": {"sentence": "x"}}')
        assert answer.json["data"]["predictions"] == [{"label": "x", "score": 100}]
        assert "this version of uvicorn does not fit (send_400_response)" in service.log()
    finally:
        service.stop()
