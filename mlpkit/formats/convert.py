"""Labelled sentences in other formats: tags, and conversion of files.

- `bio`, `bioes`, `bilou`, `bmes`: a token and its tag on a line, a blank line after each sentence. `B-PER I-PER O` in
  BIO; the others also mark the last tag of an entity and an entity of one tag: `B-PER I-PER E-PER` and `S-PER`.
- `conll`: the same with further columns between token and tag, and `-DOCSTART-` lines; the tags are BIO.
- `doccano`: a JSON object on a line, `{"text": "...", "label": [[0, 2, "PER"]]}`.
- `markup`: the platform's `<START:PER>李华<END>`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mlpkit.errors import ArgumentError, DataError
from mlpkit.formats.kind import BrokenRow, is_blank, shown
from mlpkit.formats.rows import first_lines, read_lines
from mlpkit.formats.sequence_labeling import KIND, SequenceRow, Span


class _Scheme(NamedTuple):
    """The marks of a scheme.

    In BIO the last tag of an entity looks like those inside it, and a single one like the first.
    """

    name: str
    begin: str
    inside: str
    end: str
    single: str


_SCHEMES = {
    scheme.name.lower(): scheme
    for scheme in (
        _Scheme("BIO", "B", "I", "I", "B"),
        _Scheme("BIOES", "B", "I", "E", "S"),
        _Scheme("BILOU", "B", "I", "L", "U"),
        _Scheme("BMES", "B", "M", "E", "S"),
    )
}


FORMATS = ("markup", *_SCHEMES, "conll", "doccano")
"""The names of the formats that `convert_file` reads and writes."""

_NAMES = {**{name: scheme.name for name, scheme in _SCHEMES.items()}, "conll": "CoNLL", "doccano": "doccano JSONL"}
_TAG = re.compile(r"O|([BIESLUM])-\S+")
_LEAST_TAGGED = 0.8
"""The share of lines with a tag that a file of tags has at least."""
_LONGEST_SENTENCE = 100_000
# Scripts that are written without spaces between words: Chinese characters, kana, and their punctuation.
_UNSPACED = r"\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_WITHOUT_SPACE = re.compile(rf"[{_UNSPACED}]")


def _to_tags(scheme: str, length: int, spans: Iterable[Span]) -> list[str]:
    """One tag of the scheme for each of `length` characters or words.

    Raises:
        DataError: the spans overlap, are empty or leave the sentence.
    """
    marks = _SCHEMES[scheme]
    tags = ["O"] * length
    for span in _in_order(length, spans):
        tags[span.start : span.end] = [f"{marks.inside}-{span.label}"] * (span.end - span.start)
        tags[span.end - 1] = f"{marks.end}-{span.label}"
        tags[span.start] = f"{marks.begin}-{span.label}"
        if span.end - span.start == 1:
            tags[span.start] = f"{marks.single}-{span.label}"
    return tags


def _from_tags(scheme: str, tags: Sequence[str], *, repair: bool = False) -> list[Span]:
    """The spans of tags of the scheme.

    With `repair` a tag that cannot follow the one before it begins a new span, and a span without its end ends where
    it can.

    Raises:
        DataError: an unknown tag; without `repair` also one that cannot follow the one before it.
    """
    marks = _SCHEMES[scheme]
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
    return _to_tags("bio", length, spans)


def from_bio(tags: Sequence[str], *, repair: bool = False) -> list[Span]:
    """The spans of BIO tags.

    With `repair` a tag that cannot follow the one before it begins a new span, as what models answer needs.

    Raises:
        DataError: an unknown tag; without `repair` also an `I-` that does not continue a span.
    """
    return _from_tags("bio", tags, repair=repair)


def to_bmes(length: int, spans: Iterable[Span]) -> list[str]:
    """One BMES tag for each of `length` characters.

    Raises:
        DataError: the spans overlap, are empty or leave the sentence.
    """
    return _to_tags("bmes", length, spans)


def from_bmes(tags: Sequence[str], *, repair: bool = False) -> list[Span]:
    """The spans of BMES tags.

    With `repair` a tag that cannot follow the one before it begins a new span, and a span without its end ends where
    it can.

    Raises:
        DataError: an unknown tag; without `repair` also one that cannot follow the one before it.
    """
    return _from_tags("bmes", tags, repair=repair)


class Converted(msgspec.Struct, frozen=True):
    """What a conversion did; `repaired` counts the changed sentences."""

    sentences: int
    entities: int
    repaired: int


def other_format(lines: Sequence[str]) -> str:
    """How to convert the file with these first lines; empty for markup."""
    name = detect_format(lines)
    if name == "markup":
        return ""
    return (
        f"the file is in the {_NAMES[name]} format: convert it with `mlpkit data convert FILE train.txt --from {name}`"
    )


def detect_format(lines: Sequence[str]) -> str:
    """The format of a file by its first lines; `markup` if unknown."""
    full = [line for line in lines if line.strip()]
    if not full:
        return "markup"
    if all(line.lstrip().startswith("{") for line in full) and _doccano_row(full[0]):
        return "doccano"
    tagged = [line.split() for line in full if not line.startswith("-DOCSTART-")]
    tags = [_TAG.fullmatch(columns[-1]) for columns in tagged if len(columns) > 1]
    marks = {tag[1] for tag in tags if tag is not None} - {None}
    found = sum(tag is not None for tag in tags)
    if len(tagged) < len(full) or (marks and found >= _LEAST_TAGGED * len(full) and _wide(tagged)):
        return "conll"
    if not marks or found < _LEAST_TAGGED * len(full):
        return "markup"
    if marks & {"L", "U"}:
        return "bilou"
    if "M" in marks:
        return "bmes"
    return "bioes" if marks & {"E", "S"} else "bio"


def convert_file(source: Path, target: Path, read_as: str, write_as: str, *, repair: bool = False) -> Converted:
    """Converts a file, one sentence at a time.

    The target appears whole or not at all.

    Args:
        source: the file.
        target: the file to write.
        read_as: one of `FORMATS`, or "" to recognise it.
        write_as: one of `FORMATS`.
        repair: mends tags that cannot follow each other, overlapping entities and line breaks inside a text. Without
            it they are errors.

    Raises:
        ArgumentError: no format has this name.
        DataError: the file cannot be read, or a sentence cannot be converted: names the line.
    """
    read_as = read_as or detect_format(first_lines(source))
    for name in (read_as, write_as):
        if name not in FORMATS:
            raise ArgumentError(f"unknown format {name!r}; formats: {', '.join(FORMATS)}")
    sentences = entities = repaired = 0
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            for number, row, was_repaired in _rows(source, read_as, repair):
                try:
                    file.write(_written(row, write_as))
                except DataError as error:
                    raise DataError(f"{source}, line {number}: {error}") from error
                sentences += 1
                entities += len(row.spans)
                repaired += was_repaired
        if not sentences:
            raise DataError(f"{source} has no sentence in the format {read_as}")
        part.replace(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return Converted(sentences, entities, repaired)


def _rows(path: Path, name: str, repair: bool) -> Iterator[tuple[int, SequenceRow, bool]]:
    """The first lines of the sentences, the sentences, and whether repaired."""
    tokens: list[str] = []
    tags: list[str] = []
    begin = 1
    by_line = name in ("markup", "doccano")
    for number, line in _text_lines(path):
        if by_line:
            if not is_blank(line):
                yield _checked(path, number, line, name, repair)
            continue
        if line.strip() and not line.startswith("-DOCSTART-"):
            columns = line.split()
            if len(columns) < 2:
                raise DataError(f"{path}, line {number}: a token and its tag are needed, not {shown(line)}")
            if not tokens:
                begin = number
            if len(tokens) == _LONGEST_SENTENCE:
                message = f"the sentence has more than {_LONGEST_SENTENCE:,} tokens; a blank line must end each one"
                raise DataError(f"{path}, line {number}: {message}")
            tokens.append(columns[0])
            tags.append(columns[-1])
        elif tokens:
            yield _sentence(path, begin, tokens, tags, name, repair)
            tokens = []
            tags = []
    if tokens:
        yield _sentence(path, begin, tokens, tags, name, repair)


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in read_lines(path):
        if isinstance(line, BrokenRow):
            raise DataError(f"{path}, line {number}: {line}")
        yield number, line


def _checked(path: Path, number: int, line: str, name: str, repair: bool) -> tuple[int, SequenceRow, bool]:
    try:
        if name == "markup":
            return number, KIND.read(line), False
        row, repaired = _from_doccano(line, repair)
        return number, row, repaired
    except DataError as error:
        raise DataError(f"{path}, line {number}: {error}") from error


def _sentence(
    path: Path, number: int, tokens: list[str], tags: list[str], name: str, repair: bool
) -> tuple[int, SequenceRow, bool]:
    """The sentence of tokens and tags, with spaces between words.

    Chinese characters have no space beside them.
    """
    scheme = "bio" if name == "conll" else name
    repaired = False
    try:
        spans = _from_tags(scheme, tags)
    except DataError as error:
        if not repair:
            advice = "is --from right?"
            if "cannot follow" in str(error):
                advice = "--repair begins a new entity there, as the IOB1 tags of CoNLL-2003 mean it"
            raise DataError(f"{path}, sentence of line {number}: {error} ({advice})") from error
        spans = _from_tags(scheme, tags, repair=True)
        repaired = True
    text = ""
    starts: list[int] = []
    for token in tokens:
        if text and not _WITHOUT_SPACE.match(token) and not _WITHOUT_SPACE.match(text[-1]):
            text += " "
        starts.append(len(text))
        text += token
    places = [Span(starts[span.start], starts[span.end - 1] + len(tokens[span.end - 1]), span.label) for span in spans]
    return number, SequenceRow(text, places), repaired


def _doccano_row(line: str) -> dict[str, Any] | None:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("text"), str)
    return row if is_row and any(isinstance(row.get(key), list) for key in ("label", "labels", "entities")) else None


def _from_doccano(line: str, repair: bool) -> tuple[SequenceRow, bool]:
    row = _doccano_row(line)
    if row is None:
        raise DataError(f'a JSON object with "text" and "label" is needed, not {shown(line)}')
    found = next(row[key] for key in ("label", "labels", "entities") if isinstance(row.get(key), list))
    text: str = row["text"]
    spans: list[Span] = []
    repaired = False
    for span in sorted(_doccano_span(entry, text) for entry in found):
        if spans and span.start < spans[-1].end:
            if not repair:
                raise DataError(f"{span} overlaps {spans[-1]} (--repair keeps the first one)")
            repaired = True
        elif span not in spans:
            spans.append(span)
    if any(char in text for char in "\t\r\n"):
        if not repair:
            raise DataError("the text has a line break or a tab (--repair makes them spaces)")
        text = re.sub(r"[\t\r\n]", " ", text)
        repaired = True
    return SequenceRow(text, spans), repaired


def _doccano_span(entry: Any, text: str) -> Span:
    """The span of `[start, end, label]`, or of an object with offsets."""
    if isinstance(entry, dict):
        entry = [entry.get("start_offset"), entry.get("end_offset"), entry.get("label")]
    try:
        span = Span(*msgspec.convert(entry, tuple[int, int, str]))
    except msgspec.ValidationError as error:
        raise DataError(f"{shown(str(entry))} is not [start, end, label]: {error}") from error
    if not 0 <= span.start < span.end <= len(text):
        raise DataError(f"{span} is empty or leaves the text of {len(text)} characters")
    return span


def _written(row: SequenceRow, name: str) -> str:
    if name == "markup":
        return KIND.write(row) + "\n"
    if name == "doccano":
        labels = [[span.start, span.end, span.label] for span in row.spans]
        return msgspec.json.encode({"text": row.sentence, "label": labels}).decode() + "\n"
    tokens = list(_tokens(row))
    starts = {start: index for index, (start, _) in enumerate(tokens)}
    ends = {end: index + 1 for index, (_, end) in enumerate(tokens)}
    spans = []
    for span in row.spans:
        entity = row.sentence[span.start : span.end]
        if not entity.strip():
            raise DataError(f"{span} is an entity of spaces alone, which has no token")
        start = span.start + len(entity) - len(entity.lstrip())
        end = span.end - len(entity) + len(entity.rstrip())
        if any(char.isspace() for char in span.label):
            raise DataError(f"the label {shown(span.label)} has a space, which {name} cannot hold")
        spans.append(Span(starts[start], ends[end], span.label))
    tags = _to_tags("bio" if name == "conll" else name, len(tokens), spans)
    between = " -X- -X- " if name == "conll" else " "
    lines = [f"{row.sentence[start:end]}{between}{tag}\n" for (start, end), tag in zip(tokens, tags, strict=True)]
    return "".join(lines) + "\n"


def _tokens(row: SequenceRow) -> Iterator[tuple[int, int]]:
    """Where the tokens begin and end.

    Tokens are words and single Chinese characters, cut at the edges of entities.
    """
    edges = sorted({0, len(row.sentence), *(edge for span in row.spans for edge in (span.start, span.end))})
    for start, end in itertools.pairwise(edges):
        for token in _TOKEN.finditer(row.sentence, start, end):
            yield token.span()


def _wide(rows: list[list[str]]) -> bool:
    """Whether all lines have the same number of columns, more than two."""
    return len({len(columns) for columns in rows}) == 1 and len(rows[0]) > 2


def _in_order(length: int, spans: Iterable[Span]) -> list[Span]:
    ordered = sorted(spans)
    position = 0
    for span in ordered:
        if not position <= span.start < span.end <= length:
            raise DataError(f"{span} is empty, overlaps another one, or leaves the sentence of {length}")
        if not span.label:
            raise DataError(f"{span} has no label")
        position = span.end
    return ordered


def _check_order(marks: _Scheme, before: str, mark: str, tag: str, index: int) -> None:
    unfinished = before and before not in (marks.end, marks.single)
    if marks.end == marks.inside:
        unfinished = False
    if unfinished or (mark and mark not in (marks.begin, marks.single)):
        follows = f"{before}-..." if before else "O"
        raise DataError(f"tag {index}, {tag!r}, cannot follow {follows!r} in {marks.name}")


def _parsed(marks: _Scheme, tag: str, index: int) -> tuple[str, str]:
    mark, dash, label = tag.partition("-")
    if tag == "O":
        return "", ""
    if mark not in (marks.begin, marks.inside, marks.end, marks.single) or not dash or not label:
        raise DataError(f"tag {index}, {tag!r}, is not a tag of {marks.name}")
    return mark, label
