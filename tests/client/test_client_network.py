"""What the client does when the network, or the service, misbehaves: real sockets that do so."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mlpkit.client import Client, LogEvent
from mlpkit.errors import ArgumentError, ServiceUnreachable, TimeLimitExceeded, UnexpectedAnswer
from tests.servers import LONG, SOON

MONITOR = b'{"status": "success", "data": {"load": {}, "algorithms": ["a"]}}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(MONITOR) + MONITOR


class Listener:
    """Accepts connections; `behave(connection, number)` does with each what it likes."""

    def __init__(self, behave: Callable[[socket.socket, int], None]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._behave, self.accepted, self._open = behave, 0, [self._socket]
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self._open.append(connection)
                self.accepted += 1
                self._behave(connection, self.accepted)

    def close(self) -> None:
        for each in self._open:
            each.close()


@contextlib.contextmanager
def listening(behave: Callable[[socket.socket, int], None]) -> Iterator[Listener]:
    listener = Listener(behave)
    try:
        yield listener
    finally:
        listener.close()


def read_request(connection: socket.socket) -> None:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)


def drop(connection: socket.socket, number: int) -> None:
    read_request(connection)
    connection.close()


def silent(connection: socket.socket, number: int) -> None:
    pass


def test_no_service_is_said_plainly() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    client = Client(url)
    with pytest.raises(ServiceUnreachable, match="no service answers at http"):
        client.unload("a", "m")
    assert not client.live()
    assert client.ready().reasons
    with pytest.raises(TimeLimitExceeded, match=r"not ready after 0\.1 s: no service answers"):
        client.wait_ready(0.1)


def test_reading_is_tried_again_after_a_broken_connection() -> None:
    def behave(connection: socket.socket, number: int) -> None:
        if number < 3:
            return drop(connection, number)
        read_request(connection)
        connection.sendall(OK)
        return None

    with listening(behave) as service:
        assert Client(service.url).monitor().algorithms == ["a"]
        assert service.accepted == 3


def test_a_change_is_never_sent_twice() -> None:
    with listening(drop) as service, pytest.raises(ServiceUnreachable, match="broke before the answer"):
        Client(service.url).load("a", "m")
    assert service.accepted == 1


def test_a_silent_service_is_given_up_in_time() -> None:
    with listening(silent) as service:
        started = time.monotonic()
        with pytest.raises(TimeLimitExceeded, match=r"not answered within 0\.3 s"):
            Client(service.url).predict("m", {}, timeout=0.3)
        assert time.monotonic() - started < SOON
        assert service.accepted == 1


def test_a_redirect_is_not_followed() -> None:
    def behave(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")

    with listening(behave) as service, pytest.raises(UnexpectedAnswer, match="HTTP 302"):
        Client(service.url).monitor()


def test_a_page_of_something_else_is_no_answer() -> None:
    def behave(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 13\r\n\r\n<html></html>")

    with listening(behave) as service, pytest.raises(UnexpectedAnswer, match="HTTP 502 with '<html></html>'"):
        Client(service.url).monitor()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(text), text)


def test_events_continue_after_the_last_whole_one_if_the_connection_breaks() -> None:
    requests: list[bytes] = []

    def behave(connection: socket.socket, number: int) -> None:
        requests.append(connection.recv(65536))
        if number == 1:
            # The second event is cut off.
            parts = chunk(b'id: 3.10\nevent: log\ndata: {"text": "one\\n"}\n\nid: 4.20\nevent: log\nda')
        elif number == 2:
            parts = b""
        elif number == 3:
            connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.close()
            return
        else:
            parts = chunk(b": still here\n\nevent: from the future\ndata: {}\n\n")
            parts += chunk(b'id: 4.20\nevent: log\ndata: {"text": "tw') + chunk(
                b'o\\n"}\n\nid: 5.20\nevent: end\ndata: {}\n\n'
            )
        connection.sendall(STREAM + parts)
        connection.close()

    with listening(behave) as service:
        events = list(Client(service.url).events("m", timeout=LONG))
    assert [event.text for event in events if isinstance(event, LogEvent)] == ["one\n", "two\n"]
    assert len(events) == 2
    assert b"last-event-id" not in requests[0].lower()
    assert all(b"\r\nLast-Event-ID: 3.10\r\n" in request for request in requests[1:])
    assert len(requests) == 4


def test_a_stream_that_says_nothing_is_given_up_in_time() -> None:
    def behave(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(STREAM)

    with listening(behave) as service, pytest.raises(TimeLimitExceeded, match=r"within 0\.\d+ s"):
        list(Client(service.url).events(timeout=0.3))


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", ""])
def test_an_address_without_http_is_refused(url: str) -> None:
    with pytest.raises(ArgumentError, match="must start with http"):
        Client(url)
