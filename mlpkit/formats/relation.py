"""`relation_extraction`: subject, predicate and object in a sentence; rows of JSON.

Source of the answer's fields: the self-check of ml-platform-client (`PROTOCOL.md`, section 7). It does not say
whether `end` is the last character; here it is, as `end_pos` is in sequence labelling. The platform's page shows no
training data for this kind: mlpkit takes one JSON object a line, `{"sentence": "...", "relations": [{"subject": ...,
"predicate": ..., "object": ...}]}`, with relations as in an answer (the score may be missing), so that checked
answers can be trained on.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from mlpkit.errors import DataError
from mlpkit.formats.evaluation import RelationMeasure
from mlpkit.formats.kind import SENTENCE_HEADERS, BrokenRow, Facts, Kind, Row, Score, check_encodable, shown
from mlpkit.formats.sequence_labeling import Position, check_end


class Argument(msgspec.Struct, frozen=True):
    """The subject or the object of a relation.

    `name` is `sentence[start:end]`, `pos` its part of speech.
    """

    name: str
    start: int
    end: int
    label: str
    pos: str | None = None

    def serialize(self) -> dict[str, Any]:
        """The argument as the platform reads it: `end` is the last character."""
        written = {"name": self.name, "start": self.start, "end": self.end - 1, "label": self.label}
        return written if self.pos is None else {**written, "pos": self.pos}


class Mention(msgspec.Struct, frozen=True):
    """A place where the sentence tells the predicate: `text` is `sentence[start:end]`."""

    text: str
    start: int
    end: int
    pos: str | None = None

    def serialize(self) -> dict[str, Any]:
        """The mention as the platform reads it: `end` is the last character."""
        written = {"text": self.text, "start": self.start, "end": self.end - 1}
        return written if self.pos is None else {**written, "pos": self.pos}


class Predicate(msgspec.Struct, frozen=True, omit_defaults=True):
    """What holds between subject and object.

    `mention` may be empty, `property` is anything that JSON can hold.
    """

    text: str
    mention: list[Mention] = []
    property: Any = None

    def serialize(self) -> dict[str, Any]:
        """The predicate as the platform reads it."""
        written = {"text": self.text, "mention": [mention.serialize() for mention in self.mention]}
        return written if self.property is None else {**written, "property": self.property}


class Relation(msgspec.Struct, frozen=True):
    """One relation with its score, 0 to 100."""

    subject: Argument
    predicate: Predicate
    object: Argument
    score: float = 100.0

    def serialize(self) -> dict[str, Any]:
        """The relation as the platform reads it."""
        return {
            "score": self.score,
            "subject": self.subject.serialize(),
            "object": self.object.serialize(),
            "predicate": self.predicate.serialize(),
        }


class _ArgumentAnswer(msgspec.Struct):
    """What is checked of a subject or object in an answer."""

    name: str
    start: Position
    end: Position
    label: str
    pos: Any = None

    def __post_init__(self) -> None:
        check_end("end", self.name, self.start, self.end)


class _MentionAnswer(msgspec.Struct):
    """What is checked of a mention in an answer."""

    text: str
    start: Position
    end: Position
    pos: Any = None

    def __post_init__(self) -> None:
        check_end("end", self.text, self.start, self.end)


class _PredicateAnswer(msgspec.Struct):
    """What is checked of a predicate in an answer."""

    text: str
    mention: list[_MentionAnswer]
    property: Any = None


class _RelationAnswer(msgspec.Struct):
    """What is checked of a relation in an answer."""

    score: Score
    subject: _ArgumentAnswer
    object: _ArgumentAnswer
    predicate: _PredicateAnswer


class RelationRow(Row, frozen=True):
    """A sentence and the relations that it tells."""

    sentence: str
    relations: list[Relation]


class _Written(msgspec.Struct):
    subject: _ArgumentAnswer
    object: _ArgumentAnswer
    predicate: _PredicateAnswer
    score: Score = 100.0


class _Line(msgspec.Struct):
    sentence: str
    relations: list[_Written]


def _read(line: str) -> RelationRow:
    try:
        row = msgspec.json.decode(line, type=_Line)
    except msgspec.ValidationError as error:
        raise BrokenRow(1, "json", str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        place = re.search(r"\(byte (\d+)\)", str(error))
        column = len(line.encode()[: int(place[1])].decode(errors="ignore")) + 1 if place else len(line) + 1
        raise BrokenRow(column, "json", f"not a JSON object: {error}") from error
    if not row.sentence.strip():
        raise BrokenRow(1, "empty-sentence", "the sentence is empty")
    relations = [_relation(row.sentence, written, f"relations[{index}]") for index, written in enumerate(row.relations)]
    return RelationRow(row.sentence, relations)


def _relation(sentence: str, written: _Written, path: str) -> Relation:
    places = [(f"{path}.{role}", getattr(written, role).name, getattr(written, role)) for role in ("subject", "object")]
    places += [
        (f"{path}.predicate.mention[{index}]", mention.text, mention)
        for index, mention in enumerate(written.predicate.mention)
    ]
    for place, text, said in places:
        found = sentence[said.start : said.end + 1]
        if found != text:
            message = f"{place} is {shown(text)}, but {said.start} to {said.end} of the sentence is {shown(found)}"
            raise BrokenRow(1, "position", message)
    return Relation(_argument(written.subject), _predicate(written.predicate), _argument(written.object), written.score)


def _argument(written: _ArgumentAnswer) -> Argument:
    return Argument(written.name, written.start, written.end + 1, written.label, written.pos)


def _predicate(written: _PredicateAnswer) -> Predicate:
    mention = [Mention(said.text, said.start, said.end + 1, said.pos) for said in written.mention]
    return Predicate(written.text, mention, written.property)


def _write(row: RelationRow) -> str:
    check_encodable(row.sentence)
    written = {"sentence": row.sentence, "relations": [relation.serialize() for relation in row.relations]}
    try:
        line = msgspec.json.encode(written).decode()
        intact = _read(line) == row
    except (BrokenRow, UnicodeEncodeError, TypeError) as error:
        raise DataError(f"the row cannot be written: {error}") from error
    if not intact:
        raise DataError(f"the row would not be read back as it is: {shown(line)}")
    return line


def _facts(row: RelationRow) -> Facts:
    said = msgspec.json.encode([relation.serialize() for relation in row.relations]).decode()
    return Facts(row.sentence, said, labels=tuple(relation.predicate.text for relation in row.relations))


KIND = Kind(
    name="relation_extraction",
    row=RelationRow,
    columns='JSON, {"sentence": text, "relations": [...]}',
    read=_read,
    write=_write,
    facts=_facts,
    answer=list[_RelationAnswer],
    labelled=True,
    headers=SENTENCE_HEADERS | {"relations", "relation", "label", "spo"},
    single=True,
    measure=RelationMeasure,
)
