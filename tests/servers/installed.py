"""Servers that PyPI has, each in a virtual environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import filelock


class NotInstallable(Exception):
    """A server could not be installed here; the message says why."""


def installed_python(name: str, requirement: str) -> Path:
    """The Python of an environment with that package, made on first use in `$MLPKIT_TEST_CACHE` or the user's cache.

    Raises:
        NotInstallable: pip failed; the message is the end of what it said.
    """
    cache = Path(os.environ.get("MLPKIT_TEST_CACHE") or Path.home() / ".cache" / "mlpkit-tests")
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    with filelock.FileLock(f"{folder}.lock", timeout=600):
        complete = folder / "complete"
        if not complete.exists() or complete.read_text() != requirement:
            venv.create(folder, clear=True, with_pip=True)
            command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement]
            done = subprocess.run(command, capture_output=True, text=True, timeout=500)
            if done.returncode:
                raise NotInstallable(done.stderr.strip()[-500:])
            complete.write_text(requirement)
    return python
