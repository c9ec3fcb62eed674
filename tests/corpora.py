"""The public test data, which is no part of the repository."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mlpkit.formats import read_rows

ROOT = Path(__file__).parent.parent


def corpora_folder() -> Path:
    """The folder with the test data in the platform's formats; skips the test if it does not exist."""
    named = os.environ.get("MLPKIT_TEST_DATA")
    found = Path(named) if named else ROOT.parent / "shared" / "data"
    if not found.is_dir():
        pytest.skip("no test data: MLPKIT_TEST_DATA names its folder, and ../shared/data does not exist")
    return found


def small_corpus(name: str, kind: str, rows: int) -> list[Any]:
    """The first test rows of a data set."""
    return list(islice(read_rows(corpora_folder() / name / "test.tsv", kind), rows))
