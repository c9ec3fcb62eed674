"""One request and its answer, as the layers of the web pass them on."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from mlpkit.log import printable_uuid, request_id

if TYPE_CHECKING:
    from starlette.types import Scope, Send

    from mlpkit.web.answers import Answer

Header = tuple[bytes, bytes]
_SUCCESS = b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n"


class Exchange:
    """What is known of a request, and what became of it; under ASGI it is in `scope["exchange"]`.

    `caller_uuid` is the uuid that the caller sent, or None; `uuid` the one in the log, which is never missing once the
    request was admitted. `started` is in seconds of `perf_counter`, `sent` in bytes.
    """

    __slots__ = (
        "caller_uuid",
        "content_type",
        "headers",
        "route",
        "scope",
        "sent",
        "started",
        "status",
        "uuid",
        "word",
    )

    def __init__(self, scope: Scope) -> None:
        self.scope, self.started = scope, perf_counter()
        self.headers: list[Header] = []
        self.caller_uuid: str | None = None
        self.uuid = self.content_type = self.word = ""
        self.route, self.status, self.sent = "other", 0, 0

    def age(self) -> float:
        """Seconds since it began."""
        return perf_counter() - self.started

    def adopt(self, uuid: str | None) -> None:
        """Makes the uuid of the request's body, where it has one, the uuid of the request."""
        if uuid is not None:
            self.caller_uuid = uuid
            if uuid:
                self.uuid = printable_uuid(uuid)
                request_id.set(self.uuid)

    def head(self, content_type: bytes, size: int) -> list[Header]:
        """The headers of an answer of `size` bytes, with those that every answer of this request has."""
        return [
            (b"content-type", content_type),
            (b"content-length", b"%d" % size),
            (b"x-request-id", self.uuid.encode("ascii", "replace")),
            *self.headers,
        ]

    def answered(self, answer: Answer) -> list[Header]:
        """Notes for the log what the answer is; gives all its headers."""
        self.word = "" if answer.word == "success" else answer.word
        self.status, self.sent = answer.status, len(answer.body)
        return [*self.head(answer.content_type, len(answer.body)), *answer.headers]

    def success_lines(self, size: int) -> bytes:
        """The header lines of an answer of `size` bytes that is a success, ready to be sent."""
        lines = _SUCCESS % (size, self.uuid.encode("ascii", "replace"))
        return lines + lines_of(self.headers) if self.headers else lines

    async def send(self, answer: Answer, send: Send) -> None:
        """Sends an answer over ASGI, and notes it."""
        headers = self.answered(answer)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})


def lines_of(headers: list[Header]) -> bytes:
    """Headers as they stand in an answer, each line with its end."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])
