"""Kind: everything that mlpkit knows about one kind of algorithm.

Each file of this folder that defines a kind ends with one `Kind` object, and `_FILES` lists them all: a new kind is one
file and one line. A kind from outside the package is registered with `register_kind`.

A kind's file is imported when the kind is first used, so that `import mlpkit` stays quick.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from mlpkit.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from mlpkit.formats.evaluation import Measure

_FILES = {
    "text_classification": "classification",
    "text_sequence_labeling": "sequence_labeling",
    "text_cluster": "cluster",
    "text_generation": "generation",
    "relation_extraction": "relation",
    "text_custom": "custom",
}
KINDS = tuple(_FILES)
"""The names of the platform's kinds; `text_custom` prescribes nothing."""

Score = Annotated[float, msgspec.Meta(ge=0, le=100)]
"""A score in an answer that is checked: a finite number from 0 to 100."""
SENTENCE_HEADERS = frozenset(
    ("sentence", "text", "content", "sentences", "texts", "id", "index", "句子", "文本", "内容", "语句", "序号")
)
"""Words that name the column of the sentence in a header, in lower case."""


class Row(msgspec.Struct, frozen=True):
    """A row of training data; its fields depend on the kind."""

    def __getattr__(self, name: str) -> Any:
        """Raises AttributeError, which names the kinds whose rows have the field."""
        text = f"a {type(self).__name__} has no {name!r}; its fields are {', '.join(self.__struct_fields__)}"
        if not name.startswith("_"):
            found = [kind for kind in kind_names() if name in getattr(kind_of(kind).row, "__struct_fields__", ())]
            if found:
                text += f". Rows of kind {' or '.join(found)} have {name!r}: set kind= of your App or algorithm"
        raise AttributeError(text, name=name, obj=self)


class BrokenRow(DataError):
    """A row that cannot be read.

    `column` counts characters of the line from 1, `code` is a word for programs.
    """

    def __init__(self, column: int, code: str, message: str) -> None:
        super().__init__(message)
        self.column = column
        self.code = code


@dataclass(frozen=True)
class Facts:
    """What the checks look at in a row.

    Args:
        sentence: the input of the model.
        said: what the row says about the sentence.
        positive: whether the row says that this is so (posneg 1) or that it is not.
        labels: the labels that the row has an example of.
    """

    sentence: str
    said: str
    positive: bool = True
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Doubt:
    """A probable mistake in a readable row; `column` counts characters from 1."""

    column: int
    code: str
    message: str


def _sentence_features(row: Any) -> Mapping[str, Any]:
    return {"sentence": row.sentence}


def _no_doubts(line: str) -> Iterable[Doubt]:
    return ()


@dataclass(frozen=True)
class Kind:
    """One kind of algorithm: its training data and its answers.

    Args:
        name: the name, as in `App(kind=...)` and in requests.
        row: the type of a row; its fields are the columns.
        columns: the columns in words, for messages.
        read: makes the row from a line without its line break; raises BrokenRow.
        write: makes the line of a row; raises DataError if it could not be read back.
        facts: what the checks look at in a row.
        answer: the type of a whole answer, for `msgspec.convert`; None allows every answer.
        quick_check: True if an answer is certainly valid. It is only there to save time.
        limit: applies the request's `params` to an answer, as `threshold` and `top_n` for labels.
        example: `features` to try a model with.
        features: makes the `features` that ask about a row.
        may_differ: the same question may get different answers.
        checked: the data is checked before a training.
        labelled: rows without any label are useless for a training.
        single: a sentence has one right answer, so two different ones are worth a warning.
        classes: a row is one class of several, so one class alone is a mistake.
        headers: words that name a column in the header that the file must not have, in lower case.
        doubts: what is doubtful in a line that can be read.
        measure: makes what compares answers with test rows; None if the kind does not say what is right.
        joined: makes one answer of the parts that a `predict` with `yield` has given.
        other_format: gets the first lines of a file; a sentence if it is in a well-known other format, or "".
    """

    name: str
    row: type
    columns: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]
    facts: Callable[[Any], Facts]
    answer: Any = None
    quick_check: Callable[[Any], bool] | None = None
    limit: Callable[[object, Mapping[str, Any] | None], object] | None = None
    example: Mapping[str, Any] = field(default_factory=lambda: {"sentence": "a sentence to try"})
    features: Callable[[Any], Mapping[str, Any]] = _sentence_features
    may_differ: bool = False
    checked: bool = True
    labelled: bool = False
    single: bool = False
    classes: bool = False
    headers: frozenset[str] = frozenset()
    doubts: Callable[[str], Iterable[Doubt]] = _no_doubts
    measure: Callable[[], Measure] | None = None
    joined: Callable[[list[Any]], object] = list
    other_format: Callable[[Sequence[str]], str] | None = None


_loaded: dict[str, Kind] = {}


def kind_names() -> tuple[str, ...]:
    """The names of all kinds: the platform's, then those that were registered."""
    return (*KINDS, *(name for name in _loaded if name not in _FILES))


def kind_of(name: str) -> Kind:
    """The kind with this name.

    Raises:
        ValueError: no kind has this name; names those that exist.
    """
    kind = _loaded.get(name)
    if kind is None:
        if name not in _FILES:
            known = kind_names()
            raise ValueError(f"no kind {name!r}{did_you_mean(str(name), known)}; kinds: {', '.join(known)}")
        kind = importlib.import_module(f"mlpkit.formats.{_FILES[name]}").KIND
        _loaded[name] = kind
    return kind


def register_kind(kind: Kind) -> None:
    """Adds a kind of your own.

    Call it when your script is imported, before `App(kind=...)`.

    Raises:
        ValueError: another kind has this name.
    """
    if kind.name in _FILES or _loaded.setdefault(kind.name, kind) is not kind:
        raise ValueError(f"there is already a kind {kind.name!r}")


def split(line: str, least: int, names: tuple[str, ...]) -> list[str]:
    """The columns of a line, at least `least` of those in `names`.

    Raises:
        BrokenRow: too many columns, too few, or a blank one.
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
        DataError: a column is blank, or holds a tab, a line break, or what UTF-8 cannot hold.
    """
    if not all(column.strip() for column in columns):
        raise DataError("a column is empty")
    return line_of(columns)


def line_of(columns: Sequence[str]) -> str:
    """As `join`, but columns may be empty; a single column may not."""
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
    """Returns if UTF-8 can hold the text.

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
