"""What a test needs and a machine may lack: a server, a right, another system."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def impossible(reason: object) -> NoReturn:
    """Ends the test: skipped on a user's machine, failed in CI, which can be made to have everything."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(reason))
    pytest.skip(str(reason))
