"""What is wrong with a file of training data: every broken row, and what makes a model worse than it could be.

Errors stop a training: rows that cannot be read, and files without anything to learn from. Warnings do not: blank
lines, control characters, repeated and contradicting rows, labels that look alike, labels with few examples.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec

from mlpkit.errors import DataError
from mlpkit.formats.kind import BrokenRow, Facts, Kind, is_blank, shown
from mlpkit.formats.kinds import kind_of
from mlpkit.formats.rows import read_lines

MOST_FINDINGS = 1000
"""Findings of one code that a report keeps; the rest is only counted."""
MOST_SENTENCES = 1_000_000
"""Sentences that are remembered, to find repeated and contradicting ones; later ones are only compared with these."""
MOST_LABELS = 10_000
"""Labels that are counted."""
FEW = 5
"""A label with fewer examples gets a warning."""
UNBALANCED = 20
"""So does one that the most frequent label outnumbers by this factor."""

# Allowed: tab, which separates columns, and the joiners and direction marks that some scripts and emoji need.
_ODD = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\ufeff\ufffd\u2028\u2029]")


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong. `line` and `column` (characters) count from 1; None where it is about more than that."""

    line: int | None
    column: int | None
    severity: Literal["error", "warning"]
    code: str
    message: str


class LabelCount(msgspec.Struct):
    """How many examples of a label there are, how many that are none (posneg 0), and the first line that names it."""

    positive: int = 0
    negative: int = 0
    line: int = 0


class DataReport(msgspec.Struct, frozen=True):
    """Everything that was found in a file.

    `lines` are all lines, `rows` those that can be read, `blank` those without text. `findings` holds, by line, the
    first `MOST_FINDINGS` of each code; `codes` counts all of them. `labels` is the class balance: rows for
    classification, entities or relations for the others. `fatal`: a training must not start with this file.
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

    def summary(self) -> str:
        """One sentence: the first error and how many there are, or how many rows and warnings."""
        first = next((each for each in self.findings if each.severity == "error"), None)
        if first is None:
            return f"{self.name}: {self.rows} rows, {self.warnings} warnings"
        place = "" if first.line is None else f", line {first.line}, column {first.column}"
        further = "" if self.errors == 1 else f" (and {self.errors - 1} more error{'s' * (self.errors > 2)})"
        return f"{self.name}{place}: {first.message}{further}"

    def raise_if_fatal(self) -> None:
        """Nothing, for data that can be trained on.

        Raises:
            DataError: with the summary.
        """
        if self.fatal:
            raise DataError(self.summary())


Report = DataReport
"""The former name of `DataReport`."""


def check_rows(path: Path, kind: str, *, name: str | None = None) -> DataReport:
    """All findings in a file, read once as a stream; what is kept of it is bounded.

    Args:
        path: the file.
        kind: the algorithm's kind.
        name: what the report calls the file; its path by default.

    Raises:
        DataError: the file cannot be opened or read.
        ValueError: there is no such kind.
    """
    check = _Check(kind_of(kind))
    for number, line in read_lines(path):
        check.add(number, line)
    check.finish()
    return check.report(name or str(path), kind)


class _Check:
    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.lines = self.rows = self.blank = 0
        self.labels: dict[str, LabelCount] = {}
        self.counts: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self.heard: dict[int, int] = {}
        self.answered: dict[int, int] = {}

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
            row = self.kind.read(line)
        except BrokenRow as error:
            self.find(number, error.column, "error", error.code, str(error))
            return
        self.rows += 1
        facts = self.kind.facts(row)
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

    def count(self, number: int, facts: Facts) -> None:
        for label in facts.labels:
            known = self.labels.get(label)
            if known is None:
                if len(self.labels) == MOST_LABELS:
                    if not self.codes["many-labels"]:
                        self.warn(
                            number,
                            None,
                            "many-labels",
                            f"more than {MOST_LABELS} labels: is the order of the columns right?",
                        )
                    continue
                known = self.labels[label] = LabelCount(line=number)
            if facts.positive:
                known.positive += 1
            else:
                known.negative += 1

    def compare(self, number: int, facts: Facts) -> None:
        # Hashes in place of texts, and a line with its posneg in one number: a file may have many rows.
        sentence, whole = hash(facts.sentence), hash((facts.sentence, facts.said))
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
        if not self.rows:
            self.find(None, None, "error", "no-rows", f"no row can be read; the columns are {self.kind.columns}")
        elif self.kind.labelled and not any(each.positive for each in self.labels.values()):
            self.find(None, None, "error", "no-examples", "no row is an example of any label")
        self.find_alike()
        self.find_unbalanced()
        self.findings.sort(key=lambda each: (each.line is None, each.line or 0))

    def find_alike(self) -> None:
        folded: dict[str, str] = {}
        for label, count in self.labels.items():
            twin = folded.setdefault(_folded(label), label)
            if twin != label:
                message = f"the label {shown(label)} differs from {shown(twin)} only by {_difference(label, twin)}"
                self.warn(count.line, None, "similar-labels", message)

    def find_unbalanced(self) -> None:
        most = max((each.positive for each in self.labels.values()), default=0)
        for label, count in self.labels.items():
            examples = f"the label {shown(label)} has {count.positive} example{'s' * (count.positive != 1)}"
            if count.positive < FEW:
                self.warn(count.line, None, "few-examples", examples)
            elif count.positive * UNBALANCED < most:
                self.warn(count.line, None, "unbalanced", f"{examples}, the most frequent label has {most}")

    def report(self, name: str, kind: str) -> DataReport:
        errors, warnings = self.counts["error"], self.counts["warning"]
        codes = dict(self.codes.most_common())
        return DataReport(
            name,
            kind,
            self.lines,
            self.rows,
            self.blank,
            errors,
            warnings,
            codes,
            self.labels,
            self.findings,
            errors > 0,
        )


def _contradiction(line: int, label: str) -> str:
    return f"line {line} says the opposite about the same sentence and the label {shown(label)}"


def _odd(character: str) -> tuple[str, str]:
    if character == "\ufffd":
        return "replacement-character", "U+FFFD stands for text that was lost when it was decoded"
    return "control-character", f"the control character U+{ord(character):04X}"


def _folded(label: str) -> str:
    narrow = unicodedata.normalize("NFKC", label).casefold()
    return "".join(each for each in narrow if not each.isspace() and unicodedata.category(each) != "Cf")


def _difference(label: str, twin: str) -> str:
    if "".join(label.split()) == "".join(twin.split()):
        return "spaces"
    if unicodedata.normalize("NFKC", label) == unicodedata.normalize("NFKC", twin):
        return "width"
    return (
        "upper and lower case" if label.casefold() == twin.casefold() else "width, spaces, case or invisible characters"
    )
