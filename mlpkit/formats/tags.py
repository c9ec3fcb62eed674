"""BIO, BIOES, BILOU and BMES tags to spans, and back.

Spans count in the same unit as the tags. `B-PER I-PER O` in BIO; the other schemes also mark the last tag of an entity
and an entity of a single tag: `B-PER I-PER E-PER` and `S-PER` in BIOES.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mlpkit.errors import DataError
from mlpkit.formats.sequence_labeling import Span


class Scheme(NamedTuple):
    """The marks of a scheme.

    In BIO the last tag of an entity looks like those inside it, and a single one like the first.
    """

    name: str
    begin: str
    inside: str
    end: str
    single: str


SCHEMES = {
    scheme.name.lower(): scheme
    for scheme in (
        Scheme("BIO", "B", "I", "I", "B"),
        Scheme("BIOES", "B", "I", "E", "S"),
        Scheme("BILOU", "B", "I", "L", "U"),
        Scheme("BMES", "B", "M", "E", "S"),
    )
}


def to_tags(scheme: str, length: int, spans: Iterable[Span]) -> list[str]:
    """One tag of the scheme for each of `length` characters or words.

    Raises:
        DataError: the spans overlap, are empty or leave the sentence.
    """
    marks = SCHEMES[scheme]
    tags = ["O"] * length
    for span in _checked(length, spans):
        tags[span.start : span.end] = [f"{marks.inside}-{span.label}"] * (span.end - span.start)
        tags[span.end - 1] = f"{marks.end}-{span.label}"
        tags[span.start] = f"{marks.begin}-{span.label}"
        if span.end - span.start == 1:
            tags[span.start] = f"{marks.single}-{span.label}"
    return tags


def from_tags(scheme: str, tags: Sequence[str], *, repair: bool = False) -> list[Span]:
    """The spans of tags of the scheme.

    With `repair` a tag that cannot follow the one before it begins a new span, and a span without its end ends where
    it can.

    Raises:
        DataError: an unknown tag; without `repair` also one that cannot follow the one before it.
    """
    marks = SCHEMES[scheme]
    spans: list[Span] = []
    start = 0
    before = label = ""
    for index, tag in enumerate([*tags, "O"]):
        mark, name = _parsed(marks, tag, index)
        continues = mark in (marks.inside, marks.end) and before in (marks.begin, marks.inside)
        if mark and continues and name == label:
            before = mark
            continue
        if before:
            spans.append(Span(start, index, label))
        if not repair:
            _check_order(marks, before, mark, tag, index)
        start = index
        before = mark
        label = name
    return spans


def to_bio(length: int, spans: Iterable[Span]) -> list[str]:
    """One BIO tag for each of `length` characters.

    Raises:
        DataError: the spans overlap, are empty or leave the sentence.
    """
    return to_tags("bio", length, spans)


def from_bio(tags: Sequence[str], *, repair: bool = False) -> list[Span]:
    """The spans of BIO tags.

    With `repair` a tag that cannot follow the one before it begins a new span, as what models answer needs.

    Raises:
        DataError: an unknown tag; without `repair` also an `I-` that does not continue a span.
    """
    return from_tags("bio", tags, repair=repair)


def to_bmes(length: int, spans: Iterable[Span]) -> list[str]:
    """One BMES tag for each of `length` characters.

    Raises:
        DataError: the spans overlap, are empty or leave the sentence.
    """
    return to_tags("bmes", length, spans)


def from_bmes(tags: Sequence[str], *, repair: bool = False) -> list[Span]:
    """The spans of BMES tags.

    With `repair` a tag that cannot follow the one before it begins a new span, and a span without its end ends where
    it can.

    Raises:
        DataError: an unknown tag; without `repair` also one that cannot follow the one before it.
    """
    return from_tags("bmes", tags, repair=repair)


def _checked(length: int, spans: Iterable[Span]) -> list[Span]:
    ordered = sorted(spans)
    position = 0
    for span in ordered:
        if not position <= span.start < span.end <= length:
            raise DataError(f"{span} is empty, overlaps another one, or leaves the sentence of {length}")
        if not span.label:
            raise DataError(f"{span} has no label")
        position = span.end
    return ordered


def _check_order(marks: Scheme, before: str, mark: str, tag: str, index: int) -> None:
    unfinished = before and before not in (marks.end, marks.single)
    if marks.end == marks.inside:
        unfinished = False
    if unfinished or (mark and mark not in (marks.begin, marks.single)):
        follows = f"{before}-..." if before else "O"
        raise DataError(f"tag {index}, {tag!r}, cannot follow {follows!r} in {marks.name}")


def _parsed(marks: Scheme, tag: str, index: int) -> tuple[str, str]:
    mark, dash, label = tag.partition("-")
    if tag == "O":
        return "", ""
    if mark not in (marks.begin, marks.inside, marks.end, marks.single) or not dash or not label:
        raise DataError(f"tag {index}, {tag!r}, is not a tag of {marks.name}")
    return mark, label
