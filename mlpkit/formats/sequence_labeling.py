"""`text_sequence_labeling`: entities in a sentence; rows with marked-up sentences.

Source of both formats: the page of ml-platform-client, "序列标注算法". In Python a span is half-open
(`sentence[start:end]`), as slices are; in an answer `end_pos` is the entity's last character. Positions count
characters (code points) from 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec

from mlpkit.errors import DataError
from mlpkit.formats.kind import BrokenRow, Facts, Kind, Row, join, shown, split
from mlpkit.formats.score import Score

_TAG = re.compile(r"<START:([^<>\t]*)>|(<END>)|[<＜]/?(?:START|END)\b", re.IGNORECASE)
Position = Annotated[int, msgspec.Meta(ge=0)]
"""A position in an answer that is checked."""


class Span(msgspec.Struct, frozen=True, order=True):
    """A labelled piece of a sentence: `sentence[start:end]`."""

    start: int
    end: int
    label: str


class Entity(msgspec.Struct, frozen=True):
    """An entity that was found: `name` is `sentence[start:end]`, `score` is 0 to 100."""

    name: str
    start: int
    end: int
    label: str
    score: float = 100.0

    @classmethod
    def of(cls, sentence: str, span: Span, score: float = 100.0) -> Entity:
        """The entity that the span marks in the sentence.

        Raises:
            ValueError: the span is empty or leaves the sentence.
        """
        if not 0 <= span.start < span.end <= len(sentence):
            raise ValueError(f"{span} is empty or leaves the sentence of {len(sentence)} characters")
        return cls(sentence[span.start : span.end], span.start, span.end, span.label, score)

    def serialize(self) -> dict[str, Any]:
        """The entity as the platform reads it: `end_pos` is the last character, not the one after it."""
        return {
            "name": self.name,
            "start_pos": self.start,
            "end_pos": self.end - 1,
            "label": self.label,
            "score": self.score,
        }


class Entities(msgspec.Struct, frozen=True):
    """The entities of a sentence, and one score, 0 to 100, for all of them."""

    score: float
    entity_list: list[Entity]

    @classmethod
    def of(cls, sentence: str, spans: Iterable[Span], scores: Sequence[float] | None = None) -> Entities:
        """The entities that the spans mark; as sure as the least sure one (100 without any).

        Raises:
            ValueError: a span leaves the sentence, or there are not as many scores as spans.
        """
        marked = list(spans)
        known = [100.0] * len(marked) if scores is None else list(scores)
        found = [Entity.of(sentence, span, score) for span, score in zip(marked, known, strict=True)]
        return cls(min(known, default=100.0), found)

    def serialize(self) -> dict[str, Any]:
        """The entities as the platform reads them."""
        return {"score": self.score, "entity_list": [each.serialize() for each in self.entity_list]}


class EntityAnswer(msgspec.Struct):
    """What is checked of an entity in an answer."""

    name: str
    start_pos: Position
    end_pos: Position
    label: str
    score: Score

    def __post_init__(self) -> None:
        check_end("end_pos", self.name, self.start_pos, self.end_pos)


class EntitiesAnswer(msgspec.Struct):
    """What is checked of a sentence in an answer."""

    score: Score
    entity_list: list[EntityAnswer]


def check_end(field: str, name: str, start: int, end: int) -> None:
    """Nothing, for an end that is the last character.

    Only the usual mistakes are found: lengths may differ from the name's, because users normalise names.

    Raises:
        ValueError: begins with the field's name.
    """
    if end < start:
        raise ValueError(f"{field}: {end} is before the start, {start}: it is the position of the last character")
    if end - start == len(name):
        raise ValueError(
            f"{field}: {end} is one too far for {shown(name)} at {start}: it is the position of the last character"
        )


class SequenceRow(Row, frozen=True):
    """A sentence without its markup, and the spans that were marked, in order."""

    sentence: str
    spans: list[Span]


def from_markup(text: str) -> SequenceRow:
    """The sentence and the spans of `<START:PER>特朗普<END>是<START:LOC>美国<END>总统。`

    Raises:
        DataError: tags that are nested, unbalanced, empty or misspelt; the message tells the column.
    """
    try:
        return _parse(text)
    except BrokenRow as error:
        raise DataError(f"column {error.column}: {error}") from error


def to_markup(sentence: str, spans: Iterable[Span]) -> str:
    """The sentence with its spans marked; `from_markup` gives both back.

    Raises:
        DataError: the spans overlap, are empty or leave the sentence, or the sentence or a label holds a tag itself.
    """
    ordered = sorted(spans)
    pieces, position = [], 0
    for span in ordered:
        if not position <= span.start < span.end <= len(sentence):
            raise DataError(
                f"{span} is empty, overlaps another one, or leaves the sentence of {len(sentence)} characters"
            )
        pieces += [sentence[position : span.start], f"<START:{span.label}>", sentence[span.start : span.end], "<END>"]
        position = span.end
    text = "".join(pieces) + sentence[position:]
    try:
        intact = _parse(text) == SequenceRow(sentence, ordered)
    except BrokenRow:
        intact = False
    if not intact:
        raise DataError(f"the sentence or a label holds what reads as a tag: {shown(text)}")
    return text


def _parse(text: str) -> SequenceRow:
    pieces: list[str] = []
    spans: list[Span] = []
    position = length = 0
    opened: tuple[int, int, str] | None = None
    for tag in _TAG.finditer(text):
        column = tag.start() + 1
        pieces.append(text[position : tag.start()])
        length += len(pieces[-1])
        position = tag.end()
        if tag[0] == "<END>":
            spans.append(_closed(opened, length, column))
            opened = None
        elif tag[1] is None or not tag[0].startswith("<START:"):
            raise BrokenRow(
                column,
                "broken-tag",
                f"{shown(text[tag.start() : tag.start() + 20])} is no tag: <START:LABEL> and <END> are",
            )
        elif opened is not None:
            raise BrokenRow(column, "nested-tag", f"{tag[0]} inside <START:{opened[2]}> of column {opened[0]}")
        elif not tag[1].strip():
            raise BrokenRow(column, "empty-label", "the tag has no label")
        else:
            opened = (column, length, tag[1])
    if opened is not None:
        raise BrokenRow(opened[0], "unbalanced-tag", f"<START:{opened[2]}> has no <END>")
    return SequenceRow("".join(pieces) + text[position:], spans)


def _closed(opened: tuple[int, int, str] | None, end: int, column: int) -> Span:
    if opened is None:
        raise BrokenRow(column, "unbalanced-tag", "<END> without a <START:...>")
    if opened[1] == end:
        raise BrokenRow(opened[0], "empty-entity", f"there is no text between <START:{opened[2]}> and <END>")
    return Span(opened[1], end, opened[2])


def _read(line: str) -> SequenceRow:
    return _parse(split(line, 1, ("sentence",))[0])


def _write(row: SequenceRow) -> str:
    return join(to_markup(row.sentence, row.spans))


def _facts(row: SequenceRow) -> Facts:
    said = "\t".join(f"{span.start}-{span.end}{span.label}" for span in row.spans)
    return Facts(row.sentence, said, labels=tuple(span.label for span in row.spans))


KIND = Kind(
    name="text_sequence_labeling",
    row=SequenceRow,
    columns="sentence, with its entities marked as <START:LABEL>...<END>",
    read=_read,
    write=_write,
    facts=_facts,
    answer=list[EntitiesAnswer],
    labelled=True,
    single=True,
)
