"""A server that gives requests the same short answer, whatever was asked: one in trouble, or one that sends on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_MISSING = b"<Error><Code>NoSuchKey</Code><Message>missing</Message></Error>"


class Refusing:
    """What such a server got: `METHOD path?query` of every request; `endpoint` is its host:port."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.requests: list[str] = []


@contextlib.contextmanager
def refusing(
    status: int,
    headers: Mapping[str, str] = {},
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    body: bytes = b"",
    methods: Collection[str] = ("GET", "HEAD", "PUT", "POST", "DELETE"),
) -> Iterator[Refusing]:
    """Answers on a port of `host` (a free one unless it is given) inside the block.

    Requests with other `methods` are answered as an empty S3 store does: what is read is missing, what is written is
    taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            found.requests.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.command in methods:
                self.send(status, headers, body)
            elif self.command in ("GET", "HEAD"):
                self.send(404, {"Content-Type": "application/xml"}, _MISSING)
            else:
                self.send(200, {"ETag": '"e"'}, b"")

        def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *words: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer((host, port), Handler) as server:
        found = Refusing(f"{host}:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield found
        finally:
            server.shutdown()
