"""Files: writing to a disk that takes a part only, and digests that are taken in pieces."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from mlpkit.storage.store import BLOCK, BlockDigest, combined, digest_of, write_at


def test_write_that_the_kernel_cuts_off_is_an_error(tmp_path: Path) -> None:
    """A limit of the process does what a disk does that is nearly full: `pwrite` reports a part as a success."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        assert os.pwrite(file, bytes(300_000), 0) == 200_000
        with pytest.raises(OSError, match="too large"):
            write_at(file, bytes(300_000), 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        os.close(file)


def test_all_of_it_is_written_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"....")
    file = os.open(tmp_path / "file", os.O_RDWR)
    write_at(file, b"ab", 1)
    os.close(file)
    assert (tmp_path / "file").read_bytes() == b".ab."


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_a_digest_is_the_same_in_whatever_pieces_the_content_comes(tmp_path: Path, size: int) -> None:
    content = os.urandom(1 << 10) * (size // (1 << 10)) + os.urandom(size % (1 << 10))
    (tmp_path / "file").write_bytes(content)
    pieces, ranges = BlockDigest(), []
    for start in range(0, size, 3_000_001):
        pieces.update(content[start : start + 3_000_001])
    for start in range(0, size, BLOCK):
        ranges.append(BlockDigest())
        ranges[-1].update(content[start : start + BLOCK])

    assert combined(pieces.blocks) == digest_of(tmp_path / "file")
    assert combined(block for each in ranges for block in each.blocks) == digest_of(tmp_path / "file")
    if size:
        (tmp_path / "file").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert combined(pieces.blocks) != digest_of(tmp_path / "file")
