"""The body of a request, within limits of size and time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from mlpkit.errors import BodyTooLarge, MalformedBody
from mlpkit.web.request import ClientGone

if TYPE_CHECKING:
    from starlette.types import Receive

T = TypeVar("T")

_LONG = 1 << 20
"""Work on a body of at least this many bytes is done in a thread. For a smaller one the hand-over takes longer."""
_BODY_SECONDS = 60.0
"""How long the body of a request may take to arrive."""
_MOST_DROPPED = 16 << 20
"""Bytes beyond the limit that are read and dropped: a client that still sends would not see the response."""


async def read_body(receive: Receive, limit: int) -> bytes:
    """The request's body.

    Raises:
        BodyTooLarge: it has more than `limit` bytes.
        MalformedBody: it did not arrive within a minute.
        ClientGone: the connection was closed before its end.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(_BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                size += len(chunk)
                if size <= limit:
                    chunks.append(chunk)
                if not message.get("more_body", False) or size > limit + _MOST_DROPPED:
                    break
    except TimeoutError:
        raise MalformedBody(f"the body did not arrive within {_BODY_SECONDS:g} s") from None
    if size > limit:
        raise body_too_large(limit)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def body_too_large(limit: int) -> BodyTooLarge:
    """The refusal of a body of more than `limit` bytes."""
    return BodyTooLarge(f"the body is larger than {limit} bytes (MLPKIT_MAX_BODY)")


async def work_on(body: bytes, call: Callable[[], T]) -> T:
    """What a call on the whole body gives; other requests continue meanwhile."""
    return await anyio.to_thread.run_sync(call) if len(body) > _LONG else call()
