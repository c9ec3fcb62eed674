"""The checks of training data: one test a defect, and the real data where it is given."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import re
import tarfile
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from mlpkit.errors import DataError
from mlpkit.formats import DataReport, Finding, LabelCount, check_rows, read_rows
from mlpkit.formats import report as report_module
from tests.corpora import corpora_folder

CLASSES = "text_classification"
GOOD = "".join(f"句子{number}\t{label}\t1\n" for number in range(10) for label in "AB")


def _check(folder: Path, content: str | bytes, kind: str = CLASSES) -> DataReport:
    path = folder / "data.tsv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return check_rows(path, kind, name="data.tsv")


def _distinct(label: str, count: int) -> str:
    return "".join(f"{label} sentence {number}\t{label}\t1\n" for number in range(count))


def _only(report: DataReport) -> tuple[int | None, int | None, str, str]:
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
    report = _check(tmp_path, _distinct("A", 6) + lines + _distinct("C", 6))
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


ENTITIES = "text_sequence_labeling"
CLEAN = "".join(f"{label} sentence {number}\t{label}\t1\n" for label in "AB" for number in range(10))
MARKED = "".join(f"<START:X>a<END>{number}\n" for number in range(6))


def _error(report: DataReport) -> Finding:
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert len(errors) == 1, errors
    assert report.fatal
    return errors[0]


@pytest.mark.parametrize(
    ("kind", "header", "rest"),
    [
        (CLASSES, "sentence\tlabel", CLEAN),
        (CLASSES, "Text\tLabel\tPosneg", CLEAN),
        (CLASSES, "id\ttext\tlabel", CLEAN),
        (CLASSES, "句子\t标签", CLEAN),
        (CLASSES, '"sentence"\t"label"', CLEAN),
        (ENTITIES, "sentence", MARKED),
        (ENTITIES, "text\tlabels", MARKED),
        ("text_cluster", "sentence", "a\nb\n"),
        ("text_generation", "source\ttarget", "a\tb\n"),
        ("relation_extraction", "sentence\trelations", '{"sentence": "a", "relations": []}\n'),
    ],
)
def test_a_header_is_an_error_and_teaches_nothing(tmp_path: Path, kind: str, header: str, rest: str) -> None:
    report = _check(tmp_path, f"\n{header}\n{rest}", kind)
    found = next(finding for finding in report.findings if finding.severity == "error")
    assert (found.line, found.column, found.code) == (2, 1, "header")
    assert report.rows == len(rest.splitlines())
    assert "label" not in report.labels


def test_words_of_a_header_below_the_first_row_are_data(tmp_path: Path) -> None:
    assert "header" not in _check(tmp_path, CLEAN + "text\tlabel\t1\nsentence\ttarget\t1\n").codes


def test_a_first_row_that_may_be_a_header_is_a_warning(tmp_path: Path) -> None:
    report = _check(tmp_path, "review\tsentiment\t1\n" + CLEAN)
    assert report.codes == {"header": 1, "few-examples": 1}
    assert not report.fatal
    assert _check(tmp_path, "text\n" + MARKED, ENTITIES).codes == {"header": 1}


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ('"say ""hi"" to them"\tA\t1', 1),
        ('"a ""b"""\tA', 1),
    ],
)
def test_the_quotes_of_a_spreadsheet_are_an_error(tmp_path: Path, line: str, column: int) -> None:
    found = _error(_check(tmp_path, f"{CLEAN}{line}\n"))
    assert (found.line, found.column, found.code) == (21, column, "quotes")


def test_a_quoted_text_beside_certain_quotes_is_an_error_too(tmp_path: Path) -> None:
    report = _check(tmp_path, '"no, really"\tA\t1\n' + CLEAN + '"say ""hi"""\tA\t1\n')
    assert [(finding.line, finding.code) for finding in report.findings] == [(1, "quotes"), (22, "quotes")]


def test_texts_in_quotes_are_a_warning_if_only_those_with_a_comma_are(tmp_path: Path) -> None:
    report = _check(tmp_path, '"no, really"\tA\t1\n' + CLEAN)
    assert _only(report) == (1, 1, "warning", "quotes")
    assert _check(tmp_path, '"no, really"\tA\t1\nyes, really\tA\t1\n' + CLEAN).findings == []
    assert _check(tmp_path, '"Hello!"\tA\t1\n"no, really"\tA\t1\n' + CLEAN).findings == []
    assert _check(tmp_path, 'he said "hi", "no" and "yes"\tA\t1\n' + CLEAN).findings == []


def test_a_label_in_quotes_is_an_error(tmp_path: Path) -> None:
    report = _check(tmp_path, _distinct('"A"', 6) + _distinct("B", 6))
    assert (_error(report).line, _error(report).code) == (1, "quotes")


@pytest.mark.parametrize(
    ("label", "twin", "difference", "severity"),
    [
        ("'good'", "good", "quotes", "error"),
        ("“好评”", "好评", "quotes", "error"),
        ("1.0", "1", "the form of the number", "error"),
        ("01", "1", "the form of the number", "warning"),
        ("2.50", "2.5", "the form of the number", "warning"),
        ("好评。", "好评", "punctuation", "warning"),
        ("late-delivery", "late_delivery", "punctuation", "warning"),
    ],
)
def test_labels_that_differ_by_quotes_punctuation_or_number_form(
    tmp_path: Path, label: str, twin: str, difference: str, severity: str
) -> None:
    report = _check(tmp_path, _distinct(twin, 6) + _distinct(label, 6))
    assert _only(report) == (7, None, severity, "similar-labels")
    assert f"only by {difference}" in report.findings[0].message


@pytest.mark.parametrize("labels", [("1", "-1"), ("C", "C++"), ("1-2", "12"), ("1.5", "15"), ("?", "!"), ("+", "-")])
def test_labels_that_only_resemble_each_other_are_different(tmp_path: Path, labels: tuple[str, str]) -> None:
    assert _check(tmp_path, "".join(_distinct(label, 6) for label in labels)).findings == []


def test_a_classification_with_only_one_class_is_an_error(tmp_path: Path) -> None:
    assert _error(_check(tmp_path, _distinct("A", 6))).code == "one-class"
    assert _check(tmp_path, _distinct("A", 6) + "x\tA\t0\n").findings == []
    assert _check(tmp_path, MARKED, ENTITIES).findings == []


def test_spaces_inside_tags_are_counted_and_are_not_part_of_the_entity(tmp_path: Path) -> None:
    report = _check(tmp_path, "Hi <START:PER> Ann <END> and <START:PER>Bo<END>\n" + MARKED, ENTITIES)
    assert report.codes["spaces-in-tag"] == 1
    assert not report.fatal
    (row,) = list(read_rows(tmp_path / "data.tsv", ENTITIES))[:1]
    assert [row.sentence[span.start : span.end] for span in row.spans] == ["Ann", "Bo"]


@pytest.mark.parametrize(
    ("content", "name", "command"),
    [
        ("李 B-PER\n华 I-PER\n住 O\n\n杭 B-LOC\n州 I-LOC\n", "BIO", "bio"),
        ("李\tB-PER\n华\tE-PER\n住\tO\n\n杭\tS-LOC\n", "BIOES", "bioes"),
        ("李 B-PER\n华 L-PER\n住 O\n\n杭 U-LOC\n", "BILOU", "bilou"),
        ("李 B-PER\n小 M-PER\n华 E-PER\n住 O\n", "BMES", "bmes"),
        ("-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n", "CoNLL", "conll"),
        ("EU NNP B-NP I-ORG\nrejects VBZ B-VP O\n", "CoNLL", "conll"),
        ('{"text": "李华住", "label": [[0, 2, "PER"]]}\n', "doccano", "doccano"),
        ('{"id": 1, "text": "李华住", "entities": [], "relations": []}\n', "doccano", "doccano"),
    ],
)
def test_a_file_in_another_format_is_one_error_that_names_the_command(
    tmp_path: Path, content: str, name: str, command: str
) -> None:
    report = _check(tmp_path, content, ENTITIES)
    assert _only(report) == (1, 1, "error", "other-format")
    assert f"in the {name}" in report.findings[0].message
    assert f"mlpkit data convert FILE train.txt --from {command}`" in report.findings[0].message


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('{"text": "好", "label": ["A"]}\n{"text": "坏", "label": ["B"]}\n', "JSON lines"),
        ("__label__A fine day\n__label__B bad day\n", "fastText"),
        ("a day,A\nbad day,B\n", "comma-separated"),
        ("a day;A\nbad day;B\n", "semicolon-separated"),
    ],
)
def test_a_classification_file_in_another_format_is_one_error(tmp_path: Path, content: str, name: str) -> None:
    report = _check(tmp_path, content)
    assert _only(report) == (1, 1, "error", "other-format")
    assert name in report.findings[0].message


@pytest.mark.parametrize("line", ["he wore a size O", "{curly} words", "line with B-PER", "a,b,c"])
def test_a_sentence_that_resembles_another_format_is_a_sentence(tmp_path: Path, line: str) -> None:
    assert "other-format" not in _check(tmp_path, f"{line}\n" * 3 + MARKED, ENTITIES).codes


ROWS = CLEAN.encode()


def _archive(content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("data.tsv")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "code", "name"),
    [
        (CLEAN.encode("utf-16"), "encoding", "UTF-16"),
        (CLEAN.encode("utf-16-le"), "encoding", "UTF-16LE without a byte order mark"),
        (CLEAN.encode("utf-16-be"), "encoding", "UTF-16BE without a byte order mark"),
        (CLEAN.encode("utf-32"), "encoding", "UTF-32"),
        (gzip.compress(ROWS, mtime=0), "file-format", "gzip"),
        (bz2.compress(ROWS), "file-format", "bzip2"),
        (lzma.compress(ROWS), "file-format", "xz"),
        (b"PK\x03\x04\x14\0[Content_Types].xml", "file-format", "Excel workbook (.xlsx)"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "file-format", "Excel workbook (.xls)"),
        (ROWS.replace(b"\n", b"\r"), "line-ends", "carriage return alone"),
        (b"Rar!\x1a\x07\0\xcf\x90s\0\0\r", "file-format", "a RAR archive"),
        (pickle.dumps(["a", "b"], protocol=4), "file-format", "a pickle"),
        (_archive(ROWS), "file-format", "a tar archive"),
        (bytes(5000), "file-format", "not text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "file-format", "git lfs pull"),
        (b'[{"sentence": "a", "label": "A"},\n{"sentence": "b", "label": "B"}]', "file-format", "one JSON value"),
        (b'\xef\xbb\xbf{\n\t"data": [\n\t\t{"text": "a"}\n]}\n', "file-format", "one JSON value"),
        (b"<!DOCTYPE html>\n<html>\n<p>Not Found\n", "file-format", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "file-format", "the file is XML"),
    ],
)
def test_a_file_that_is_not_utf8_text_is_one_error_that_names_what_it_is(
    tmp_path: Path, content: bytes, code: str, name: str
) -> None:
    for kind in (CLASSES, ENTITIES):
        report = _check(tmp_path, content, kind)
        found = _error(report)
        assert (found.line, found.code, len(report.findings)) == (1, code, 1)
        assert name in found.message
        with pytest.raises(DataError, match=re.escape(name)):
            list(read_rows(tmp_path / "data.tsv", kind))


@pytest.mark.parametrize("text", ["<html><p>a</p>", '[{"a": 1}]', "<?xml version='1.0'?><a/>", "%PDF is a format"])
def test_a_text_that_resembles_a_document_is_a_text(tmp_path: Path, text: str) -> None:
    assert _check(tmp_path, f"{text}\tA\t1\n{CLEAN}").findings == []
    assert "file-format" not in _check(tmp_path, f"{text}\n{text} again\n", "text_cluster").codes


@pytest.mark.parametrize("text", ['[{"a": 1}]', "<html>\n<p>a</p>", "a\0b\0c"])
def test_a_kind_that_prescribes_nothing_may_have_a_document(tmp_path: Path, text: str) -> None:
    assert "file-format" not in _check(tmp_path, text, "text_custom").codes
    assert list(read_rows(tmp_path / "data.tsv", "text_custom"))
    assert "file-format" in _check(tmp_path, text, "text_cluster").codes


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (b"a\x97b\tA\t1", "cp1252, here '—'"),
        ("un café\tA\t1".encode("cp1252"), "cp1252, here 'é'"),
        ("好看\tA\t1".encode("gb18030"), "GB18030"),
    ],
)
def test_bytes_of_another_encoding_are_an_error_that_names_it(tmp_path: Path, line: bytes, name: str) -> None:
    found = _error(_check(tmp_path, ROWS + line + b"\n"))
    assert (found.line, found.code) == (21, "encoding")
    assert name in found.message


def test_rows_that_a_carriage_return_ends_are_found(tmp_path: Path) -> None:
    found = _error(_check(tmp_path, CLEAN + "a\tA\t1\rb\tB\t1\n"))
    assert (found.line, found.column, found.code) == (21, 6, "line-ends")
    report = _check(tmp_path, CLEAN + "a\rb\tA\t1\n")
    assert _only(report) == (21, 2, "warning", "control-character")
    assert "carriage return" in report.findings[0].message


def test_a_large_file_is_checked_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.tsv"
    with path.open("w", encoding="utf-8") as file:
        for number in range(300):
            file.write(f"{number}{'x' * 200_000}\t{'AB'[number % 2]}\t1\n")
    tracemalloc.start()
    try:
        assert check_rows(path, CLASSES).findings == []
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_samples_show_a_few_findings_of_each_code_errors_first(tmp_path: Path) -> None:
    report = _check(tmp_path, "\n" * 8 + CLEAN + "x\n" * 8)
    assert [finding.code for finding in report.samples(2)] == ["columns", "columns", "blank-line", "blank-line"]


@pytest.mark.parametrize(
    ("name", "kind", "rows", "codes"),
    [
        ("classify-zh-kdconv/train.tsv", CLASSES, 10292, {}),
        ("classify-en-banking77/train.tsv", CLASSES, 10003, {"repeated-row": 4}),
        ("classify-zh-kdconv/test.tsv", CLASSES, 10423, {}),
        ("ner-en-snips/train.tsv", ENTITIES, 900, {"repeated-row": 3}),
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
    file = corpora_folder() / name
    report = check_rows(file, kind)
    assert (report.rows, report.codes, report.fatal) == (rows, codes, False)
    assert sum(1 for _ in read_rows(file, kind)) == rows
