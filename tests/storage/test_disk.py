"""Writing to a disk that takes a part only."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from mlpkit.storage.store import write_at


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
