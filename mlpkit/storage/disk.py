"""Local disks that are full: how they say so, and writing that never stops half-way in silence."""

from __future__ import annotations

import errno
import os


def is_full(error: OSError) -> bool:
    """Whether the disk, or this user's share of it, has no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_at(file: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of the data at the offset of an open file.

    Raises:
        OSError: not all of it could be written. The kernel's own `pwrite` writes a part and raises nothing where a disk
            has room for that part only.
    """
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written
