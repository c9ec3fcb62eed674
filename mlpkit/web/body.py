"""The body of a request, within limits of size and time; and callers who go away before they are answered."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any

import anyio

from mlpkit.errors import BodyTooLarge, MalformedBody

if TYPE_CHECKING:
    from starlette.types import Message, Receive

_BODY_SECONDS = 60.0
"""How long the body of a request may take to arrive."""
_MOST_DROPPED = 16 << 20


class ClientGone(Exception):
    """The client closed the connection before it was answered; nobody is left to be answered."""


async def read_body(receive: Receive, limit: int) -> bytes:
    """The request's body.

    Raises:
        BodyTooLarge: it has more than `limit` bytes.
        MalformedBody: it did not arrive within a minute.
        ClientGone: the connection was closed before its end.
    """
    # Most often the first message is there already: a time limit is set, which costs much more, only where it is not.
    receiving: Any = receive()
    try:
        waits_for = receiving.send(None)
    except StopIteration as arrived:
        message: Message = arrived.value
    else:
        message = await _first(receiving, waits_for)
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body", False):
        if len(body) > limit:
            raise BodyTooLarge(f"the body is larger than {limit} bytes (MLPKIT_MAX_BODY)")
        return body
    return await _read_on(message, receive, limit)


async def _first(receiving: Coroutine[Any, Any, Message], waits_for: object) -> Message:
    """The first message of a `receive` that has begun to wait."""
    try:
        with anyio.fail_after(_BODY_SECONDS):
            return await _Begun(receiving, waits_for)
    except TimeoutError:
        raise _late() from None


class _Begun:
    """A coroutine that has run to its first wait, to be awaited from there on."""

    def __init__(self, coroutine: Coroutine[Any, Any, Message], waits_for: object) -> None:
        self._coroutine, self._waits_for = coroutine, waits_for

    def __await__(self) -> Generator[Any, Any, Message]:
        waits_for = self._waits_for
        try:
            while True:
                try:
                    value = yield waits_for
                except BaseException as error:
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(value)
        except StopIteration as ended:
            message: Message = ended.value
            return message


async def _read_on(message: Message, receive: Receive, limit: int) -> bytes:
    chunks, size = [], 0
    try:
        with anyio.fail_after(_BODY_SECONDS):
            while True:
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                size += len(chunk)
                # What is too much is read and dropped for a while: a client that still sends would not see an answer.
                if size <= limit:
                    chunks.append(chunk)
                if not message.get("more_body", False) or size > limit + _MOST_DROPPED:
                    break
                message = await receive()
    except TimeoutError:
        raise _late() from None
    if size > limit:
        raise BodyTooLarge(f"the body is larger than {limit} bytes (MLPKIT_MAX_BODY)")
    return b"".join(chunks)


def _late() -> MalformedBody:
    return MalformedBody(f"the body did not arrive within {_BODY_SECONDS:g} s")
