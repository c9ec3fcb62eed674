"""Markup, spans and BIO/BMES tags say the same thing: each way there and back."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpkit.errors import DataError
from mlpkit.formats import SequenceRow, Span, from_bio, from_bmes, from_markup, to_bio, to_bmes, to_markup

_LABELS = st.sampled_from(["PER", "LOC", "B-PER", "职位", "a b"])


@st.composite
def _rows(draw: st.DrawFn, text: st.SearchStrategy[str]) -> SequenceRow:
    sentence = draw(text)
    cuts = sorted(draw(st.sets(st.integers(0, len(sentence)), max_size=6)))
    pieces = [Span(start, end, draw(_LABELS)) for start, end in itertools.pairwise(cuts) if draw(st.booleans())]
    return SequenceRow(sentence, pieces)


ROWS = _rows(st.text(st.characters(exclude_characters="<＜", exclude_categories=["Cs"]), max_size=30))
FRAGMENTS = ["<START:X>", "<END>", "<START", "<end>", "</END>", "＜END＞", "<", ">", "END", "START:", "a", "好"]
HOSTILE = _rows(st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join))


@given(ROWS)
def test_markup_gives_the_sentence_and_its_spans_back(row: SequenceRow) -> None:
    assert from_markup(to_markup(row.sentence, row.spans)) == row


@given(HOSTILE)
def test_a_sentence_that_looks_like_markup_comes_back_or_is_refused(row: SequenceRow) -> None:
    try:
        text = to_markup(row.sentence, row.spans)
    except DataError:
        return
    assert from_markup(text) == row


@given(ROWS)
def test_bio_gives_the_spans_back(row: SequenceRow) -> None:
    tags = to_bio(len(row.sentence), row.spans)
    assert len(tags) == len(row.sentence)
    assert from_bio(tags) == from_bio(tags, repair=True) == row.spans


@given(ROWS)
def test_bmes_gives_the_spans_back(row: SequenceRow) -> None:
    tags = to_bmes(len(row.sentence), row.spans)
    assert len(tags) == len(row.sentence)
    assert from_bmes(tags) == from_bmes(tags, repair=True) == row.spans


@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), max_size=12))
def test_any_tags_are_refused_or_mean_the_same_spans_with_and_without_repair(tags: list[str]) -> None:
    repaired = from_bio(tags, repair=True)
    assert from_bio(to_bio(len(tags), repaired)) == repaired
    try:
        assert from_bio(tags) == repaired
    except DataError:
        assert to_bio(len(tags), repaired) != tags


@given(st.lists(st.sampled_from(["O", "B-A", "M-A", "E-A", "S-A", "E-B", "M-B"]), max_size=12))
def test_bmes_tags_are_refused_exactly_when_no_spans_have_them(tags: list[str]) -> None:
    repaired = from_bmes(tags, repair=True)
    if to_bmes(len(tags), repaired) == tags:
        assert from_bmes(tags) == repaired
    else:
        with pytest.raises(DataError, match="cannot follow"):
            from_bmes(tags)


def test_the_platforms_example_is_read() -> None:
    row = from_markup("<START:PER>特朗普<END>是<START:LOC>美国<END>总统。")
    assert row == SequenceRow("特朗普是美国总统。", [Span(0, 3, "PER"), Span(4, 6, "LOC")])
    assert to_bio(9, row.spans) == ["B-PER", "I-PER", "I-PER", "O", "B-LOC", "I-LOC", "O", "O", "O"]
    assert to_bmes(9, row.spans) == ["B-PER", "M-PER", "E-PER", "O", "B-LOC", "E-LOC", "O", "O", "O"]
    assert to_bmes(1, [Span(0, 1, "PER")]) == ["S-PER"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a<START:X>b", "column 2: <START:X> has no <END>"),
        ("ab<END>c", "column 3: <END> without a <START:...>"),
        ("<START:X>a<START:Y>b<END><END>", "column 11: <START:Y> inside <START:X> of column 1"),
        ("a<START:X><END>", "column 2: there is no text between"),
        ("<START: >a<END>", "column 1: the tag has no label"),
        ("a<START>b<END>", "column 2: '<START>b<END>' is no tag"),
        ("a<start:X>b<END>", "column 2: '<start:X>b<END>' is no tag"),
        ("<START:X>b</END>", "column 11: '</END>' is no tag"),
        ("＜START:X＞b", "column 1: "),
        ("<START:Xb<END>", "column 1: "),
    ],
)
def test_broken_markup_is_an_error_with_its_column(text: str, message: str) -> None:
    with pytest.raises(DataError) as raised:
        from_markup(text)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("write", [to_bio, to_bmes])
@pytest.mark.parametrize(
    "spans", [[Span(0, 2, "X"), Span(1, 3, "Y")], [Span(1, 1, "X")], [Span(2, 9, "X")], [Span(-1, 1, "X")]]
)
def test_spans_that_overlap_or_leave_the_sentence_are_errors(
    write: Callable[[int, list[Span]], list[str]], spans: list[Span]
) -> None:
    with pytest.raises(DataError, match="is empty, overlaps another one, or leaves the sentence"):
        write(4, spans)
    with pytest.raises(DataError, match="is empty, overlaps another one, or leaves the sentence"):
        to_markup("abcd", spans)


@pytest.mark.parametrize(("sentence", "label"), [("a<END>b", "X"), ("a<START:Y>b", "X"), ("ab", "X<"), ("ab", " ")])
def test_a_sentence_or_label_that_holds_a_tag_cannot_be_marked_up(sentence: str, label: str) -> None:
    with pytest.raises(DataError, match="holds what reads as a tag"):
        to_markup(sentence, [Span(0, 1, label)])


def test_tags_of_models_are_repaired_only_when_asked() -> None:
    assert from_bio(["I-X", "I-X", "I-Y"], repair=True) == [Span(0, 2, "X"), Span(2, 3, "Y")]
    assert from_bmes(["M-X", "E-X", "B-X", "O"], repair=True) == [Span(0, 2, "X"), Span(2, 3, "X")]
    with pytest.raises(DataError, match="tag 0, 'I-X', cannot follow 'O' in BIO"):
        from_bio(["I-X"])
    with pytest.raises(DataError, match="tag 1, 'X', is no tag of BIO"):
        from_bio(["O", "X"], repair=True)
