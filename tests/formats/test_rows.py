"""Files of training data: read as a stream with the place of every error, and written so that they can be read."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlpkit.errors import DataError
from mlpkit.formats import (
    Argument,
    ClassificationRow,
    ClusterRow,
    CustomRow,
    GenerationRow,
    Mention,
    Predicate,
    Relation,
    RelationRow,
    SequenceRow,
    Span,
    read_rows,
    write_rows,
)

RELATIONS = RelationRow(
    "特朗普是美国总统。",
    [
        Relation(
            Argument("特朗普", 0, 3, "PER"),
            Predicate("总统", [Mention("总统", 6, 8, pos="n")], {"a": [1]}),
            Argument("美国", 4, 6, "LOC"),
        )
    ],
)
ROWS: list[tuple[str, list[Any]]] = [
    ("text_classification", [ClassificationRow("好 看", "电影"), ClassificationRow("好看", "音乐", False)]),
    ("text_sequence_labeling", [SequenceRow("a b", [Span(0, 1, "X")]), SequenceRow("没有", [])]),
    ("text_cluster", [ClusterRow("一句话"), ClusterRow("another", "label")]),
    ("text_generation", [GenerationRow("source", "target")]),
    ("relation_extraction", [RELATIONS, RelationRow("没有", [])]),
    ("text_custom", [CustomRow(("a", "", "c")), CustomRow(("a",))]),
]
TEXT = st.text(max_size=12)


def _file(folder: Path, content: str | bytes) -> Path:
    path = folder / "data.tsv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(("kind", "rows"), ROWS)
def test_what_is_written_is_read_back(tmp_path: Path, kind: str, rows: list[Any]) -> None:
    path = tmp_path / "data.tsv"
    assert write_rows(path, kind, iter(rows)) == len(rows)
    assert list(read_rows(path, kind)) == rows
    assert os.listdir(tmp_path) == ["data.tsv"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.tuples(st.just("text_classification"), st.builds(ClassificationRow, TEXT, TEXT, st.booleans()))
    | st.tuples(st.just("text_sequence_labeling"), st.builds(lambda text: SequenceRow(text, []), TEXT))
    | st.tuples(st.just("text_cluster"), st.builds(ClusterRow, TEXT))
    | st.tuples(st.just("text_generation"), st.builds(GenerationRow, TEXT, TEXT))
    | st.tuples(st.just("relation_extraction"), st.builds(lambda text: RelationRow(text, []), TEXT))
    | st.tuples(st.just("text_custom"), st.builds(lambda texts: CustomRow(tuple(texts)), st.lists(TEXT, min_size=1)))
)
def test_any_row_is_read_back_or_refused(tmp_path: Path, case: tuple[str, Any]) -> None:
    path, (kind, row) = tmp_path / "any.tsv", case
    try:
        write_rows(path, kind, [row])
    except DataError:
        return
    assert list(read_rows(path, kind)) == [row]


def test_a_row_that_cannot_be_written_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    rows = [ClusterRow("good"), ClusterRow("tab\there")]
    with pytest.raises(DataError, match=r"^row 2: a column holds a tab or a line break"):
        write_rows(tmp_path / "data.tsv", "text_cluster", rows)
    assert os.listdir(tmp_path) == []


def test_two_columns_a_byte_order_mark_crlf_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    path = _file(tmp_path, b"\xef\xbb\xbf" + "一\tA\r\n\r\n  \n二\tB\t0\r\n三\tC\t1".encode())
    assert list(read_rows(path, "text_classification")) == [
        ClassificationRow("一", "A", True),
        ClassificationRow("二", "B", False),
        ClassificationRow("三", "C", True),
    ]


@pytest.mark.parametrize(
    ("kind", "line", "place", "message"),
    [
        ("text_classification", "一", "line 2, column 2", "no label"),
        ("text_classification", "一\tA\t1\tx", "line 2, column 6", "4 columns, 3 expected: sentence, label, posneg"),
        ("text_classification", "\tA\t1", "line 2, column 1", "the sentence is empty"),
        ("text_classification", "一\t \t1", "line 2, column 3", "the label is empty"),
        ("text_classification", "一\tA\t2", "line 2, column 5", "posneg is 1 (an example of the label) or 0"),
        ("text_classification", "一\tA\t", "line 2, column 5", "the posneg is empty"),
        ("text_classification", "sentence\tlabel\tposneg", "line 2, column 16", "posneg is 1"),
        ("text_sequence_labeling", "a<START:X>b", "line 2, column 2", "<START:X> has no <END>"),
        ("text_sequence_labeling", "ab\tPER", "line 2, column 3", "2 columns, only the sentence is expected"),
        ("text_cluster", "a\tb\tc", "line 2, column 4", "3 columns"),
        ("text_generation", "a", "line 2, column 2", "no target"),
        ("text_generation", "a\t ", "line 2, column 3", "the target is empty"),
        ("relation_extraction", '{"sentence": "一", x}', "line 2, column 19", "not a JSON object"),
        ("relation_extraction", '{"sentence": "一"}', "line 2, column 1", "Object missing required field `relations`"),
        ("relation_extraction", '{"sentence": " ", "relations": []}', "line 2, column 1", "the sentence is empty"),
    ],
)
def test_a_broken_row_is_an_error_with_its_file_line_and_column(
    tmp_path: Path, kind: str, line: str, place: str, message: str
) -> None:
    good = {"relation_extraction": '{"sentence": "s", "relations": []}', "text_generation": "a\tb"}
    first = good.get(kind, "a\tA\t1" if kind == "text_classification" else "a")
    rows = read_rows(_file(tmp_path, f"{first}\n{line}\n"), kind, name="bucket/data")
    next(rows)
    with pytest.raises(DataError) as raised:
        next(rows)
    assert str(raised.value).startswith(f"bucket/data, {place}: {message}")


def test_a_relation_whose_words_are_elsewhere_in_the_sentence_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write_rows(path, "relation_extraction", [RELATIONS])
    path.write_text(path.read_text("utf-8").replace('"start":4', '"start":5'), "utf-8")
    with pytest.raises(DataError, match=r"relations\[0\]\.object is '美国', but 5 to 5 of the sentence is '国'"):
        list(read_rows(path, "relation_extraction"))


def test_bytes_that_are_no_utf8_are_an_error_with_their_place(tmp_path: Path) -> None:
    path = _file(tmp_path, "好\tA\n好".encode() + "看\tA\n".encode("gb18030"))
    with pytest.raises(DataError, match=r"line 2, column 2: byte 0xbf is not valid UTF-8"):
        list(read_rows(path, "text_classification"))
    whole = _file(tmp_path, "好看\tA\n".encode("gb18030"))
    with pytest.raises(DataError, match=r"line 1, column 1: .*reads as GB18030, save the file as UTF-8"):
        list(read_rows(whole, "text_classification"))
    other = _file(tmp_path, "好看\tA\n".encode("utf-16"))
    with pytest.raises(DataError, match="the file is UTF-16: save it as UTF-8"):
        list(read_rows(other, "text_classification"))


def test_a_missing_file_and_an_unknown_kind_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.tsv cannot be read: No such file"):
        list(read_rows(tmp_path / "nothing.tsv", "text_cluster"))
    with pytest.raises(ValueError, match="no kind 'cluster'"):
        read_rows(tmp_path / "nothing.tsv", "cluster")


def test_a_file_is_read_as_a_stream_and_an_endless_line_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "large.tsv"
    with path.open("wb") as file:
        for _ in range(40):
            file.write(b"x" * (1 << 20))
        file.write(b"\nshort\n")
    rows = read_rows(path, "text_cluster")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="line 1, column 1: the line is longer than 8 MiB"):
            next(rows)
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()
