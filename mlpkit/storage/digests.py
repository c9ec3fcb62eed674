"""Digests of files that can be taken while the parts of a file arrive, in any order.

The digest is the SHA-256 of the SHA-256 of each block of 16 MiB; processors have instructions for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

BLOCK = 16 << 20
"""Bytes of one block; the last one may be shorter."""

_CHUNK = 256 << 10
"""Bytes read at a time. Larger buffers are given back to the system each time, and cost more than they save."""


class BlockDigest:
    """Takes in bytes from the beginning of a block on, in their order; `blocks` are the digests so far."""

    def __init__(self) -> None:
        self._done: list[bytes] = []
        self._current, self._room = hashlib.sha256(), BLOCK

    def update(self, data: bytes | memoryview) -> None:
        """Takes in the next bytes."""
        left = memoryview(data)
        while left:
            piece, left = left[: self._room], left[self._room :]
            self._current.update(piece)
            self._room -= len(piece)
            if not self._room:
                self._done.append(self._current.digest())
                self._current, self._room = hashlib.sha256(), BLOCK

    @property
    def blocks(self) -> list[bytes]:
        """The digests of the blocks, that of a last short one included."""
        return self._done if self._room == BLOCK else [*self._done, self._current.digest()]


def combined(blocks: Iterable[bytes]) -> str:
    """The digest of the file that has these blocks, as hexadecimal text."""
    return hashlib.sha256(b"".join(blocks)).hexdigest()


def digest_of(file: Path) -> str:
    """The digest of a file's content."""
    digest, buffer = BlockDigest(), memoryview(bytearray(_CHUNK))
    with file.open("rb", buffering=0) as content:
        while count := content.readinto(buffer):
            digest.update(buffer[:count])
    return combined(digest.blocks)
