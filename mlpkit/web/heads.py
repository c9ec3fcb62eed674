"""The heads of predictions that were parsed before: a caller sends the same bytes again and again.

The same bytes mean the same: what a parser found in them once need not be looked for again. Only heads that the parser
itself has read to their end, in a request that was nothing but head and body, are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope

_END = b"\r\n\r\n"
_LONGEST = 2048
"""Bytes: a longer head is parsed each time."""
_MOST = 256
_OWN = b"x-request-id"
"""A header that is another with each request."""


@dataclass(frozen=True)
class Head:
    """A head that is known: the body's length in bytes, and the scope, which all its requests share."""

    length: int
    scope: Scope


class Heads:
    """What is known of heads, bounded in number and size."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, data: bytes) -> Head | None:
        """The head that `data` begins with, where it is known and nothing but its whole body follows."""
        end = data.find(_END) + len(_END)
        head = self._known.get(data[:end]) if end <= _LONGEST else None
        return head if head is not None and len(data) - end == head.length else None

    def learn(self, data: bytes, length: int, scope: Scope) -> None:
        """Keeps the head of a request in `data`, where that is just a head and a body of this length."""
        end = data.find(_END) + len(_END)
        if len(data) - end != length or end > _LONGEST or any(name == _OWN for name, _ in scope["headers"]):
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        kept = ("type", "method", "path", "raw_path", "query_string", "headers")
        self._known[data[:end]] = Head(length, {name: scope[name] for name in kept})
