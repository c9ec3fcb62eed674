"""Small files: decoded, temporary, or replaced as a whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


def decode_json(content: bytes, wanted: type[T]) -> T:
    """What the content of a file is as JSON.

    msgspec raises errors of other classes for bytes that are not UTF-8, and for what is nested too deep. A reader that
    forgets one of them does not survive a damaged file.

    Raises:
        msgspec.DecodeError: it is not JSON of this type.
    """
    try:
        return msgspec.json.decode(content, type=wanted)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"byte 0x{error.object[error.start]:02x} is not valid UTF-8") from None
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deep") from None


@contextlib.contextmanager
def temporary_file(content: bytes) -> Iterator[Path]:
    """A local file with this content, for the block."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield Path(file.name)


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file in one step.

    It is on the disk when this returns.

    Raises:
        OSError: the file is as it was.
    """
    beside = path.with_suffix(".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    _sync(path.parent)


def write_through(folder: Path) -> None:
    """Returns when the files in the folder are on the disk.

    What cannot be opened is left out: who reads it later says so.

    Raises:
        OSError: the disk has refused a file.
    """
    for base, _, names in os.walk(folder):
        # Opening a pipe would wait for its writer.
        files = [file for name in names if (file := Path(base, name)).is_file()]
        for path in (*files, Path(base)):
            _sync(path)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
