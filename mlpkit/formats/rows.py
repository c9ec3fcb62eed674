"""Files of training data, a row a line: read as a stream, written whole.

UTF-8; a byte order mark at the start and CRLF line ends are accepted. No header. Lines without any text are skipped.
A two-column row of classification data has posneg 1.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mlpkit.errors import DataError
from mlpkit.formats.kind import BrokenRow, Kind, Row, is_blank
from mlpkit.formats.kinds import kind_of

LONGEST_ROW = 8 << 20
"""Bytes of the longest row that is read; a longer one is broken."""


def read_rows(path: Path, kind: str, *, name: str | None = None) -> Iterator[Row]:
    """The rows of a file, one at a time; lines without text are skipped.

    Args:
        path: the file.
        kind: the algorithm's kind; it decides the type of the rows.
        name: what messages call the file; its path by default.

    Raises:
        DataError: the file cannot be read, or a row is broken: names the file, the line and the column.
        ValueError: there is no such kind.
    """
    return _read(path, kind_of(kind), name or str(path))


def _read(path: Path, kind: Kind, name: str) -> Iterator[Row]:
    for number, line in read_lines(path):
        if isinstance(line, str) and is_blank(line):
            continue
        try:
            if isinstance(line, BrokenRow):
                raise line
            yield kind.read(line)
        except BrokenRow as error:
            raise DataError(f"{name}, line {number}, column {error.column}: {error}") from error


def write_rows(path: Path, kind: str, rows: Iterable[Any]) -> int:
    """How many rows were written; `read_rows` gives the same ones back. The file appears whole or not at all.

    Raises:
        DataError: a row cannot be written; names which one, counted from 1.
        ValueError: there is no such kind.
    """
    known = kind_of(kind)
    part = path.with_name(f"{path.name}.part")
    count = 0
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            for count, row in enumerate(rows, 1):
                file.write(_line(known, row, count))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _line(kind: Kind, row: Any, number: int) -> str:
    try:
        return kind.write(row) + "\n"
    except DataError as error:
        raise DataError(f"row {number}: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[int, str | BrokenRow]]:
    """The lines of a file with their numbers, from 1; one that is too long or no UTF-8 comes as the error that it is.

    Never holds more of the file than one line of `LONGEST_ROW`.

    Raises:
        DataError: the file cannot be opened or read.
    """
    try:
        with path.open("rb") as file:
            yield from _lines(file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _lines(file: BinaryIO) -> Iterator[tuple[int, str | BrokenRow]]:
    if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        yield 1, BrokenRow(1, "encoding", "the file is UTF-16: save it as UTF-8")
        return
    file.seek(0)
    if file.read(3) != codecs.BOM_UTF8:
        file.seek(0)
    number = 0
    while raw := file.readline(LONGEST_ROW + 1):
        number += 1
        if len(raw) > LONGEST_ROW and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(LONGEST_ROW)
            yield number, BrokenRow(1, "too-long", f"the line is longer than {LONGEST_ROW >> 20} MiB")
        else:
            yield number, _decoded(raw.removesuffix(b"\n").removesuffix(b"\r"))


def _decoded(raw: bytes) -> str | BrokenRow:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode()) + 1
        hint = ": the line reads as GB18030, save the file as UTF-8" if _reads_as_chinese(raw) else ""
        return BrokenRow(column, "encoding", f"byte 0x{raw[error.start]:02x} is no UTF-8{hint}")


def _reads_as_chinese(raw: bytes) -> bool:
    try:
        return bool(raw.decode("gb18030"))
    except UnicodeDecodeError:
        return False
