"""BIO and BMES tags of characters (or tokens) to spans, and back.

Spans count in the same unit as the tags: characters where there is a tag a character. BIO: `B-PER I-PER O`; BMES:
`B-PER M-PER E-PER`, a single one `S-PER`, outside `O`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlpkit.errors import DataError
from mlpkit.formats.sequence_labeling import Span

_FOLLOWING = {"BIO": {"B": "I", "I": "I"}, "BMES": {"B": "ME", "M": "ME"}}
_LAST = {"BIO": "BI", "BMES": "ES"}


def to_bio(length: int, spans: Iterable[Span]) -> list[str]:
    """One BIO tag for each of `length` characters.

    Raises:
        DataError: the spans overlap, are empty or leave the sentence.
    """
    tags = ["O"] * length
    for span in _checked(length, spans):
        tags[span.start : span.end] = [f"I-{span.label}"] * (span.end - span.start)
        tags[span.start] = f"B-{span.label}"
    return tags


def from_bio(tags: Sequence[str], *, repair: bool = False) -> list[Span]:
    """The spans of BIO tags.

    With `repair` a tag that cannot follow the one before it begins a new span, as what models answer needs.

    Raises:
        DataError: an unknown tag; without `repair` also an `I-` that does not continue a span.
    """
    return _spans("BIO", tags, repair)


def to_bmes(length: int, spans: Iterable[Span]) -> list[str]:
    """One BMES tag for each of `length` characters.

    Raises:
        DataError: the spans overlap, are empty or leave the sentence.
    """
    tags = ["O"] * length
    for span in _checked(length, spans):
        tags[span.start : span.end] = [f"M-{span.label}"] * (span.end - span.start)
        tags[span.start], tags[span.end - 1] = f"B-{span.label}", f"E-{span.label}"
        if span.end - span.start == 1:
            tags[span.start] = f"S-{span.label}"
    return tags


def from_bmes(tags: Sequence[str], *, repair: bool = False) -> list[Span]:
    """The spans of BMES tags.

    With `repair` a tag that cannot follow the one before it begins a new span, and a span without its end ends where
    it can.

    Raises:
        DataError: an unknown tag; without `repair` also one that cannot follow the one before it.
    """
    return _spans("BMES", tags, repair)


def _checked(length: int, spans: Iterable[Span]) -> list[Span]:
    ordered, position = sorted(spans), 0
    for span in ordered:
        if not position <= span.start < span.end <= length:
            raise DataError(f"{span} is empty, overlaps another one, or leaves the sentence of {length}")
        if not span.label:
            raise DataError(f"{span} has no label")
        position = span.end
    return ordered


def _spans(scheme: str, tags: Sequence[str], repair: bool) -> list[Span]:
    spans: list[Span] = []
    start, before, label = 0, "", ""
    for index, tag in enumerate([*tags, "O"]):
        mark, name = _parsed(scheme, tag, index)
        if mark and mark in _FOLLOWING[scheme].get(before, "") and name == label:
            before = mark
            continue
        if before:
            spans.append(Span(start, index, label))
        if not repair:
            _check_order(scheme, before, mark, tag, index)
        start, before, label = index, mark, name
    return spans


def _check_order(scheme: str, before: str, mark: str, tag: str, index: int) -> None:
    begins = "B" if scheme == "BIO" else "BS"
    if (before and before not in _LAST[scheme]) or (mark and mark not in begins):
        raise DataError(f"tag {index}, {tag!r}, cannot follow {before + '-...' if before else 'O'!r} in {scheme}")


def _parsed(scheme: str, tag: str, index: int) -> tuple[str, str]:
    mark, dash, label = tag.partition("-")
    if tag == "O":
        return "", ""
    if len(mark) != 1 or mark not in scheme.replace("O", "") or not dash or not label:
        raise DataError(f"tag {index}, {tag!r}, is no tag of {scheme}")
    return mark, label
