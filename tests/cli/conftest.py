from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers import LONG

MOOD = Path(__file__).parents[1] / "servers" / "mood.py"
"""The script that the commands are tried on; it is copied, so that it is found by its name alone."""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment_of(home: Path, **more: str) -> dict[str, str]:
    """The environment of a command: nothing of this shell that would change a setting."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLPKIT_", "MLP_", "MINIO_"))}
    return {**kept, "MLPKIT_HOME": str(home), "COLUMNS": "160", "PYTHONPATH": str(Path(__file__).parents[2]), **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the script `mood.py`."""
    (tmp_path / "mood.py").write_text(MOOD.read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


@pytest.fixture
def mlpkit(folder: Path) -> Run:
    """Runs `python -m mlpkit` with arguments in the folder, and gives its exit code and output."""

    def run(*arguments: str, input: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mlpkit", *arguments],
            cwd=folder,
            env=environment_of(folder / "home", **environment),
            input=input,
            capture_output=True,
            text=True,
            timeout=LONG,
        )

    return run
