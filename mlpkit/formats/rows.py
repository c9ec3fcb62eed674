"""Files of training data, and the rows that are held out.

Files are read as a stream and written whole. A row is a line of UTF-8. A byte order mark at the start and CRLF line
ends are accepted. There is no header. Lines without any text are skipped.
"""

from __future__ import annotations

import codecs
import contextlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mlpkit.errors import DataError
from mlpkit.formats.kind import BrokenRow, Facts, Kind, Row, is_blank, kind_of

_HEAD = 1 << 16
"""Bytes at the start of a file by which its encoding and its format are judged."""
_NOT_TEXT = (
    (b"\x1f\x8b", "compressed with gzip", "unpack it first (gunzip)"),
    (b"PK\x03\x04", "an Excel workbook (.xlsx) or another zip archive", "save it as tab-separated text in UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)", "save it as tab-separated text in UTF-8"),
    (b"BZh91AY&SY", "compressed with bzip2", "unpack it first (bunzip2)"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first (unzstd)"),
    (b"PAR1\x15", "a Parquet file", "write its rows as tab-separated text in UTF-8"),
)
_NO_ROWS = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it first"),
    (b"%PDF-", "a PDF document", "write its rows as tab-separated text in UTF-8"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture", "rows are text"),
    (b"\xff\xd8\xff", "a JPEG picture", "rows are text"),
    (b"SQLite format 3\0", "an SQLite database", "write its rows as tab-separated text in UTF-8"),
    (b"\x93NUMPY", "an array of numpy", "write its rows as tab-separated text in UTF-8"),
    (b"\x80\x04\x95", "a pickle", "write its rows as tab-separated text in UTF-8"),
    (b"\x80\x05\x95", "a pickle", "write its rows as tab-separated text in UTF-8"),
    (b"version https://git-lfs.github.com/", "a pointer of Git LFS", "fetch the file itself (git lfs pull)"),
)
_DOCUMENT = re.compile(
    rb"""\s*(?:(?P<json>(?:\{\s*"[^"\n]*"\s*:\s*)?\[\s*\{\s*"[^"\n]*"\s*:)|<(?P<page>!doctype|html|\?xml)\b)""",
    re.IGNORECASE,
)
"""The start of a JSON value with a list of objects, or of a page."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_LONGEST_ROW = 8 << 20
"""Bytes of the longest row that is read; a longer one is broken."""


def read_rows(path: Path, kind: str, *, name: str | None = None) -> Iterator[Row]:
    """The rows of a file, one at a time, without blank lines.

    Args:
        path: the file.
        kind: the algorithm's kind; it decides the type of the rows.
        name: what messages call the file; its path by default.

    Raises:
        DataError: the file cannot be read, or a row is broken: names the file, the line and the column.
        ValueError: no kind has this name.
    """
    return (row for _, row in _read(path, kind_of(kind), name or str(path)))


def read_numbered_rows(path: Path, kind: str, *, name: str | None = None) -> Iterator[tuple[int, Row]]:
    """What `read_rows` gives, with the lines, from 1."""
    return _read(path, kind_of(kind), name or str(path))


def _read(path: Path, kind: Kind, name: str) -> Iterator[tuple[int, Row]]:
    for number, line in read_lines(path, free=not kind.checked):
        if isinstance(line, str) and is_blank(line):
            continue
        try:
            if isinstance(line, BrokenRow):
                raise line
            yield number, kind.read(line)
        except BrokenRow as error:
            raise DataError(f"{name}, line {number}, column {error.column}: {error}") from error


def write_rows(path: Path, kind: str, rows: Iterable[Any]) -> int:
    """Writes rows, which `read_rows` gives back, and returns their number.

    The file appears whole or not at all.

    Raises:
        DataError: a row cannot be written; names which one, counted from 1.
        ValueError: no kind has this name.
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


def held_out(path: Path, kind: str, share: float, seed: int, *, name: str | None = None) -> frozenset[int]:
    """The hashes of the sentences whose rows are test rows: `@app.train(test=0.1)`.

    The choice depends on the file, the share and the seed only. Every label gives its share of the rows that are
    examples of it. All rows of one sentence are on the same side, so that no test sentence is learnt. The hashes are
    only valid in this process and in processes that it forks. The file is read twice.

    Args:
        path: the training data.
        kind: the algorithm's kind.
        share: from 0 to 1.
        seed: another seed chooses other sentences.
        name: what messages call the file.

    Raises:
        DataError: a broken row.
    """
    facts_of = kind_of(kind).facts
    left: Counter[str] = Counter()
    for row in read_rows(path, kind, name=name):
        facts = facts_of(row)
        if facts.positive:
            left[_stratum(facts)] += 1
    needed = _allotted(left, share)
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    chosen: set[int] = set()
    for row in read_rows(path, kind, name=name):
        facts = facts_of(row)
        if not facts.positive:
            continue
        stratum = _stratum(facts)
        sentence = hash(facts.sentence)
        # Selection sampling (Knuth, volume 2, 3.4.2, algorithm S): exactly as many as needed, in one pass.
        lot = chance.random() * left[stratum]
        if sentence in chosen or lot < needed[stratum]:
            chosen.add(sentence)
            needed[stratum] -= 1
        left[stratum] -= 1
    return frozenset(chosen)


def _stratum(facts: Facts) -> str:
    return facts.labels[0] if facts.labels else ""


def _allotted(rows: Counter[str], share: float) -> dict[str, int]:
    """How many test rows come from each label.

    At least one row of each label stays for the training.
    """
    allotted: dict[str, int] = {}
    before = given = 0
    for label, count in sorted(rows.items()):
        before += count
        # Rounded as a sum, so that many small labels together give their share.
        allotted[label] = max(0, min(round(share * before) - given, count - 1))
        given += allotted[label]
    return allotted


def _line(kind: Kind, row: Any, number: int) -> str:
    try:
        return kind.write(row) + "\n"
    except DataError as error:
        raise DataError(f"row {number}: {error}") from error


def read_lines(path: Path, *, free: bool = False) -> Iterator[tuple[int, str | BrokenRow]]:
    """The lines of a file with their numbers, from 1.

    A line that is too long or not valid UTF-8 comes as the error that it is; a file that is not text at all is one
    error. Never holds more of the file than one line of `_LONGEST_ROW`.
    With `free=True` the kind prescribes nothing, so that a document may be what is wanted.

    Raises:
        DataError: the file cannot be opened or read.
    """
    try:
        with path.open("rb") as file:
            problem = _problem_of_file(file.read(_HEAD), free=free)
            if problem is not None:
                yield 1, problem
                return
            file.seek(0)
            yield from _lines(file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def first_lines(path: Path) -> list[str]:
    """The first lines of a file, to recognise its format.

    There are none if it is not text.

    Raises:
        DataError: the file cannot be opened or read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if _problem_of_file(head) is not None:
        return []
    lines = head.removeprefix(codecs.BOM_UTF8).decode(errors="replace").split("\n")
    complete = lines[:-1] if len(head) == _HEAD else lines
    return [line.removesuffix("\r") for line in complete]


def _problem_of_file(head: bytes, *, free: bool = False) -> BrokenRow | None:
    """Why these first bytes are not rows of UTF-8 text, or None."""
    for magic, name, advice in _NOT_TEXT if free else (*_NOT_TEXT, *_NO_ROWS):
        if head.startswith(magic):
            return BrokenRow(1, "file-format", f"the file is {name}: {advice}")
    encoding = _utf16_or_32(head)
    if encoding:
        return BrokenRow(1, "encoding", f"the file is {encoding}: save it as UTF-8")
    if not free and head[257:262] == b"ustar":
        return BrokenRow(1, "file-format", "the file is a tar archive: unpack it first (tar -xf)")
    if not free and head.count(0) > len(head) // 8:
        return BrokenRow(1, "file-format", "the file is not text: many of its bytes are zero")
    document = "" if free else _document(head.removeprefix(codecs.BOM_UTF8))
    if document:
        return BrokenRow(1, "file-format", f"the file is {document}")
    if b"\r" in head.rstrip(b"\r") and b"\n" not in head:
        message = "the lines end with a carriage return alone (CR, as on old Macs): save the file with LF or CRLF"
        return BrokenRow(head.index(b"\r") + 1, "line-ends", message)
    return None


def _document(head: bytes) -> str:
    """What a file that is one document is, or nothing."""
    found = _DOCUMENT.match(head)
    first, *others = head.strip().split(b"\n")
    # Rows may be such texts: then a column follows, or another one in its own line.
    if (
        found is None
        or b"\t" in first
        or (len(first) > 4 and any(line.strip().startswith(first[:5]) for line in others))
    ):
        return ""
    if found["json"]:
        return "one JSON value: write each of its objects as one row of tab-separated text"
    name = "XML" if found["page"] == b"?xml" else "an HTML page"
    return f"{name}, perhaps the message of a failed download: look into it"


def _utf16_or_32(head: bytes) -> str:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if b"\0" not in head:
        return ""
    zeros = (head[0::2].count(0), head[1::2].count(0))
    # ASCII characters have their zero byte on one side, tabs and line breaks among them; few others have one at all.
    for name, codec, ascii_zeros, other_zeros in (
        ("UTF-16LE", "utf-16-le", zeros[1], zeros[0]),
        ("UTF-16BE", "utf-16-be", zeros[0], zeros[1]),
    ):
        text = head[: len(head) // 2 * 2].decode(codec, errors="replace")
        odd = sum(not (char.isprintable() or char.isspace()) for char in text)
        if ascii_zeros > 3 * other_zeros and ("\t" in text or "\n" in text) and odd * 50 <= len(text):
            return f"{name} without a byte order mark"
    return ""


def _lines(file: BinaryIO) -> Iterator[tuple[int, str | BrokenRow]]:
    if file.read(3) != codecs.BOM_UTF8:
        file.seek(0)
    number = 0
    while raw := file.readline(_LONGEST_ROW + 1):
        number += 1
        if len(raw) > _LONGEST_ROW and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(_LONGEST_ROW)
            yield number, BrokenRow(1, "too-long", f"the line is longer than {_LONGEST_ROW >> 20} MiB")
        else:
            yield number, _decoded(raw.removesuffix(b"\n").removesuffix(b"\r"))


def _decoded(raw: bytes) -> str | BrokenRow:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode()) + 1
        return BrokenRow(column, "encoding", f"byte 0x{raw[error.start]:02x} is not valid UTF-8{_encoding_hint(raw)}")


def _encoding_hint(raw: bytes) -> str:
    """The encoding that the line is probably in, or an empty string."""
    groups = re.findall(rb"[\x80-\xff]+", raw)
    # Accented letters and typographic quotes stand alone among ASCII; Chinese characters take two bytes or more.
    if all(len(group) == 1 for group in groups):
        with contextlib.suppress(UnicodeDecodeError):
            read = groups[0].decode("cp1252")
            return f": the line reads as Windows-1252 (cp1252, here {read!r}), save the file as UTF-8"
    with contextlib.suppress(UnicodeDecodeError):
        raw.decode("gb18030")
        return ": the line reads as GB18030, save the file as UTF-8"
    return ""
