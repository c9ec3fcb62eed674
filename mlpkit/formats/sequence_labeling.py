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
from mlpkit.formats.evaluation import SpanMeasure
from mlpkit.formats.kind import SENTENCE_HEADERS, BrokenRow, Doubt, Facts, Kind, Row, Score, join, shown, split

_HTML = (
    "a|b|i|p|s|u|br|em|li|ol|ul|h[1-6]|td|th|tr|div|img|pre|sub|sup"
    "|body|code|font|head|html|span|strong|style|table|title"
)
_TAG = re.compile(
    r"(?P<escapes>\\*)"
    r"(?:<START:(?P<label>[^<>\t]*)>|(?P<end><END>)|(?P<wrong>"
    # `<start:PER>`, `</END>`, `＜END＞`; `< START:PER>`; `&lt;START:PER&gt;`; `[START:PER]`
    r"[<＜]/?(?:START|END)\b|<\s+/?(?:START\s*[:：>]|END\s*>)|&lt;/?(?:START|END)\b|[\[【({]\s*START\s*[:：]"
    # `<PER>...</PER>`, but not HTML; `{{PER:...}}`
    rf"|<(?!(?:{_HTML})>)(?P<name>[a-z][\w.-]*)>[^<>]*</(?P=name)>|\{{\{{\w+:[^{{}}<>]*\}}\}}))",
    re.IGNORECASE,
)
_SPACE_IN_TAG = re.compile(r"<START:[^<>\t]*>\s|\s<END>")
_HINT = r"entities are marked as <START:LABEL>...<END>; a backslash before it makes it text"
Position = Annotated[int, msgspec.Meta(ge=0)]
"""A position in an answer that is checked."""


class Span(msgspec.Struct, frozen=True, order=True):
    """A labelled piece of a sentence: `sentence[start:end]`."""

    start: int
    end: int
    label: str


class Entity(msgspec.Struct, frozen=True):
    """A found entity: `name` is `sentence[start:end]`, `score` is 0 to 100."""

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
        """The entity as the platform reads it: `end_pos` is its last character."""
        return {
            "name": self.name,
            "start_pos": self.start,
            "end_pos": self.end - 1,
            "label": self.label,
            "score": self.score,
        }


class Entities(msgspec.Struct, frozen=True):
    """The entities of a sentence, and their common score, 0 to 100."""

    score: float
    entity_list: list[Entity]

    @classmethod
    def of(cls, sentence: str, spans: Iterable[Span], scores: Sequence[float] | None = None) -> Entities:
        """The entities that the spans mark, with the lowest of their scores.

        The score is 100 if there are none.

        Raises:
            ValueError: a span leaves the sentence, or there are not as many scores as spans.
        """
        marked = list(spans)
        known = [100.0] * len(marked) if scores is None else list(scores)
        found = [Entity.of(sentence, span, score) for span, score in zip(marked, known, strict=True)]
        return cls(min(known, default=100.0), found)

    def serialize(self) -> dict[str, Any]:
        """The entities as the platform reads them."""
        return {"score": self.score, "entity_list": [entity.serialize() for entity in self.entity_list]}


class _EntityAnswer(msgspec.Struct):
    """What is checked of an entity in an answer."""

    name: str
    start_pos: Position
    end_pos: Position
    label: str
    score: Score

    def __post_init__(self) -> None:
        check_end("end_pos", self.name, self.start_pos, self.end_pos)


class _EntitiesAnswer(msgspec.Struct):
    """What is checked of a sentence in an answer."""

    score: Score
    entity_list: list[_EntityAnswer]


def check_end(field: str, name: str, start: int, end: int) -> None:
    """Returns if the end is the last character.

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
    """A sentence without markup, and its marked spans in order."""

    sentence: str
    spans: list[Span]


def from_markup(text: str) -> SequenceRow:
    """The sentence and the spans of a marked-up text.

    `<START:PER>特朗普<END>是<START:LOC>美国<END>总统。` is the platform's form. Spaces between a tag and its entity, as
    in OpenNLP's files, do not belong to the entity. A backslash before a tag (or before what reads like one) makes it
    text; `\\\\<END>` is a backslash and a tag. A backslash at the start of an entity keeps the spaces at its edges.

    Raises:
        DataError: tags that are nested, unbalanced, empty or misspelt; the message tells the column.
    """
    try:
        return _parse(text)[0]
    except BrokenRow as error:
        raise DataError(f"column {error.column}: {error}") from error


def to_markup(sentence: str, spans: Iterable[Span]) -> str:
    """The sentence with its spans marked; `from_markup` gives both back.

    Raises:
        DataError: the spans overlap, are empty or leave the sentence, or a label cannot stand in a tag.
    """
    ordered = sorted(spans)
    text = ""
    position = 0
    for span in ordered:
        if not position <= span.start < span.end <= len(sentence):
            raise DataError(
                f"{span} is empty, overlaps another one, or leaves the sentence of {len(sentence)} characters"
            )
        entity = sentence[span.start : span.end]
        marker = "\\" if _keeps_spaces(entity) else ""
        text += f"{_escaped(sentence[position : span.start])}<START:{span.label}>{marker}{_escaped(entity)}<END>"
        position = span.end
    text += _escaped(sentence[position:], before_tag=False)
    try:
        intact = _parse(text)[0] == SequenceRow(sentence, ordered)
    except BrokenRow:
        intact = False
    if not intact:
        raise DataError(f"the sentence or a label holds what reads as a tag: {shown(text)}")
    return text


def _parse(text: str) -> tuple[SequenceRow, list[int]]:
    """The row, and the columns of the tags with spaces inside."""
    sentence: list[str] = []
    spans: list[Span] = []
    spaced: list[int] = []
    entity: list[str] = []
    position = length = 0
    opened: tuple[int, str] | None = None
    for tag in _TAG.finditer(text):
        backslashes = len(tag["escapes"])
        column = tag.start() + backslashes + 1
        found = text[column - 1 : tag.end()]
        between = text[position : tag.start()] + "\\" * (backslashes // 2)
        position = tag.end()
        is_text = backslashes % 2 == 1
        if is_text:
            between += found
        if opened is not None:
            entity.append(between)
        elif between:
            sentence.append(between)
            length += len(between)
        if is_text:
            continue
        if tag["label"] is not None and found.startswith("<START:"):
            if opened is not None:
                raise BrokenRow(column, "nested-tag", f"{found} inside <START:{opened[1]}> of column {opened[0]}")
            if not tag["label"].strip():
                raise BrokenRow(column, "empty-label", "the tag has no label")
            opened = (column, tag["label"])
            entity = []
        elif found == "<END>":
            if opened is None:
                raise BrokenRow(column, "unbalanced-tag", "<END> without a <START:...>")
            before, name, after = _trimmed("".join(entity))
            if not name:
                raise BrokenRow(opened[0], "empty-entity", f"no text between <START:{opened[1]}> and <END>")
            if before or after:
                spaced.append(opened[0])
            # A space is kept outside of the entity if there is none yet.
            if before and length and not sentence[-1][-1:].isspace():
                sentence.append(before)
                length += len(before)
            spans.append(Span(length, length + len(name), opened[1]))
            following = text[tag.end() : tag.end() + 1]
            keeps_after = after if following and not following.isspace() else ""
            sentence.append(name + keeps_after)
            length += len(name) + len(keeps_after)
            opened = None
        else:
            raise BrokenRow(column, "broken-tag", f"{shown(text[column - 1 :], 20)} is not a tag: {_HINT}")
    if opened is not None:
        raise BrokenRow(opened[0], "unbalanced-tag", f"<START:{opened[1]}> has no <END>")
    sentence.append(text[position:])
    return SequenceRow("".join(sentence), spans), spaced


def _escaped(text: str, *, before_tag: bool = True) -> str:
    """The text with a backslash before what reads as a tag.

    Backslashes at its end are doubled if a tag follows.
    """
    text = _TAG.sub(lambda tag: tag["escapes"] + "\\" + tag[0], text)
    backslashes = len(text) - len(text.rstrip("\\"))
    return text + "\\" * backslashes if before_tag else text


def _keeps_spaces(entity: str) -> bool:
    """Whether an entity needs the backslash that keeps its outer spaces."""
    return entity[-1:].isspace() or entity.lstrip("\\")[:1].isspace()


def _trimmed(entity: str) -> tuple[str, str, str]:
    """The spaces before an entity, its text, and the spaces after it."""
    if entity.startswith("\\") and _keeps_spaces(entity[1:]):
        return "", entity[1:], ""
    name = entity.strip()
    before, _, after = entity.partition(name) if name else ("", "", "")
    return before, name, after


def _read(line: str) -> SequenceRow:
    return _parse(split(line, 1, ("sentence",))[0])[0]


def _doubts(line: str) -> list[Doubt]:
    if not _SPACE_IN_TAG.search(line):
        return []
    message = "spaces between a tag and its entity; they are not part of the entity"
    return [Doubt(column, "spaces-in-tag", message) for column in _parse(line)[1]]


def _other_format(lines: Sequence[str]) -> str:
    from mlpkit.formats.convert import other_format  # it imports this module

    return other_format(lines)


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
    answer=list[_EntitiesAnswer],
    labelled=True,
    single=True,
    headers=SENTENCE_HEADERS | {"label", "labels", "tag", "tags", "entities", "标签"},
    doubts=_doubts,
    measure=SpanMeasure,
    other_format=_other_format,
)
