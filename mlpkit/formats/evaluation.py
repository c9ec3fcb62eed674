"""How good answers are: the measures of the kinds, and their report.

A measure sees one test row after the other and keeps only counts and the worst errors, so its memory does not grow
with the number of rows. All shares are from 0 to 1; scores of answers are from 0 to 100.

Precision, recall, F1 and their averages are those of scikit-learn's `classification_report`, and for entities those of
seqeval: an entity is right if both borders and its label are right. chrF: Popović, WMT 2015, with the counts of all
rows added up as sacreBLEU does. Adjusted Rand index: Hubert and Arabie, Journal of Classification 1985.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

_MOST_ERRORS = 20
_MOST_CONFUSIONS = 10
MOST_LABELS = 10_000
"""Labels that are counted one by one; further ones are counted together."""
_MOST_PAIRS = 100_000
"""Pairs of a wanted and an answered label that are counted."""
_THRESHOLDS = range(50, 100, 5)
_OTHER_LABELS = "(other labels)"
_ADVICE = "These errors are often wrong labels in the test rows: look at them first."
_LONGEST_TEXT = 200
_STEP = 1.02
"""Durations are counted in classes, each 2 % longer than the one before."""


class Figures(msgspec.Struct, frozen=True, omit_defaults=True):
    """Precision, recall and F1, from 0 to 1.

    `support` counts what was wanted.
    """

    precision: float
    recall: float
    f1: float
    support: int | None = None


class Confusion(msgspec.Struct, frozen=True):
    """How often `got` was answered for `wanted`; None is nothing."""

    wanted: str | None
    got: str | None
    count: int


class Threshold(msgspec.Struct, frozen=True):
    """How many answers reach a score, and how many are right."""

    threshold: int
    answered: int
    right: int


class Tenth(msgspec.Struct, frozen=True):
    """Answers in a tenth of the scores.

    `score` is their mean score, `right` the share of right ones.
    """

    begin: int
    end: int
    answers: int
    score: float
    right: float


class WrongAnswer(msgspec.Struct, frozen=True):
    """A wrong answer; `line` counts from 1 in the file."""

    line: int
    sentence: str
    wanted: str | None
    got: str | None
    score: float | None


class SpanErrors(msgspec.Struct, frozen=True):
    """How entities were right or wrong."""

    right: int
    missed: int
    invented: int
    wrong_type: int
    wrong_border: int


class FailedRows(msgspec.Struct, frozen=True):
    """Rows that `predict` did not answer; they count as wrong."""

    rows: int = 0
    line: int | None = None
    message: str = ""


class Gate(msgspec.Struct, frozen=True):
    """The F1 that a model must reach, and whether it did."""

    min_f1: float
    f1: float | None
    passed: bool


class EvaluationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an evaluation found, as `evaluation.json` has it.

    Shares are from 0 to 1, scores from 0 to 100. What a kind does not have is None or empty. `error` says why there is
    no result. `f1` is the figure that `min_f1` looks at: the average that `average` names. `negatives` are test rows
    that only say what is wrong (posneg 0), which are left out. `unknown_labels` are labels of test rows that no
    training row has, `in_both` counts sentences of the test rows that are training rows too; both are None if that is
    not known.
    """

    model_id: str = ""
    algorithm: str = ""
    kind: str = ""
    created: float = 0.0
    source: str = ""
    seed: int | None = None
    rows: int = 0
    error: str = ""
    f1: float | None = None
    average: Literal["micro", "macro"] | None = None
    accuracy: float | None = None
    labels: dict[str, Figures] = {}
    micro: Figures | None = None
    macro: Figures | None = None
    weighted: Figures | None = None
    confusions: list[Confusion] = []
    spans: SpanErrors | None = None
    thresholds: list[Threshold] = []
    calibration: list[Tenth] = []
    exact_match: float | None = None
    chrf: float | None = None
    purity: float | None = None
    adjusted_rand: float | None = None
    metrics: dict[str, Any] = {}
    errors: list[WrongAnswer] = []
    advice: str = ""
    milliseconds: dict[str, float] = {}
    seconds: dict[str, float] = {}
    failed: FailedRows = FailedRows()
    negatives: int = 0
    unknown_labels: dict[str, int] | None = None
    in_both: int | None = None
    gate: Gate | None = None

    def summary(self) -> dict[str, Any]:
        """The most important figures, without those that do not exist."""
        averages = {"micro_f1": self.micro, "macro_f1": self.macro, "weighted_f1": self.weighted}
        figures: dict[str, Any] = {
            "error": self.error or None,
            "f1": self.f1,
            "accuracy": self.accuracy,
            **{name: figures.f1 for name, figures in averages.items() if figures is not None},
            "exact_match": self.exact_match,
            "chrf": self.chrf,
            "purity": self.purity,
            "adjusted_rand": self.adjusted_rand,
            **self.metrics,
            "failed": self.failed.rows or None,
            "min_f1": None if self.gate is None else self.gate.min_f1,
        }
        known = {name: value for name, value in figures.items() if value is not None}
        return {"rows": self.rows, "source": self.source, **known}


class Measure(Protocol):
    """Compares answers with test rows.

    Answers are decoded JSON, checked against the kind.
    """

    def add(self, line: int, row: Any, answer: Any) -> bool | None:
        """Counts an answer, and says whether it is right.

        Args:
            line: the line of the row, from 1.
            row: the test row.
            answer: the answer, or None if there is none.

        Returns:
            None if the row is left out because it does not say what is right.
        """
        ...

    def figures(self) -> dict[str, Any]:
        """What was found, as fields of `EvaluationReport`."""
        ...


class LabelMeasure:
    """Measures one label for each sentence.

    Of an answer the label with the highest score counts. Rows need `sentence`, `label` and `posneg`, and answers are
    lists of labels with scores.
    """

    def __init__(self) -> None:
        self._tally = _Tally()
        self._confusions: Counter[tuple[str | None, str | None]] = Counter()
        self._confidence = _Confidence()
        self._errors = _WrongAnswers()
        self._rows = 0
        self._negatives = 0

    def add(self, line: int, row: Any, answer: Any) -> bool | None:
        if not row.posneg:
            self._negatives += 1
            return None
        best = _best(answer)
        got = None if best is None else best["label"]
        right = got == row.label
        self._rows += 1
        self._tally.add(row.label, marked=1, right=right)
        if best is not None:
            self._tally.add(best["label"], found=1)
            self._confidence.add(best["score"], right)
        if not right:
            _count_pair(self._confusions, row.label, got)
            self._errors.add(line, row.sentence, row.label, got, None if best is None else best["score"])
        return bool(right)

    def figures(self) -> dict[str, Any]:
        total = self._tally.total()
        return {
            "rows": self._rows,
            "negatives": self._negatives,
            "accuracy": _share(total[_RIGHT], self._rows),
            **self._tally.figures("macro"),
            "confusions": _most_frequent(self._confusions),
            **self._confidence.figures(),
            **self._errors.figures(),
        }


class SpanMeasure:
    """Measures entities in a sentence.

    A wrong entity of the same place is a wrong type. One of the same label that overlaps a wanted one is a wrong
    border. What remains is missed or invented. Wrong types and wrong borders are errors of both sides in the figures.
    """

    def __init__(self) -> None:
        self._tally = _Tally()
        self._confusions: Counter[tuple[str | None, str | None]] = Counter()
        self._confidence = _Confidence()
        self._errors = _WrongAnswers()
        self._kinds: Counter[str] = Counter()
        self._rows = 0

    def add(self, line: int, row: Any, answer: Any) -> bool | None:
        self._rows += 1
        best = _best(answer)
        wanted = {(span.start, span.end, span.label) for span in row.spans}
        found = {
            (entity["start_pos"], entity["end_pos"] + 1, entity["label"]): entity["score"]
            for entity in (best["entity_list"] if best else ())
        }
        for span in wanted:
            self._tally.add(span[2], marked=1, right=span in found)
        for span, score in found.items():
            self._tally.add(span[2], found=1)
            self._confidence.add(score, span in wanted)
        self._kinds["right"] += len(wanted & found.keys())
        missed = sorted(wanted - found.keys())
        for span in sorted(found.keys() - wanted):
            twin = _twin(span, missed)
            if twin is None:
                self._kinds["invented"] += 1
            else:
                missed.remove(twin)
                self._kinds["wrong_type" if twin[:2] == span[:2] else "wrong_border"] += 1
            _count_pair(self._confusions, None if twin is None else twin[2], span[2])
            said = None if twin is None else _said(row.sentence, twin)
            self._errors.add(line, row.sentence, said, _said(row.sentence, span), found[span])
        for span in missed:
            self._kinds["missed"] += 1
            _count_pair(self._confusions, span[2], None)
            self._errors.add(line, row.sentence, _said(row.sentence, span), None, None)
        return wanted == found.keys()

    def figures(self) -> dict[str, Any]:
        confused = Counter({pair: count for pair, count in self._confusions.items() if pair[0] != pair[1]})
        return {
            "rows": self._rows,
            **self._tally.figures("micro"),
            "confusions": _most_frequent(confused),
            "spans": SpanErrors(**{name: self._kinds[name] for name in SpanErrors.__struct_fields__}),
            **self._confidence.figures(),
            **self._errors.figures(),
        }


class RelationMeasure:
    """Measures triples: the texts of subject, predicate and object.

    Their places do not count.
    """

    def __init__(self) -> None:
        self._tally = _Tally()
        self._confidence = _Confidence()
        self._errors = _WrongAnswers()
        self._rows = 0

    def add(self, line: int, row: Any, answer: Any) -> bool | None:
        self._rows += 1
        wanted = {(relation.subject.name, relation.predicate.text, relation.object.name) for relation in row.relations}
        found: dict[tuple[str, str, str], float] = {}
        for relation in answer or ():
            triple = (relation["subject"]["name"], relation["predicate"]["text"], relation["object"]["name"])
            found[triple] = max(relation["score"], found.get(triple, 0.0))
        for triple in wanted:
            self._tally.add(triple[1], marked=1, right=triple in found)
            if triple not in found:
                self._errors.add(line, row.sentence, " ".join(triple), None, None)
        for triple, score in found.items():
            self._tally.add(triple[1], found=1)
            self._confidence.add(score, triple in wanted)
            if triple not in wanted:
                self._errors.add(line, row.sentence, None, " ".join(triple), score)
        return wanted == found.keys()

    def figures(self) -> dict[str, Any]:
        return {
            "rows": self._rows,
            **self._tally.figures("micro"),
            **self._confidence.figures(),
            **self._errors.figures(),
        }


class TextMeasure:
    """Measures generated texts: the one with the highest score of an answer.

    chrF compares sequences of 1 to 6 characters without spaces, and weights recall with beta = 2.
    """

    _ORDERS = range(1, 7)
    _BETA = 2

    def __init__(self) -> None:
        self._rows = 0
        self._exact = 0
        self._found = [0] * len(self._ORDERS)
        self._wanted = [0] * len(self._ORDERS)
        self._matched = [0] * len(self._ORDERS)
        self._errors = _WrongAnswers()

    def add(self, line: int, row: Any, answer: Any) -> bool | None:
        texts: list[dict[str, Any]] = [{"text": text} if isinstance(text, str) else text for text in answer or ()]
        best = _best(texts)
        got = "" if best is None else best["text"]
        right = best is not None and got == row.target
        self._rows += 1
        self._exact += right
        if not right:
            score = None if best is None else best.get("score")
            self._errors.add(line, row.source, row.target, None if best is None else got, score)
        wanted_text = "".join(row.target.split())
        found_text = "".join(got.split())
        for index, order in enumerate(self._ORDERS):
            wanted = Counter(wanted_text[start : start + order] for start in range(len(wanted_text) - order + 1))
            found = Counter(found_text[start : start + order] for start in range(len(found_text) - order + 1))
            self._wanted[index] += wanted.total()
            self._found[index] += found.total()
            self._matched[index] += (wanted & found).total()
        return right

    def figures(self) -> dict[str, Any]:
        exact = _share(self._exact, self._rows)
        return {"rows": self._rows, "exact_match": exact, "chrf": self._chrf(), **self._errors.figures()}

    def _chrf(self) -> float:
        counts = list(zip(self._matched, self._found, self._wanted, strict=True))
        known = [(matched / found, matched / wanted) for matched, found, wanted in counts if found and wanted]
        if not known:
            return 0.0
        precision = sum(share for share, _ in known) / len(known)
        recall = sum(share for _, share in known) / len(known)
        weight = self._BETA**2
        return _share((1 + weight) * precision * recall, weight * precision + recall)


class ClusterMeasure:
    """Measures clusters, if rows have labels.

    Of an answer the cluster with the highest score counts.
    A sentence without a cluster is alone, and counts as wrong for the purity.
    """

    def __init__(self) -> None:
        self._pairs: Counter[tuple[str | None, str | None]] = Counter()
        self._alone: Counter[str] = Counter()
        self._unlabelled = 0
        self._is_full = False

    def add(self, line: int, row: Any, answer: Any) -> bool | None:
        if not row.label:
            self._unlabelled += 1
            return None
        best = _best(answer)
        if best is None:
            self._alone[row.label] += 1
        elif not _count_pair(self._pairs, row.label, best["cluster_name"]):
            self._is_full = True
        return None

    def figures(self) -> dict[str, Any]:
        rows = self._pairs.total() + self._alone.total()
        known = {"rows": rows, "negatives": self._unlabelled}
        if self._is_full:
            return {**known, "error": f"more than {_MOST_PAIRS:,} pairs of a label and a cluster: too many clusters"}
        if not rows:
            return {**known, "error": "no test row has a label, which is the second column: sentence, label"}
        labels: Counter[str | None] = Counter(self._alone)
        clusters: Counter[str | None] = Counter()
        largest: dict[str | None, int] = {}
        for (label, cluster), count in self._pairs.items():
            labels[label] += count
            clusters[cluster] += count
            largest[cluster] = max(count, largest.get(cluster, 0))
        together = _pairs_of(self._pairs.values())
        of_labels = _pairs_of(labels.values())
        of_clusters = _pairs_of(clusters.values())
        expected = of_labels * of_clusters / math.comb(rows, 2) if rows > 1 else 0.0
        highest = (of_labels + of_clusters) / 2
        # Both are one group, or all groups have one member: they are the same.
        rand = 1.0 if highest == expected else (together - expected) / (highest - expected)
        return {**known, "purity": sum(largest.values()) / rows, "adjusted_rand": rand}


class Durations:
    """How long rows took, in classes of 2 %."""

    def __init__(self) -> None:
        self._classes: Counter[int] = Counter()

    def add(self, seconds: float, rows: int) -> None:
        """Counts rows that took this long together."""
        each_took = max(1e-6, 1000 * seconds / rows)
        self._classes[round(math.log(each_took, _STEP))] += rows

    def milliseconds(self) -> dict[str, float]:
        """The median and the 99th percentile, at most 1 % off."""
        return {name: self._percentile(share) for name, share in (("p50", 0.5), ("p99", 0.99)) if self._classes}

    def _percentile(self, share: float) -> float:
        left = share * self._classes.total()
        for size in sorted(self._classes):
            left -= self._classes[size]
            if left <= 0:
                break
        return float(f"{_STEP**size:.3g}")


_RIGHT, _FOUND, _MARKED = range(3)


class _Tally:
    """Per label: how many were right, found and wanted."""

    def __init__(self) -> None:
        self._labels: dict[str, list[int]] = {}

    def add(self, label: str, *, right: int = 0, found: int = 0, marked: int = 0) -> None:
        counts = self._labels.get(label)
        if counts is None:
            name = label if len(self._labels) < MOST_LABELS else _OTHER_LABELS
            counts = self._labels.setdefault(name, [0, 0, 0])
        counts[_RIGHT] += right
        counts[_FOUND] += found
        counts[_MARKED] += marked

    def total(self) -> tuple[int, int, int]:
        right, found, marked = (sum(counts[index] for counts in self._labels.values()) for index in range(3))
        return right, found, marked

    def figures(self, average: Literal["micro", "macro"]) -> dict[str, Any]:
        """The figures of each label, and averages.

        `average` is the one that `f1` is.
        """
        labels = {label: _figures(*counts) for label, counts in sorted(self._labels.items())}
        supports = [float(figures.support or 0) for figures in labels.values()]
        averages = {
            "micro": msgspec.structs.replace(_figures(*self.total()), support=None),
            "macro": _averaged(labels.values(), [1.0] * len(labels)),
            "weighted": _averaged(labels.values(), supports),
        }
        return {"labels": labels, **averages, "average": average, "f1": averages[average].f1}


class _Confidence:
    """How often answers are right, by steps of 5 points of score."""

    def __init__(self) -> None:
        self._answers = [0] * 21
        self._right = [0] * 21
        self._sums = [0.0] * 21

    def add(self, score: float, right: bool) -> None:
        step = int(score // 5)
        self._answers[step] += 1
        self._right[step] += right
        self._sums[step] += score

    def figures(self) -> dict[str, Any]:
        if not any(self._answers):
            return {}
        thresholds = [
            Threshold(least, sum(self._answers[least // 5 :]), sum(self._right[least // 5 :])) for least in _THRESHOLDS
        ]
        calibration = []
        for begin in range(0, 100, 10):
            # A score of 100 has a step of its own, and is in the last tenth.
            steps = slice(begin // 5, begin // 5 + (3 if begin == 90 else 2))
            answers = sum(self._answers[steps])
            if answers:
                score = sum(self._sums[steps]) / answers
                calibration.append(Tenth(begin, begin + 10, answers, score, sum(self._right[steps]) / answers))
        return {"thresholds": thresholds, "calibration": calibration}


class _WrongAnswers:
    """The most confident wrong answers; of equal ones the first."""

    def __init__(self) -> None:
        self._worst: list[tuple[float, int, int, WrongAnswer]] = []
        self._count = 0

    def add(self, line: int, sentence: str, wanted: str | None, got: str | None, score: float | None) -> None:
        confidence = -1.0 if score is None else score
        self._count += 1
        if len(self._worst) == _MOST_ERRORS and confidence <= self._worst[0][0]:
            return
        wrong = WrongAnswer(line, _cut(sentence), _cut(wanted), _cut(got), score)
        push = heapq.heappush if len(self._worst) < _MOST_ERRORS else heapq.heappushpop
        push(self._worst, (confidence, -line, -self._count, wrong))

    def figures(self) -> dict[str, Any]:
        worst = [wrong for *_, wrong in sorted(self._worst, reverse=True)]
        return {"errors": worst, "advice": _ADVICE if worst else ""}


def _figures(right: int, found: int, marked: int) -> Figures:
    return Figures(_share(right, found), _share(right, marked), _share(2 * right, found + marked), marked)


def _averaged(labels: Iterable[Figures], weights: list[float]) -> Figures:
    pairs = list(zip(labels, weights, strict=True))
    precision, recall, f1 = (
        _share(sum(getattr(figures, name) * weight for figures, weight in pairs), sum(weights))
        for name in ("precision", "recall", "f1")
    )
    return Figures(precision, recall, f1)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _best(answers: Sequence[Mapping[str, Any]] | None) -> Any:
    """The answer with the highest score; None if there is none."""

    def score(answer: Mapping[str, Any]) -> float:
        found = answer.get("score")
        return -1.0 if found is None else found

    return max(answers or (), key=score, default=None)


def _count_pair(pairs: Counter[tuple[str | None, str | None]], wanted: str | None, got: str | None) -> bool:
    """Counts a pair; False if there are too many different ones."""
    if (wanted, got) not in pairs and len(pairs) >= _MOST_PAIRS:
        return False
    pairs[wanted, got] += 1
    return True


def _most_frequent(pairs: Counter[tuple[str | None, str | None]]) -> list[Confusion]:
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], str(item[0])))
    return [Confusion(wanted, got, count) for (wanted, got), count in ordered[:_MOST_CONFUSIONS]]


def _twin(span: tuple[int, int, str], missed: list[tuple[int, int, str]]) -> tuple[int, int, str] | None:
    """The wanted entity that this one is a wrong form of."""
    for other in missed:
        if other[:2] == span[:2]:
            return other
    for other in missed:
        if other[2] == span[2] and other[0] < span[1] and span[0] < other[1]:
            return other
    return None


def _said(sentence: str, span: tuple[int, int, str]) -> str:
    return f"{span[2]} {sentence[span[0] : span[1]]}"


def _pairs_of(sizes: Iterable[int]) -> int:
    return sum(math.comb(size, 2) for size in sizes)


def _cut(text: Any) -> Any:
    return text if text is None or len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
