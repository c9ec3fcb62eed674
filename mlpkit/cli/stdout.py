"""Keeps stdout for the result of a command, so that `MODEL=$(mlpkit train ...)` gets nothing else."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def script_prints_to_stderr() -> Iterator[None]:
    """Sends what the script prints to stderr, where stdout is a file or a pipe; a terminal shows both anyway."""
    if os.isatty(1):
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    # The descriptor itself: C code and grandchildren write there too.
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
