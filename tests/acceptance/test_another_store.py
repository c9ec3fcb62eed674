"""The storage and another S3 server than the one that all other tests use."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.servers.installed import NotInstallable
from tests.servers.seaweed import ACCESS_KEY, SECRET_KEY, seaweed

pytestmark = pytest.mark.slow


def test_storage_keeps_its_contract_with_seaweedfs() -> None:
    # Its log has the keys in it, as every store must know them: not in a folder that is searched for secrets.
    with tempfile.TemporaryDirectory(prefix="mlpkit-seaweed-") as folder:
        try:
            with seaweed(Path(folder)) as endpoint:
                done = _tests_of_the_storage(endpoint)
        except NotInstallable as reason:
            if os.environ.get("CI") == "true":
                pytest.fail(str(reason))
            pytest.skip(str(reason))
    assert done.returncode == 0, done.stdout[-20_000:]


def _tests_of_the_storage(endpoint: str) -> subprocess.CompletedProcess[str]:
    server = {
        "MLPKIT_TEST_S3": endpoint,
        "MLPKIT_TEST_S3_ACCESS_KEY": ACCESS_KEY,
        "MLPKIT_TEST_S3_SECRET_KEY": SECRET_KEY,
    }
    tests = ["tests/storage", "tests/serving/test_stores.py", "tests/check", "tests/faults/test_cancel.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")} | server
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
