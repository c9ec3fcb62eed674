"""Secrets for tests: all of them bear a mark, by which one that was shown or written somewhere is found."""

from __future__ import annotations

import mmap
import os
import secrets
from pathlib import Path

MARK = "not-to-be-shown"
_MAY_HOLD_SECRETS = (".env", "settings.json")


def new_secret() -> str:
    """A secret that nobody has used before."""
    return f"{MARK}-{secrets.token_hex(8)}"


def tells_a_secret(text: str) -> bool:
    """Whether one of the tests' secrets is in the text, that of `MLPKIT_TEST_S3` too."""
    return any(each.decode() in text for each in _searched())


def files_with_secrets(folder: Path) -> list[str]:
    """The files in the folder, and below it, that hold a secret; but those that configure a service with one."""
    files = (
        Path(where) / name for where, _, names in os.walk(folder) for name in names if name not in _MAY_HOLD_SECRETS
    )
    return [str(each) for each in files if each.is_file() and not each.is_symlink() and _holds(each)]


def _holds(file: Path) -> bool:
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(content.find(each) >= 0 for each in _searched())
    except (FileNotFoundError, ValueError):
        return False  # It is gone meanwhile, or empty.


def _searched() -> list[bytes]:
    foreign = os.environ.get("MLPKIT_TEST_S3_SECRET_KEY", "")
    return [MARK.encode(), *([foreign.encode()] if foreign else [])]
