"""A TCP relay in front of a server: counts the requests that pass, and breaks or stalls answers when told to."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator

from tests.servers.ports import LONG

_REQUEST = re.compile(rb"^(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1\.1\r\n")

_SMALL = 64 << 10


class Relay:
    """Listens on a port of `host` (a free one unless it is given) and passes everything on to `target` (host:port).

    Every answer takes `trip` seconds longer. `requests` holds `METHOD path?query` of every request, `answered` counts
    the bytes of answers that have passed. Use it as a context manager.
    """

    def __init__(self, target: str, port: int = 0, host: str = "127.0.0.1", trip: float = 0.0) -> None:
        target_host, _, target_port = target.rpartition(":")
        self._target = (target_host, int(target_port))
        self._listener = socket.create_server((host, port))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._held, self._flowing = b"", threading.Event()
        self._flowing.set()
        self.endpoint = f"{host}:{self._listener.getsockname()[1]}"
        self.requests: list[str] = []
        self._cuts, self._after, self._methods = 0, 0, ("GET",)
        self._rate, self._trip = 0, trip
        self.answered = 0

    def count(self, method: str, part: str = "") -> int:
        """How many requests with this method and this part in their path have passed."""
        return sum(each.startswith(f"{method} ") and part in each for each in list(self.requests))

    def cut(self, times: int, after: int, method: str = "GET") -> None:
        """Breaks the next `times` connections that answer this method and have carried `after` bytes of answers."""
        self._cuts, self._after, self._methods = times, after, (method,)

    @contextlib.contextmanager
    def held(self, part: str = "") -> Iterator[None]:
        """Lets no GET with this part in its path through inside the block: who waits for the answer goes on waiting."""
        self._held = part.encode()
        self._flowing.clear()
        try:
            yield
        finally:
            self._flowing.set()

    @contextlib.contextmanager
    def slowed(self, rate: int) -> Iterator[None]:
        """Lets every connection pass so many bytes a second in each direction inside the block."""
        self._rate = rate
        try:
            yield
        finally:
            self._rate = 0

    def close(self) -> None:
        """Ends all connections; new ones are refused."""
        with contextlib.suppress(OSError):
            # Wakes the thread that waits in accept; closing alone does not.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._target, timeout=LONG) as server:
            server.settimeout(None)
            if self._rate:
                # Else the system takes megabytes at once, however slowly they are read.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
            with self._registered(client, server):
                asked = threading.Event()
                threading.Thread(target=self._pass_requests, args=(client, server, asked), daemon=True).start()
                self._pass_answers(client, server, asked)

    def _pass_requests(self, client: socket.socket, server: socket.socket, asked: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if found := _REQUEST.match(data):
                    self.requests.append(f"{found[1].decode()} {found[2].decode()}")
                    if found[1] == b"GET" and self._held in found[2]:
                        self._flowing.wait(LONG)
                self._take_time(data)
                asked.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _pass_answers(self, client: socket.socket, server: socket.socket, asked: threading.Event) -> None:
        passed = 0
        while data := server.recv(1 << 16):
            cutting = self._cuts > 0 and self.requests[-1].startswith(self._methods)
            if cutting and passed + len(data) > self._after:
                self._cuts -= 1
                client.sendall(data[: max(0, self._after - passed)])
                for each in (client, server):
                    each.shutdown(socket.SHUT_RDWR)
                return
            passed += len(data)
            if asked.is_set():
                asked.clear()
                time.sleep(self._trip)
            self._take_time(data)
            client.sendall(data)
            self.answered += len(data)

    def _take_time(self, data: bytes) -> None:
        if self._rate:
            time.sleep(len(data) / self._rate)

    @contextlib.contextmanager
    def _registered(self, *sockets: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.update(sockets)
        try:
            yield
        finally:
            with self._lock:
                self._open.difference_update(sockets)
