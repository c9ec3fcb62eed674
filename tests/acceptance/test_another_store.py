"""The storage and another S3 server than the one that all other tests use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest

from tests.impossible import impossible
from tests.servers.installed import NotInstallable
from tests.servers.seaweed import ACCESS_KEY, SECRET_KEY, seaweed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_LONGEST = 600


def test_storage_keeps_its_contract_with_seaweedfs() -> None:
    # Its settings hold its keys: its folder is not one of those that are searched for secrets.
    with tempfile.TemporaryDirectory(prefix="mlpkit-seaweed-") as folder:
        try:
            with seaweed(Path(folder)) as endpoint:
                code, output = _tests_of_the_storage(endpoint)
        except (NotInstallable, OSError, subprocess.SubprocessError) as reason:
            impossible(reason)
    assert code == 0, output[-20_000:]


def _tests_of_the_storage(endpoint: str) -> tuple[int, str]:
    """How they ended, and what they said."""
    server = {
        "MLPKIT_TEST_S3": endpoint,
        "MLPKIT_TEST_S3_ACCESS_KEY": ACCESS_KEY,
        "MLPKIT_TEST_S3_SECRET_KEY": SECRET_KEY,
    }
    tests = ["tests/storage", "tests/serving/test_stores.py", "tests/check", "tests/faults/test_cancel.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")} | server
    with subprocess.Popen(
        command, cwd=root, env=environment, stdout=PIPE, stderr=STDOUT, text=True, start_new_session=True
    ) as tests_run:
        try:
            output, _ = tests_run.communicate(timeout=_LONGEST)
        except subprocess.TimeoutExpired:
            os.killpg(tests_run.pid, signal.SIGKILL)
            output, _ = tests_run.communicate()
    return tests_run.returncode, output
