"""What goes between the server and the nursery: a `Birth` down, and news of the child up."""

from __future__ import annotations

import struct

import msgspec

NEWS = struct.Struct(">ci")
"""`BORN` and the child's pid, or `DEAD` and its exit code: below zero the signal, as subprocess has it."""
BORN, DEAD = b"+", b"-"
LARGEST_REQUEST = 1 << 20


class Birth(msgspec.Struct, frozen=True, array_like=True):
    """What a child is: `python -m module`, in this folder, with this environment and this search path.

    All but the module are bytes, because the names of files and the environment need not be text.
    """

    module: str
    folder: bytes
    path: list[bytes]
    environment: dict[bytes, bytes]
