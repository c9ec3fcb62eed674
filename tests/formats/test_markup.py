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
FRAGMENTS += ["\\", " ", "<PER>", "</PER>", "[START:", "&lt;START", "{{PER:a}}", "{{a:", "}}", "< END>"]
HOSTILE = _rows(st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join))


@given(ROWS)
def test_markup_gives_the_sentence_and_its_spans_back(row: SequenceRow) -> None:
    assert from_markup(to_markup(row.sentence, row.spans)) == row


@given(HOSTILE)
def test_a_sentence_that_looks_like_markup_comes_back(row: SequenceRow) -> None:
    assert from_markup(to_markup(row.sentence, row.spans)) == row


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
        ("a<START:X><END>", "column 2: no text between"),
        ("<START: >a<END>", "column 1: the tag has no label"),
        ("a<START>b<END>", "column 2: '<START>b<END>' is not a tag"),
        ("a<start:X>b<END>", "column 2: '<start:X>b<END>' is not a tag"),
        ("<START:X>b</END>", "column 11: '</END>' is not a tag"),
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


@pytest.mark.parametrize("label", ["X<", " ", "", "a>b", "a\tb"])
def test_a_label_that_cannot_stand_in_a_tag_is_refused(label: str) -> None:
    with pytest.raises(DataError, match="holds what reads as a tag"):
        to_markup("ab", [Span(0, 1, label)])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (r"write \<START> first", "write <START> first"),
        (r"write \<START:PER>a\<END>", "write <START:PER>a<END>"),
        (r"\<PER>a</PER> \[START:PER] \&lt;END \{{PER:a}}", "<PER>a</PER> [START:PER] &lt;END {{PER:a}}"),
        (r"C:\temp \n \\server", r"C:\temp \n \\server"),
        (r"\\\<END>", r"\<END>"),
    ],
)
def test_a_backslash_before_a_tag_makes_it_text(text: str, sentence: str) -> None:
    assert from_markup(text) == SequenceRow(sentence, [])
    assert to_markup(sentence, []) == text


def test_a_tag_after_two_backslashes_is_a_tag_after_one() -> None:
    assert from_markup(r"a\\<START:X>b<END>") == SequenceRow("a\\b", [Span(2, 3, "X")])
    assert to_markup("a\\b", [Span(2, 3, "X")]) == r"a\\<START:X>b<END>"


@pytest.mark.parametrize(
    ("text", "sentence", "names"),
    [
        (
            "<START:person> Pierre Vinken <END> , 61 , joins <START:org> Elsevier <END> .",
            "Pierre Vinken , 61 , joins Elsevier .",
            ["Pierre Vinken", "Elsevier"],
        ),
        ("Hi<START:X> Ann <END>, hi", "Hi Ann , hi", ["Ann"]),
        ("<START:X> a <END><START:Y> b <END>", "a b", ["a", "b"]),
        ("  <START:X>\u3000李华\u3000<END>", "  李华", ["李华"]),
    ],
)
def test_spaces_between_a_tag_and_its_entity_are_not_part_of_it(text: str, sentence: str, names: list[str]) -> None:
    row = from_markup(text)
    assert row.sentence == sentence
    assert [sentence[span.start : span.end] for span in row.spans] == names


def test_an_entity_with_spaces_at_its_edges_is_written_so_that_they_stay() -> None:
    assert to_markup("a b ", [Span(1, 4, "X")]) == r"a<START:X>\ b <END>"
    assert from_markup(r"a<START:X>\ b <END>") == SequenceRow("a b ", [Span(1, 4, "X")])


@pytest.mark.parametrize(
    "text",
    [
        "<PER>李华</PER>住在<LOC>杭州</LOC>",
        "[START:PER]李华[END]住",
        "【START:PER】李华",
        "&lt;START:PER&gt;李华&lt;END&gt;",
        "< START:PER>李华<END>",
        "<START:PER>李华< END>",
        "{{PER:李华}}住",
        "<person>Ann</person> lives",
    ],
)
def test_markup_that_is_almost_right_is_an_error_that_names_the_right_one(text: str) -> None:
    with pytest.raises(DataError, match="is not a tag: entities are marked as <START:LABEL>"):
        from_markup(text)


@pytest.mark.parametrize(
    "text", ["<b>好</b>看", "x < end of y", "[END]", "a <3 b", "[链接](http://x)", "if a<b>c", "STARTLED"]
)
def test_text_that_only_resembles_markup_is_text(text: str) -> None:
    assert from_markup(text) == SequenceRow(text, [])


def test_tags_of_models_are_repaired_only_when_asked() -> None:
    assert from_bio(["I-X", "I-X", "I-Y"], repair=True) == [Span(0, 2, "X"), Span(2, 3, "Y")]
    assert from_bmes(["M-X", "E-X", "B-X", "O"], repair=True) == [Span(0, 2, "X"), Span(2, 3, "X")]
    with pytest.raises(DataError, match="tag 0, 'I-X', cannot follow 'O' in BIO"):
        from_bio(["I-X"])
    with pytest.raises(DataError, match="tag 1, 'X', is not a tag of BIO"):
        from_bio(["O", "X"], repair=True)
