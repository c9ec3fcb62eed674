"""The checks of training data: one test a defect, and the real data where it is given."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from mlpkit.errors import DataError
from mlpkit.formats import Finding, LabelCount, Report, check_rows, read_rows
from mlpkit.formats import report as report_module

CLASSES = "text_classification"
GOOD = "".join(f"句子{number}\t{label}\t1\n" for number in range(10) for label in "AB")


def _check(folder: Path, content: str | bytes, kind: str = CLASSES) -> Report:
    path = folder / "data.tsv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return check_rows(path, kind, name="data.tsv")


def _distinct(label: str, count: int) -> str:
    return "".join(f"{label} sentence {number}\t{label}\t1\n" for number in range(count))


def _only(report: Report) -> tuple[int | None, int | None, str, str]:
    assert len(report.findings) == 1, report.findings
    found = report.findings[0]
    return found.line, found.column, found.severity, found.code


def test_good_data_has_no_findings_and_its_balance(tmp_path: Path) -> None:
    report = _check(tmp_path, _distinct("A", 6) + "x\tB\t0\n" + _distinct("B", 5))
    assert (report.lines, report.rows, report.blank, report.findings, report.fatal) == (12, 12, 0, [], False)
    assert report.labels == {"A": LabelCount(6, 0, 1), "B": LabelCount(5, 1, 7)}
    assert report.summary() == "data.tsv: 12 rows, 0 warnings"
    report.raise_if_fatal()


@pytest.mark.parametrize(
    ("kind", "line", "column", "code"),
    [
        (CLASSES, "x", 2, "columns"),
        (CLASSES, "x\tA\t1\tmore", 6, "columns"),
        (CLASSES, "\tA\t1", 1, "empty-sentence"),
        (CLASSES, "x\t\t1", 3, "empty-label"),
        (CLASSES, "x\tA\tyes", 5, "posneg"),
        ("text_sequence_labeling", "a<START:X>b", 2, "unbalanced-tag"),
        ("text_sequence_labeling", "ab<END>", 3, "unbalanced-tag"),
        ("text_sequence_labeling", "<START:X>a<START:Y>b<END><END>", 11, "nested-tag"),
        ("text_sequence_labeling", "<START:X><END>b", 1, "empty-entity"),
        ("text_sequence_labeling", "<START:>a<END>b", 1, "empty-label"),
        ("text_sequence_labeling", "<START>a<END>b", 1, "broken-tag"),
        ("text_sequence_labeling", "a\tb", 2, "columns"),
    ],
)
def test_a_broken_row_is_fatal_and_found_with_its_place(
    tmp_path: Path, kind: str, line: str, column: int, code: str
) -> None:
    good = _distinct("A", 6) if kind == CLASSES else "".join(f"{each}<START:X>a<END>\n" for each in range(6))
    report = _check(tmp_path, f"{good}{line}\n", kind)
    assert _only(report) == (7, column, "error", code)
    assert report.fatal
    assert (report.rows, report.errors) == (6, 1)
    with pytest.raises(DataError, match=rf"^data\.tsv, line 7, column {column}: "):
        report.raise_if_fatal()


def test_every_broken_row_is_found_and_the_good_ones_are_counted(tmp_path: Path) -> None:
    report = _check(tmp_path, "x\n" + GOOD + "y\n\tA\nz\tA\t7\n")
    assert [(each.line, each.code) for each in report.findings if each.severity == "error"] == [
        (1, "columns"),
        (22, "columns"),
        (23, "empty-sentence"),
        (24, "posneg"),
    ]
    assert report.rows == 20
    assert report.summary().endswith("(and 3 more errors)")


def test_invalid_utf8_is_fatal_and_found_with_its_line(tmp_path: Path) -> None:
    report = _check(tmp_path, _distinct("A", 6).encode() + b"ab\xff\tA\t1\n")
    assert _only(report) == (7, 3, "error", "encoding")


@pytest.mark.parametrize(("content", "code"), [("", "no-rows"), ("\n\n", "no-rows"), ("x\tA\t0\n", "no-examples")])
def test_a_file_without_anything_to_learn_from_is_fatal(tmp_path: Path, content: str, code: str) -> None:
    report = _check(tmp_path, content)
    assert report.fatal
    assert code in report.codes
    assert report.findings[-1].line is None


def test_sequence_labelling_data_without_any_entity_is_fatal(tmp_path: Path) -> None:
    assert _check(tmp_path, "ab\ncd\n", "text_sequence_labeling").codes == {"no-examples": 1}


@pytest.mark.parametrize(
    ("lines", "line", "column", "code"),
    [
        ("\n", 7, 1, "blank-line"),
        (" \u3000 \r\n", 7, 1, "blank-line"),
        ("A sentence 0\tA\t1\n", 7, 1, "repeated-row"),
        ("A sentence 0\tA\t0\n", 7, 1, "contradiction"),
        ("a\0b\tA\t1\n", 7, 2, "control-character"),
        ("a\u2028b\tA\t1\n", 7, 2, "control-character"),
        ("ab\ufffd\tA\t1\n", 7, 3, "replacement-character"),
        ("x\tB\t1\n", 7, None, "few-examples"),
    ],
)
def test_a_doubtful_row_is_a_warning_with_its_place(
    tmp_path: Path, lines: str, line: int, column: int | None, code: str
) -> None:
    report = _check(tmp_path, _distinct("A", 6) + lines)
    assert _only(report) == (line, column, "warning", code)
    assert not report.fatal


def test_the_same_sentence_with_two_labels_is_a_warning(tmp_path: Path) -> None:
    report = _check(tmp_path, _distinct("A", 6) + _distinct("B", 5) + "A sentence 2\tB\t1\n")
    assert report.findings == [
        Finding(12, 1, "warning", "two-labels", "line 3 says something else about the same sentence")
    ]
    entities = "".join(f"<START:X>a<END>{each}\n" for each in range(6))
    report = _check(tmp_path, entities + "a<START:X>2<END>\n", "text_sequence_labeling")
    assert _only(report) == (7, 1, "warning", "two-labels")


def test_a_wrong_label_with_posneg_0_is_no_contradiction(tmp_path: Path) -> None:
    report = _check(tmp_path, _distinct("A", 6) + _distinct("B", 5) + "A sentence 2\tB\t0\n")
    assert report.findings == []


@pytest.mark.parametrize(
    ("label", "difference"),
    [
        ("label ", "spaces"),
        ("la bel", "spaces"),
        ("ｌａｂｅｌ", "width"),
        ("Label", "upper and lower case"),
        ("Ｌabel\u200b", "width, spaces, case"),
    ],
)
def test_labels_that_look_alike_are_a_warning(tmp_path: Path, label: str, difference: str) -> None:
    report = _check(tmp_path, _distinct("label", 6) + _distinct(label, 6))
    assert _only(report) == (7, None, "warning", "similar-labels")
    assert f"differs from 'label' only by {difference}" in report.findings[0].message


def test_a_label_that_another_outnumbers_is_a_warning(tmp_path: Path) -> None:
    report = _check(tmp_path, _distinct("A", 101) + _distinct("B", 5))
    assert report.findings == [
        Finding(102, None, "warning", "unbalanced", "the label 'B' has 5 examples, the most frequent label has 101")
    ]


def test_findings_are_bounded_and_all_of_them_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "MOST_FINDINGS", 3)
    report = _check(tmp_path, "x\n" * 50 + _distinct("A", 6))
    assert [each.line for each in report.findings] == [1, 2, 3]
    assert (report.errors, report.codes) == (50, {"columns": 50})


def test_what_is_remembered_is_bounded_and_the_report_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "MOST_SENTENCES", 6)
    monkeypatch.setattr(report_module, "MOST_LABELS", 2)
    report = _check(tmp_path, _distinct("A", 6) + _distinct("B", 6) + _distinct("C", 6) + "A sentence 0\tA\t1\n")
    assert report.codes == {"not-compared": 1, "many-labels": 1, "repeated-row": 1}
    assert set(report.labels) == {"A", "B"}


def test_a_report_becomes_json(tmp_path: Path) -> None:
    written = msgspec.json.decode(msgspec.json.encode(_check(tmp_path, "x\n")))
    assert written["fatal"] is True
    assert written["findings"][0]["code"] == "columns"


DATA = Path(os.environ.get("MLPKIT_TEST_DATA", ""))


@pytest.mark.skipif(
    "MLPKIT_TEST_DATA" not in os.environ, reason="MLPKIT_TEST_DATA does not name the folder of the data"
)
@pytest.mark.parametrize(
    ("name", "kind", "rows", "codes"),
    [
        ("classify-zh-kdconv/train.tsv", CLASSES, 10292, {}),
        ("classify-en-banking77/train.tsv", CLASSES, 10003, {"repeated-row": 4}),
        (
            "ner-zh-weibo/train.tsv",
            "text_sequence_labeling",
            1350,
            {"repeated-row": 80, "two-labels": 21, "replacement-character": 10},
        ),
    ],
)
def test_the_real_data_is_read_and_its_blemishes_are_found(
    name: str, kind: str, rows: int, codes: dict[str, int]
) -> None:
    report = check_rows(DATA / name, kind)
    assert (report.rows, report.codes, report.fatal) == (rows, codes, False)
    assert sum(1 for _ in read_rows(DATA / name, kind)) == rows
