"""What is wrong with a file of training data.

Errors stop a training: rows that cannot be read, certain mistakes such as a header or a spreadsheet's quotes, and files
without anything to learn from. Warnings do not: blank lines, control characters, repeated and contradicting rows,
labels that look alike, labels with few examples.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from mlpkit.errors import DataError
from mlpkit.formats.kind import BrokenRow, Facts, Kind, is_blank, kind_of, shown
from mlpkit.formats.rows import first_lines, read_lines, read_numbered_rows

MOST_FINDINGS = 1000
"""Findings with one code that a report keeps; the rest is only counted."""
MOST_SENTENCES = 1_000_000
"""Sentences that are remembered, to find repeated and contradicting ones; later ones are only compared with these."""
MOST_LABELS = 10_000
"""Labels that are counted."""
FEW = 5
"""A label with fewer examples gets a warning."""
_UNBALANCED = 20
"""So does one that the most frequent label outnumbers by this factor."""

# Allowed: tab, which separates columns, and the joiners and direction marks that some scripts and emoji need.
_OF_WHOLE_FILE = {"file-format", "encoding", "line-ends"}
"""Codes of errors that explain why no row can be read."""
_SENTENCE_MARKS = ".,;:!?。，；：！？、…·"
_QUOTES = "\"'`“”‘’「」『』《》"
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?")
_ODD = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\ufeff\ufffd\u2028\u2029]")


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong.

    `line` and `column` (in characters) count from 1; they are None if it is about more than one place.
    """

    line: int | None
    column: int | None
    severity: Literal["error", "warning"]
    code: str
    message: str


class LabelCount(msgspec.Struct):
    """The examples, counter-examples (posneg 0) and first line of a label."""

    positive: int = 0
    negative: int = 0
    line: int = 0


class DataReport(msgspec.Struct, frozen=True):
    """Everything that was found in a file.

    `lines` are all lines, `rows` those that can be read, `blank` those without text. `findings` holds, by line, the
    first `MOST_FINDINGS` of each code; `codes` counts all of them. `labels` is the class balance: rows for
    classification, entities or relations for the others. `fatal`: a training must not start with this file.
    `unknown_labels` counts the examples of labels that the training data does not have, if this is a file of test rows.
    """

    name: str
    kind: str
    lines: int
    rows: int
    blank: int
    errors: int
    warnings: int
    codes: dict[str, int]
    labels: dict[str, LabelCount]
    findings: list[Finding]
    fatal: bool
    unknown_labels: dict[str, int] | None = None

    def summary(self) -> str:
        """One sentence: the first error, or the numbers of rows and warnings."""
        first = next((finding for finding in self.findings if finding.severity == "error"), None)
        if first is None:
            return f"{self.name}: {self.rows} rows, {self.warnings} warnings"
        place = "" if first.line is None else f", line {first.line}, column {first.column}"
        further = "" if self.errors == 1 else f" (and {self.errors - 1} more error{'s' * (self.errors > 2)})"
        return f"{self.name}{place}: {first.message}{further}"

    def samples(self, most: int) -> list[Finding]:
        """At most `most` findings of each code, errors first."""
        seen: Counter[str] = Counter()
        shown_first: list[Finding] = []
        for finding in sorted(self.findings, key=lambda finding: finding.severity):
            seen[finding.code] += 1
            if seen[finding.code] <= most:
                shown_first.append(finding)
        return shown_first

    def raise_if_fatal(self) -> None:
        """Returns if the data can be trained on.

        Raises:
            DataError: with the summary.
        """
        if self.fatal:
            raise DataError(self.summary())


Report = DataReport
"""The former name of `DataReport`."""


def check_rows(path: Path, kind: str, *, name: str | None = None) -> DataReport:
    """All findings in a file, which is read once as a stream.

    Args:
        path: the file.
        kind: the algorithm's kind.
        name: what the report calls the file; its path by default.

    Raises:
        DataError: the file cannot be opened or read.
        ValueError: no kind has this name.
    """
    known = kind_of(kind)
    check = _Check(known)
    foreign = known.other_format(first_lines(path)) if known.other_format is not None else ""
    if foreign:
        check.find(1, 1, "error", "other-format", foreign)
    else:
        for number, line in read_lines(path, free=not known.checked):
            check.add(number, line)
        check.finish()
    return check.report(name or str(path), kind)


def check_test_rows(path: Path, kind: str, training: Path, *, name: str | None = None) -> DataReport:
    """All findings in test rows, compared with the training data.

    It finds sentences that are in both, and labels that no training row has. Test rows may have one label only. Both
    files are read once as a stream.

    Raises:
        DataError: a file cannot be opened or read, or a row of the training data is broken.
        ValueError: no kind has this name.
    """
    known = kind_of(kind)
    check = _Check(known, are_test_rows=True)
    foreign = known.other_format(first_lines(path)) if known.other_format is not None else ""
    if foreign:
        check.find(1, 1, "error", "other-format", foreign)
        return check.report(name or str(path), kind)
    for number, line in read_lines(path, free=not known.checked):
        check.add(number, line)
    unknown = {label: count.positive for label, count in check.labels.items() if count.positive}
    for number, row in read_numbered_rows(training, kind):
        facts = known.facts(row)
        for label in facts.labels if facts.positive else ():
            unknown.pop(label, None)
        # Each sentence is told once.
        here = check.sentences.pop(hash(facts.sentence), None)
        if here is not None:
            check.warn(here, 1, "in-both", f"the sentence is in the training data too (line {number})")
    for label, examples in unknown.items():
        message = f"the label {shown(label)} of {examples} test rows is in no training row"
        check.warn(check.labels[label].line, None, "unknown-label", message)
    check.finish()
    return msgspec.structs.replace(check.report(name or str(path), kind), unknown_labels=unknown)


class _Check:
    """What has been found so far."""

    def __init__(self, kind: Kind, *, are_test_rows: bool = False) -> None:
        self.kind = kind
        self.are_test_rows = are_test_rows
        self.sentences: dict[int, int] = {}
        self.lines = 0
        self.rows = 0
        self.blank = 0
        self.labels: dict[str, LabelCount] = {}
        self.counts: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self.heard: dict[int, int] = {}
        self.answered: dict[int, int] = {}
        self.first: tuple[int, list[str]] | None = None
        self.quotes = _Quotes()

    def add(self, number: int, line: str | BrokenRow) -> None:
        self.lines = number
        try:
            if isinstance(line, BrokenRow):
                raise line
            odd = _ODD.search(line)
            if odd:
                self.warn(number, odd.start() + 1, *_odd(odd[0]))
            if is_blank(line):
                self.blank += 1
                self.warn(number, 1, "blank-line", "the line is empty; it is skipped")
                return
            if self.first is None:
                self.first = (number, line.split("\t"))
                if self.is_header(number, line.split("\t")):
                    return
            self.check_line_ends(line)
            row = self.kind.read(line)
            for doubt in self.kind.doubts(line):
                self.warn(number, doubt.column, doubt.code, doubt.message)
        except BrokenRow as error:
            self.find(number, error.column, "error", error.code, str(error))
            return
        self.rows += 1
        facts = self.kind.facts(row)
        if self.are_test_rows and len(self.sentences) < MOST_SENTENCES:
            self.sentences.setdefault(hash(facts.sentence), number)
        if self.kind.headers:
            self.check_quotes(number, line)
        self.count(number, facts)
        self.compare(number, facts)

    def warn(self, line: int | None, column: int | None, code: str, message: str) -> None:
        self.find(line, column, "warning", code, message)

    def find(
        self, line: int | None, column: int | None, severity: Literal["error", "warning"], code: str, message: str
    ) -> None:
        self.counts[severity] += 1
        self.codes[code] += 1
        if self.codes[code] <= MOST_FINDINGS:
            self.findings.append(Finding(line, column, severity, code, message))

    def is_header(self, number: int, columns: list[str]) -> bool:
        """Whether the first row is certainly a header; reports it."""
        words = [column.strip().strip("\"'").lower() for column in columns]
        if not self.kind.headers or not self.kind.headers.issuperset(words):
            return False
        if len(words) == 1 and words[0] not in ("sentence", "sentences"):
            self.warn(number, 1, "header", f"{shown(columns[0])} looks like a header; files have no header")
            return False
        said = ", ".join(columns)
        self.find(number, 1, "error", "header", f"a header ({said}): remove this line, files have no header")
        return True

    def check_line_ends(self, line: str) -> None:
        """Raises BrokenRow if carriage returns separate several rows in a line."""
        if "\r" not in line or not self.kind.headers:
            return
        parts = [part for part in line.split("\r") if part]
        try:
            for part in parts:
                self.kind.read(part)
        except BrokenRow:
            return
        if len(parts) > 2 or "\t" in line:
            message = "a carriage return alone (CR, as on old Macs) ends a row: save the file with LF or CRLF"
            raise BrokenRow(line.index("\r") + 1, "line-ends", message)

    def check_quotes(self, number: int, line: str) -> None:
        """Looks for a spreadsheet's quotes: `"say ""hi"", please"` for `say "hi", please`."""
        columns = line.split("\t")
        for index, column in enumerate(columns):
            if not _is_quoted(column):
                self.quotes.commas_outside |= "," in column
                continue
            position = len("\t".join(columns[:index])) + (index > 0) + 1
            if '""' in column[1:-1]:
                message = f"{shown(column)} is quoted as a spreadsheet does: save the file without quotes"
                self.find(number, position, "error", "quotes", message)
                self.quotes.doubled = True
            elif not self.kind.classes or index != 1:
                self.quotes.columns += 1
                self.quotes.first = self.quotes.first or (number, position, column)
                self.quotes.all_have_commas &= "," in column

    def count(self, number: int, facts: Facts) -> None:
        for label in facts.labels:
            known = self.labels.get(label)
            if known is None:
                if len(self.labels) == MOST_LABELS:
                    if not self.codes["many-labels"]:
                        message = f"more than {MOST_LABELS} labels: is the order of the columns right?"
                        self.warn(number, None, "many-labels", message)
                    continue
                known = self.labels[label] = LabelCount(line=number)
            if facts.positive:
                known.positive += 1
            else:
                known.negative += 1

    def compare(self, number: int, facts: Facts) -> None:
        # Hashes in place of texts, and a line with its posneg in one number: a file may have many rows.
        sentence = hash(facts.sentence)
        whole = hash((facts.sentence, facts.said))
        earlier = self.heard.get(whole)
        if earlier is not None:
            line, positive = divmod(earlier, 2)
            if positive == facts.positive:
                self.warn(number, 1, "repeated-row", f"the row of line {line} again")
            else:
                self.warn(number, 1, "contradiction", _contradiction(line, facts.said))
            return
        if self.kind.single and facts.positive and sentence in self.answered:
            message = f"line {self.answered[sentence]} says something else about the same sentence"
            self.warn(number, 1, "two-labels", message)
        if len(self.heard) < MOST_SENTENCES:
            self.heard[whole] = number * 2 + facts.positive
            if self.kind.single and facts.positive:
                self.answered.setdefault(sentence, number)
        elif not self.codes["not-compared"]:
            message = f"rows from here on are only compared with the first {MOST_SENTENCES:,} different ones"
            self.warn(number, None, "not-compared", message)

    def finish(self) -> None:
        """What only the whole file shows."""
        examples = [label for label, count in self.labels.items() if count.positive]
        if not self.rows and not self.codes.keys() & _OF_WHOLE_FILE:
            self.find(None, None, "error", "no-rows", f"no row can be read; the columns are {self.kind.columns}")
        elif self.rows and self.kind.labelled and not examples:
            self.find(None, None, "error", "no-examples", "no row is an example of any label")
        elif self.kind.classes and len(examples) == 1 and self.are_test_rows:
            message = f"all test rows have the one label {shown(examples[0])}: the figures say nothing about others"
            self.warn(None, None, "one-class", message)
        elif self.kind.classes and len(examples) == 1 and not self.counts["error"] and not self.has_negatives():
            message = f"all rows have the one label {shown(examples[0])}: a classification needs two classes"
            self.find(None, None, "error", "one-class", message)
        self.find_quotes()
        self.find_unknown_header()
        self.find_alike()
        if not self.are_test_rows:
            self.find_unbalanced()
        self.findings.sort(key=lambda finding: (finding.line is None, finding.line or 0))

    def has_negatives(self) -> bool:
        return any(count.negative for count in self.labels.values())

    def find_quotes(self) -> None:
        quotes = self.quotes
        if self.kind.classes:
            for label, count in self.labels.items():
                if _is_quoted(label):
                    message = f"the label {shown(label)} is quoted as a spreadsheet does: save the file without quotes"
                    self.find(count.line, None, "error", "quotes", message)
                    quotes.doubled = True
        if quotes.first is None:
            return
        line, column, text = quotes.first
        message = f"{shown(text)} is in quotes, as spreadsheets write it ({quotes.columns} of the columns)"
        if quotes.doubled:
            self.find(line, column, "error", "quotes", message)
        elif quotes.all_have_commas and not quotes.commas_outside:
            self.warn(line, column, "quotes", message)

    def find_unknown_header(self) -> None:
        """Warns if the first row looks like a header with unusual names."""
        if self.first is None or not self.kind.classes or self.codes["header"] or len(self.labels) < 3:
            return
        number, columns = self.first
        label = columns[1] if len(columns) > 1 else ""
        known = self.labels.get(label)
        others = min(count.positive + count.negative for name, count in self.labels.items() if name != label)
        alone = known is not None and known.positive + known.negative == 1 and others > 1
        if alone and columns[0].isidentifier() and label.isidentifier() and columns[0].isascii() and label.isascii():
            self.warn(number, 1, "header", f"the first row looks like a header: no other row has the label {label!r}")

    def find_alike(self) -> None:
        folded: dict[str, str] = {}
        for label, count in self.labels.items():
            twin = folded.setdefault(_folded(label), label)
            if twin == label:
                continue
            difference, certain = _difference(label, twin)
            message = f"the label {shown(label)} differs from {shown(twin)} only by {difference}"
            self.find(count.line, None, "error" if certain else "warning", "similar-labels", message)

    def find_unbalanced(self) -> None:
        most = max((count.positive for count in self.labels.values()), default=0)
        for label, count in self.labels.items():
            examples = f"the label {shown(label)} has {count.positive} example{'s' * (count.positive != 1)}"
            if count.positive < FEW:
                self.warn(count.line, None, "few-examples", examples)
            elif count.positive * _UNBALANCED < most:
                self.warn(count.line, None, "unbalanced", f"{examples}, the most frequent label has {most}")

    def report(self, name: str, kind: str) -> DataReport:
        errors = self.counts["error"]
        return DataReport(
            name=name,
            kind=kind,
            lines=self.lines,
            rows=self.rows,
            blank=self.blank,
            errors=errors,
            warnings=self.counts["warning"],
            codes=dict(self.codes.most_common()),
            labels=self.labels,
            findings=self.findings,
            fatal=errors > 0,
        )


@dataclass
class _Quotes:
    """What tells a spreadsheet's quotes from those of the text."""

    doubled: bool = False
    columns: int = 0
    first: tuple[int, int, str] | None = None
    all_have_commas: bool = True
    commas_outside: bool = False


def _is_quoted(column: str) -> bool:
    """Whether a column is in quotes and every quote inside is doubled."""
    return len(column) > 1 and column[0] == column[-1] == '"' and '"' not in column[1:-1].replace('""', "")


def _contradiction(line: int, label: str) -> str:
    return f"line {line} says the opposite about the same sentence and the label {shown(label)}"


def _odd(character: str) -> tuple[str, str]:
    if character == "\ufffd":
        return "replacement-character", "U+FFFD stands for text that was lost when it was decoded"
    name = " (a carriage return without a line feed)" if character == "\r" else ""
    return "control-character", f"the control character U+{ord(character):04X}{name}"


def _folded(label: str) -> str:
    """The label without what people write differently by mistake."""
    narrow = _narrow(label)
    bare = narrow.strip(_QUOTES)
    if _NUMBER.fullmatch(bare):
        return f"number {float(bare)}"
    bare = bare.strip(_SENTENCE_MARKS)
    if not any(character.isdigit() for character in bare):
        bare = bare.replace("-", "").replace("_", "")
    return bare or narrow


def _narrow(label: str) -> str:
    """The label in lower case and half width, without spaces."""
    text = unicodedata.normalize("NFKC", label).casefold()
    return "".join(char for char in text if not char.isspace() and unicodedata.category(char) != "Cf")


def _difference(label: str, twin: str) -> tuple[str, bool]:
    """What makes two labels different, and whether that is certainly a mistake."""
    labels = (label, twin)

    def same(change: Callable[[str], str]) -> bool:
        return change(label) == change(twin)

    if same(lambda text: "".join(text.split())):
        return "spaces", False
    if same(lambda text: unicodedata.normalize("NFKC", text)):
        return "width", False
    if same(str.casefold):
        return "upper and lower case", False
    if same(lambda text: text.strip(_QUOTES)):
        return "quotes", True
    if all(_NUMBER.fullmatch(text) for text in labels):
        # 1 and 1.0 come from a column that became decimal; 1 and 01 may be codes, 3.1 and 3.10 versions.
        return "the form of the number", same(lambda text: text.partition(".")[0]) and "." not in min(labels, key=len)
    if not same(_narrow):
        return "punctuation", False
    return "width, spaces, case or invisible characters", False
