"""`text_generation`: texts; rows of a source and its target.

The platform's page shows no formats for this kind. mlpkit takes `source<TAB>target` a line, and answers a list of
texts: strings, or objects with `text` and perhaps `score`.
"""

from __future__ import annotations

import msgspec

from mlpkit.formats.evaluation import TextMeasure
from mlpkit.formats.kind import SENTENCE_HEADERS, Facts, Kind, Row, Score, join, split


class Generated(msgspec.Struct, frozen=True, omit_defaults=True):
    """A generated text; a score, 0 to 100, may be missing."""

    text: str
    score: float | None = None


class _GeneratedAnswer(msgspec.Struct):
    """What is checked of a text in an answer."""

    text: str
    score: Score | None = None


class GenerationRow(Row, frozen=True):
    """A text and what should be made of it."""

    source: str
    target: str


def _read(line: str) -> GenerationRow:
    source, target = split(line, 2, ("source", "target"))
    return GenerationRow(source, target)


def _facts(row: GenerationRow) -> Facts:
    return Facts(row.source, row.target)


def _joined(parts: list[object]) -> object:
    """Pieces of text as the one text that they are."""
    return ["".join(parts)] if all(isinstance(part, str) for part in parts) else parts  # type: ignore[arg-type]


KIND = Kind(
    name="text_generation",
    row=GenerationRow,
    columns="source, target",
    read=_read,
    write=lambda row: join(row.source, row.target),
    facts=_facts,
    answer=list[str | _GeneratedAnswer],
    headers=SENTENCE_HEADERS | {"source", "target", "input", "output", "question", "answer", "summary", "输入", "输出"},
    features=lambda row: {"sentence": row.source},
    may_differ=True,
    measure=TextMeasure,
    joined=_joined,
)
