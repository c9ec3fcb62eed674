"""What the connection adds to uvicorn's own."""

from __future__ import annotations

import socket

from tests.wire.replayer import Service

REQUEST = b"GET /health/live HTTP/1.1\r\nHost: service\r\n\r\n"


def test_head_and_body_of_an_answer_arrive_in_one_piece(plain: Service) -> None:
    with socket.create_connection(("127.0.0.1", plain.port), timeout=10) as connection:
        for _ in range(50):
            connection.sendall(REQUEST)
            piece = connection.recv(1 << 16)
            assert piece.startswith(b"HTTP/1.1 200 OK\r\n")
            assert piece.endswith(b"}")


def test_answers_to_requests_sent_ahead_come_whole_and_in_order(plain: Service) -> None:
    closing = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with socket.create_connection(("127.0.0.1", plain.port), timeout=10) as connection:
        connection.sendall(REQUEST * 3 + closing)
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert received.count(b"HTTP/1.1 200 OK") == 4
    assert received.count(b'{"status": "success"') == 4
