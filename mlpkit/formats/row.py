"""What every kind of training data has in common: one row a line, and a broken row knows where it broke."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mlpkit.errors import DataError

R = TypeVar("R")


class BrokenRow(DataError):
    """A row that cannot be read. `column` counts characters of the line from 1, `code` is a word for programs."""

    def __init__(self, column: int, code: str, message: str) -> None:
        super().__init__(message)
        self.column, self.code = column, code


@dataclass(frozen=True)
class Facts:
    """What the checks look at in a row.

    `said` is what the row says about its sentence, `positive` whether it says that it is so, and `labels` are the
    labels that it gives an example of.
    """

    sentence: str
    said: str
    positive: bool = True
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format(Generic[R]):
    """How the rows of a kind are read, written and looked at.

    Args:
        columns: the columns in words, for messages.
        read: the row of a line (without its line break); raises BrokenRow.
        write: the line of a row; what cannot be read back is a DataError.
        facts: what the checks look at.
        labelled: rows without any label are useless for a training.
        single: a sentence has one right answer, so two different ones are worth a warning.
    """

    columns: str
    read: Callable[[str], R]
    write: Callable[[R], str]
    facts: Callable[[R], Facts]
    labelled: bool = False
    single: bool = False


AnyFormat = Format[Any]


def split(line: str, least: int, names: tuple[str, ...]) -> list[str]:
    """The columns of a line: at least `least`, at most as many as there are names, none of them but spaces.

    Raises:
        BrokenRow: too many columns, too few, or an empty one.
    """
    columns = line.split("\t")
    if len(columns) > len(names):
        start = len("\t".join(columns[: len(names)])) + 1
        expected = (
            f"{len(names)} expected: {', '.join(names)}" if len(names) > 1 else f"only the {names[0]} is expected"
        )
        raise BrokenRow(start, "columns", f"{len(columns)} columns, {expected}")
    if len(columns) < least:
        raise BrokenRow(
            len(line) + 1,
            "columns",
            f"no {names[len(columns)]}: the columns are {', '.join(names)}, with a tab between them",
        )
    position = 1
    for name, column in zip(names, columns, strict=False):
        if not column.strip():
            raise BrokenRow(position, f"empty-{name}", f"the {name} is empty")
        position += len(column) + 1
    return columns


def join(*columns: str) -> str:
    """The line of these columns.

    Raises:
        DataError: a column is empty or holds a tab, a line break, or what UTF-8 cannot hold.
    """
    if not all(column.strip() for column in columns):
        raise DataError("a column is empty")
    return line_of(columns)


def line_of(columns: Sequence[str]) -> str:
    """As `join`, but columns may be empty; not all of them, where there is only one."""
    for column in columns:
        if "\t" in column or "\n" in column or "\r" in column:
            raise DataError(f"a column holds a tab or a line break: {shown(column)}")
    line = "\t".join(columns)
    if is_blank(line):
        raise DataError("the row is empty")
    if line.startswith("\ufeff"):
        raise DataError(f"the row begins with a byte order mark: {shown(line)}")
    check_encodable(line)
    return line


def is_blank(line: str) -> bool:
    """Whether a line holds nothing at all: no text and no column."""
    return "\t" not in line and not line.strip()


def check_encodable(text: str) -> None:
    """Nothing, for text that UTF-8 can hold.

    Raises:
        DataError: the text holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"half of a surrogate pair at character {error.start + 1}: {shown(text)}") from error


def shown(text: str, limit: int = 60) -> str:
    """The text in quotes, shortened for a message."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
