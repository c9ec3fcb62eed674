"""Files in other formats: converted in both directions, repaired only when asked, and never half-written."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlpkit.errors import ArgumentError, DataError
from mlpkit.formats import SequenceRow, Span, read_rows, write_rows
from mlpkit.formats.convert import FORMATS, Converted, convert_file, detect_format
from mlpkit.formats.rows import first_lines
from tests.corpora import corpora_folder

KIND = "text_sequence_labeling"
OTHERS = [name for name in FORMATS if name != "markup"]
CHINESE = "<START:PER>李小华<END>住在<START:LOC>杭州<END>。\n没有\n<START:PER>王<END>\n"
ENGLISH = "<START:PER>Ann Mary Lee<END> lives in <START:LOC>New York<END> .\nnothing here\n<START:LOC>Rome<END>\n"
CONLL_2003 = "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\nPeter NNP I-NP I-PER\n"


def _file(folder: Path, content: str, name: str = "source") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def _converted(folder: Path, content: str, read_as: str = "", *, repair: bool = False) -> tuple[str, Converted]:
    target = folder / "target"
    done = convert_file(_file(folder, content), target, read_as, "markup", repair=repair)
    return target.read_text(encoding="utf-8"), done


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("markup", [CHINESE, ENGLISH], ids=["zh", "en"])
def test_every_format_is_written_recognised_and_read_back(tmp_path: Path, name: str, markup: str) -> None:
    other, back = tmp_path / "other", tmp_path / "back"
    sentences = len(markup.splitlines())
    assert convert_file(_file(tmp_path, markup), other, "markup", name).sentences == sentences
    assert detect_format(first_lines(other)) == name
    assert convert_file(other, back, name, "markup").repaired == 0
    assert back.read_text(encoding="utf-8") == markup


def test_tokens_are_words_and_single_chinese_characters(tmp_path: Path) -> None:
    target = tmp_path / "target"
    convert_file(_file(tmp_path, "我 <START:ORG>IBM<END>爱Ann's\n"), target, "markup", "bio")
    assert target.read_text(encoding="utf-8") == "我 O\nIBM B-ORG\n爱 O\nAnn's O\n\n"


WORDS = st.lists(st.sampled_from(["Ann", "lives", "x1", "U.S.", "don't"]), min_size=1, max_size=8)
CHARACTERS = st.text("李华住在杭州。", min_size=1, max_size=12)


@st.composite
def _rows(draw: st.DrawFn) -> SequenceRow:
    tokens = draw(WORDS | CHARACTERS.map(list))
    between = "" if len(tokens[0]) == 1 else " "
    starts = [0, *itertools.accumulate(len(token) + len(between) for token in tokens)]
    cuts = sorted(draw(st.sets(st.integers(0, len(tokens)), max_size=5)))
    spans = [
        Span(starts[begin], starts[end] - len(between), draw(st.sampled_from(["PER", "LOC"])))
        for begin, end in itertools.pairwise(cuts)
        if draw(st.booleans())
    ]
    return SequenceRow(between.join(tokens), spans)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(st.lists(_rows(), min_size=1, max_size=3), st.sampled_from(OTHERS))
def test_any_sentences_of_words_or_characters_come_back(tmp_path: Path, rows: list[SequenceRow], name: str) -> None:
    source, other, back = (tmp_path / name for name in ("source", "other", "back"))
    write_rows(source, KIND, rows)
    convert_file(source, other, "markup", name)
    convert_file(other, back, name, "markup")
    assert list(read_rows(back, KIND)) == rows


def test_conll_2003_is_read_with_its_documents_and_its_tags_when_repair_is_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sentence of line 3: tag 0, 'I-ORG', cannot follow 'O' .*--repair.*IOB1"):
        _converted(tmp_path, CONLL_2003)
    assert not (tmp_path / "target").exists()
    text, done = _converted(tmp_path, CONLL_2003, repair=True)
    assert text == "<START:ORG>EU<END> rejects\n<START:PER>Peter<END>\n"
    assert done == Converted(sentences=2, entities=2, repaired=2)


@pytest.mark.parametrize(
    ("name", "tags", "repaired"),
    [
        ("bio", "a I-X\nb I-X\nc I-Y\n", "<START:X>a b<END> <START:Y>c<END>\n"),
        ("bioes", "a B-X\nb O\nc E-X\n", "<START:X>a<END> b <START:X>c<END>\n"),
        ("bilou", "a I-X\nb L-X\nc U-Y\n", "<START:X>a b<END> <START:Y>c<END>\n"),
        ("bmes", "a B-X\nb S-X\nc M-X\n", "<START:X>a<END> <START:X>b<END> <START:X>c<END>\n"),
    ],
)
def test_invalid_tags_are_an_error_or_repaired(tmp_path: Path, name: str, tags: str, repaired: str) -> None:
    with pytest.raises(DataError, match=r"sentence of line 1: tag \d, '.*', cannot follow .*--repair"):
        _converted(tmp_path, tags, name)
    assert _converted(tmp_path, tags, name, repair=True) == (repaired, Converted(1, repaired.count("<END>"), 1))


def test_doccano_offsets_objects_and_escapes_are_read(tmp_path: Path) -> None:
    lines = [
        {"text": "李华住", "label": [[0, 2, "PER"]], "id": 7},
        {"text": "in Rome", "labels": [[3, 7, "LOC"]]},
        {"text": "a <START> b", "entities": [{"id": 1, "start_offset": 0, "end_offset": 1, "label": "X"}]},
        {"text": "😀好", "label": []},
    ]
    text, done = _converted(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))
    assert text == "<START:PER>李华<END>住\nin <START:LOC>Rome<END>\n<START:X>a<END> \\<START> b\n😀好\n"
    assert done == Converted(4, 3, 0)


@pytest.mark.parametrize(
    ("line", "message", "repaired"),
    [
        ({"text": "abc", "label": [[0, 2, "X"], [1, 3, "Y"]]}, "overlaps", "<START:X>ab<END>c\n"),
        ({"text": "a\nb", "label": [[2, 3, "X"]]}, "line break or a tab", "a <START:X>b<END>\n"),
        ({"text": "abc", "label": [[0, 9, "X"]]}, "leaves the text of 3 characters", None),
        ({"text": "abc", "label": [["0", 1]]}, "is not .start, end, label.", None),
    ],
)
def test_a_doccano_line_that_does_not_fit_is_an_error(
    tmp_path: Path, line: object, message: str, repaired: str | None
) -> None:
    content = '{"text": "x", "label": []}\n' + json.dumps(line) + "\n"
    with pytest.raises(DataError, match=f"source, line 2: .*{message}"):
        _converted(tmp_path, content, "doccano")
    if repaired is not None:
        assert _converted(tmp_path, content, "doccano", repair=True) == (f"x\n{repaired}", Converted(2, 1, 1))
    else:
        with pytest.raises(DataError, match=message):
            _converted(tmp_path, content, "doccano", repair=True)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("李 B-PER\n华\n", "bio", "line 2: a token and its tag are needed"),
        ("李 B-PER\n", "doccano", "line 1: a JSON object"),
        ("李 PER\n", "bio", "line 1: tag 0, 'PER', is not a tag of BIO"),
        ("<START:PER>李\n", "markup", "line 1: <START:PER> has no <END>"),
        ("", "bio", "has no sentence"),
    ],
)
def test_a_file_that_cannot_be_converted_is_an_error_and_leaves_no_file(
    tmp_path: Path, content: str, name: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _converted(tmp_path, content, name)
    assert os.listdir(tmp_path) == ["source"]


def test_a_label_that_a_format_cannot_hold_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: the label 'a b' has a space, which bio cannot hold"):
        convert_file(_file(tmp_path, "<START:a b>x<END>\n"), tmp_path / "target", "markup", "bio")


def test_an_unknown_format_is_an_error_that_names_the_formats(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="unknown format 'iob'; formats: markup, bio, bioes"):
        convert_file(_file(tmp_path, CHINESE), tmp_path / "target", "iob", "markup")


def test_a_file_without_blank_lines_is_an_error_before_it_fills_the_memory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than 100,000 tokens; a blank line must end each one"):
        _converted(tmp_path, "a O\n" * 100_001, "bio")


@pytest.mark.parametrize("corpus", ["ner-zh-weibo", "ner-en-snips"])
@pytest.mark.parametrize("name", OTHERS)
def test_the_real_data_keeps_its_entities_in_every_format(tmp_path: Path, corpus: str, name: str) -> None:
    source, other, back = corpora_folder() / corpus / "train.tsv", tmp_path / "other", tmp_path / "back"
    there = convert_file(source, other, "markup", name)
    assert convert_file(other, back, name, "markup") == there
    for before, after in zip(read_rows(source, KIND), read_rows(back, KIND), strict=True):
        assert _entities(before) == _entities(after)


def _entities(row: Any) -> list[tuple[str, str]]:
    return [("".join(row.sentence[span.start : span.end].split()), span.label) for span in row.spans]
