"""The measures of the kinds beside scikit-learn and seqeval, and what they keep of any number of rows."""

from __future__ import annotations

import random
import tracemalloc
import warnings
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from seqeval.metrics import classification_report as seqeval_report
from sklearn.metrics import adjusted_rand_score, classification_report

from mlpkit.formats import (
    Argument,
    ClassificationRow,
    ClusterRow,
    Durations,
    EvaluationReport,
    GenerationRow,
    Predicate,
    Relation,
    RelationRow,
    SequenceRow,
    Span,
    kind_of,
    to_bio,
)
from tests.corpora import small_corpus

DIGITS = 4


def measured(kind: str, pairs: Iterator[tuple[Any, Any]] | list[tuple[Any, Any]]) -> EvaluationReport:
    make = kind_of(kind).measure
    assert make is not None
    measure = make()
    for line, (row, answer) in enumerate(pairs, 1):
        measure.add(line, row, answer)
    return EvaluationReport(**measure.figures())


def labels(label: str, score: float) -> list[dict[str, Any]]:
    return [{"label": "something else", "score": 0.0}, {"label": label, "score": score}]


def entities(spans: list[Span], score: float = 100.0) -> list[dict[str, Any]]:
    listed = [
        {"name": "", "start_pos": span.start, "end_pos": span.end - 1, "label": span.label, "score": score}
        for span in spans
    ]
    return [{"score": score, "entity_list": listed}]


def check_same(report: EvaluationReport, expected: dict[str, Any]) -> None:
    """Checks all figures against the dictionary of `classification_report(output_dict=True)`."""
    for name, figures in report.labels.items():
        for figure in ("precision", "recall", "support"):
            assert getattr(figures, figure) == pytest.approx(expected[name][figure], abs=10**-DIGITS), (name, figure)
        assert figures.f1 == pytest.approx(expected[name]["f1-score"], abs=10**-DIGITS)
    for name in ("micro", "macro", "weighted"):
        average = expected.get(f"{name} avg")
        if average is not None:
            figures = getattr(report, name)
            assert figures.precision == pytest.approx(average["precision"], abs=10**-DIGITS)
            assert figures.recall == pytest.approx(average["recall"], abs=10**-DIGITS)
            assert figures.f1 == pytest.approx(average["f1-score"], abs=10**-DIGITS)


@pytest.mark.parametrize("corpus", ["classify-zh-kdconv", "classify-en-banking77"])
def test_figures_of_labels_are_those_of_scikit_learn(corpus: str) -> None:
    chance = random.Random(1)
    rows = [row for row in small_corpus(corpus, "text_classification", 600) if row.posneg]
    names = sorted({row.label for row in rows})[:-1]
    got = [row.label if chance.random() < 0.8 else chance.choice([*names, "never wanted"]) for row in rows]

    report = measured("text_classification", [(row, labels(label, 60)) for row, label in zip(rows, got, strict=True)])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = classification_report([row.label for row in rows], got, output_dict=True)
    assert set(report.labels) == {row.label for row in rows} | set(got)
    check_same(report, expected)
    assert report.accuracy == pytest.approx(expected["accuracy"])
    assert report.micro is not None
    assert report.micro.f1 == pytest.approx(expected["accuracy"])
    assert report.macro is not None
    assert report.f1 == report.macro.f1


@pytest.mark.parametrize("corpus", ["ner-zh-weibo", "ner-en-snips"])
def test_figures_of_entities_are_those_of_seqeval(corpus: str) -> None:
    chance = random.Random(2)
    rows = small_corpus(corpus, "text_sequence_labeling", 250)
    names = sorted({span.label for row in rows for span in row.spans})
    got = [list(changed(row, names, chance)) for row in rows]

    report = measured("text_sequence_labeling", [(row, entities(spans)) for row, spans in zip(rows, got, strict=True)])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = seqeval_report(
            [to_bio(len(row.sentence), row.spans) for row in rows],
            [to_bio(len(row.sentence), spans) for row, spans in zip(rows, got, strict=True)],
            output_dict=True,
        )
    check_same(report, expected)
    assert report.micro is not None
    assert report.f1 == report.micro.f1
    assert report.spans is not None
    wanted = sum(len(row.spans) for row in rows)
    found = sum(map(len, got))
    both_wrong = report.spans.wrong_type + report.spans.wrong_border
    assert wanted == report.spans.right + report.spans.missed + both_wrong
    assert found == report.spans.right + report.spans.invented + both_wrong


def changed(row: SequenceRow, names: list[str], chance: random.Random) -> Iterator[Span]:
    """The spans of a row, as a mediocre model finds them."""
    for span in row.spans:
        lot = chance.random()
        if lot < 0.1:
            continue
        if lot < 0.2:
            yield Span(span.start, span.end, chance.choice(names))
        elif lot < 0.3 and span.end - span.start > 1:
            yield Span(span.start + 1, span.end, span.label)
        else:
            yield span


def test_wrong_entities_are_told_apart() -> None:
    row = SequenceRow("abcdefghij", [Span(0, 2, "PER"), Span(3, 5, "LOC"), Span(6, 8, "ORG"), Span(9, 10, "PER")])
    answer = entities([Span(0, 2, "PER"), Span(3, 5, "ORG"), Span(6, 9, "ORG"), Span(5, 6, "PER")])

    report = measured("text_sequence_labeling", [(row, answer)])

    assert report.spans is not None
    assert report.spans.right == 1
    assert report.spans.wrong_type == 1
    assert report.spans.wrong_border == 1
    assert report.spans.invented == 1
    assert report.spans.missed == 1
    assert {(confusion.wanted, confusion.got) for confusion in report.confusions} == {
        ("LOC", "ORG"),
        (None, "PER"),
        ("PER", None),
    }


def test_label_with_the_highest_score_counts_wherever_it_stands() -> None:
    row = ClassificationRow("a", "good")
    answer = [{"label": "bad", "score": 10}, {"label": "good", "score": 90}]

    assert measured("text_classification", [(row, answer)]).accuracy == 1.0
    assert measured("text_classification", [(row, answer[::-1])]).accuracy == 1.0


def test_row_that_only_says_what_is_wrong_is_left_out() -> None:
    pairs = [
        (ClassificationRow("a", "good"), labels("good", 90)),
        (ClassificationRow("b", "good", posneg=False), labels("bad", 90)),
    ]

    report = measured("text_classification", pairs)

    assert (report.rows, report.negatives, report.accuracy) == (1, 1, 1.0)


def test_row_without_answer_counts_as_wrong() -> None:
    report = measured(
        "text_classification", [(ClassificationRow("a", "x"), labels("x", 1)), (ClassificationRow("b", "x"), None)]
    )

    assert report.accuracy == 0.5
    assert report.labels["x"].precision == 1.0
    assert report.labels["x"].recall == 0.5
    assert [(confusion.wanted, confusion.got) for confusion in report.confusions] == [("x", None)]


def test_thresholds_and_calibration_count_answers_by_score() -> None:
    scores = [100.0, 95.0, 94.9, 72.5, 50.0, 12.0]
    pairs = [(ClassificationRow(str(score), "x"), labels("x" if score > 60 else "y", score)) for score in scores]

    report = measured("text_classification", pairs)

    by_threshold = {item.threshold: (item.answered, item.right) for item in report.thresholds}
    assert list(by_threshold) == list(range(50, 100, 5))
    assert by_threshold[50] == (5, 4)
    assert by_threshold[55] == (4, 4)
    assert by_threshold[95] == (2, 2)
    tenths = {item.begin: (item.answers, item.right) for item in report.calibration}
    assert tenths == {10: (1, 0.0), 50: (1, 0.0), 70: (1, 1.0), 90: (3, 1.0)}
    assert report.calibration[-1].score == pytest.approx((100 + 95 + 94.9) / 3)


def test_most_confident_errors_come_first_with_their_lines() -> None:
    pairs = [(ClassificationRow(f"sentence {line}", "x"), labels("y", line % 50)) for line in range(1, 200)]

    report = measured("text_classification", pairs)

    assert len(report.errors) == 20
    assert [(error.line, error.score) for error in report.errors[:3]] == [(49, 49), (99, 49), (149, 49)]
    assert {error.score for error in report.errors} == {45, 46, 47, 48, 49}
    assert "wrong labels" in report.advice


def test_relations_count_as_triples() -> None:
    def argument(name: str, start: int) -> Argument:
        return Argument(name, start, start + len(name), "PER")

    def relation(subject: str, predicate: str, other: str) -> Relation:
        return Relation(argument(subject, 0), Predicate(predicate), argument(other, 5))

    row = RelationRow("...", [relation("a", "knows", "b"), relation("a", "likes", "c")])
    answer = [relation("a", "knows", "b").serialize(), relation("c", "likes", "a").serialize()]

    report = measured("relation_extraction", [(row, answer), (RelationRow("...", []), [])])

    assert report.rows == 2
    assert report.micro is not None
    assert (report.micro.precision, report.micro.recall, report.f1) == (0.5, 0.5, 0.5)
    assert report.labels["knows"].f1 == 1.0
    assert report.labels["likes"].f1 == 0.0
    assert {(error.wanted, error.got) for error in report.errors} == {("a likes c", None), (None, "c likes a")}


CHRF = [
    ("The cat sat on the mat.", "A cat sat on the mat."),
    ("今天天气很好", "今天的天气真好"),
    ("completely different", "xyz"),
    ("the same", "the same"),
]
"""Wanted and generated texts. sacreBLEU 2.6 gives 49.136556 for all four (`CHRF().corpus_score`)."""


def test_generated_texts_are_measured_by_exact_match_and_chrf() -> None:
    report = measured("text_generation", [(GenerationRow("s", wanted), [got]) for wanted, got in CHRF])

    assert report.exact_match == 0.25
    assert report.chrf == pytest.approx(0.49136556, abs=1e-7)


def test_best_of_several_generated_texts_counts() -> None:
    answer = [{"text": "bad", "score": 10}, {"text": "good", "score": 20}]

    assert measured("text_generation", [(GenerationRow("s", "good"), answer)]).exact_match == 1.0


def test_clusters_are_measured_by_purity_and_adjusted_rand() -> None:
    chance = random.Random(3)
    wanted = [chance.choice("abc") for _ in range(200)]
    got = [label if chance.random() < 0.7 else chance.choice("abcd") for label in wanted]
    pairs = [
        (ClusterRow(str(line), label), [{"cluster_name": cluster, "cluster": [], "score": 50}])
        for line, (label, cluster) in enumerate(zip(wanted, got, strict=True))
    ]

    report = measured("text_cluster", pairs)

    assert report.adjusted_rand == pytest.approx(adjusted_rand_score(wanted, got), abs=10**-DIGITS)
    members = {cluster: [w for w, g in zip(wanted, got, strict=True) if g == cluster] for cluster in set(got)}
    purity = sum(max(map(members[cluster].count, "abc")) for cluster in members) / len(wanted)
    assert report.purity == pytest.approx(purity)


def test_clusters_of_rows_without_labels_have_no_figures() -> None:
    report = measured("text_cluster", [(ClusterRow("a"), [{"cluster_name": "x", "cluster": ["a"], "score": 1}])])

    assert report.purity is None
    assert "no test row has a label" in report.error


def test_durations_are_one_percent_off_at_most() -> None:
    durations = Durations()
    for number in range(1, 1001):
        durations.add(number / 1000, 1)

    found = durations.milliseconds()

    assert found["p50"] == pytest.approx(500, rel=0.02)
    assert found["p99"] == pytest.approx(990, rel=0.02)


def test_memory_does_not_grow_with_the_rows() -> None:
    def pairs(rows: int) -> Iterator[tuple[Any, Any]]:
        chance = random.Random(4)
        for number in range(rows):
            wanted = f"label {chance.randrange(50)}"
            yield ClassificationRow(f"sentence {number}", wanted), labels(f"label {number % 50}", chance.random() * 100)

    peaks = []
    for rows in (10_000, 100_000):
        tracemalloc.start()
        assert measured("text_classification", pairs(rows)).rows == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < 1.2 * peaks[0] + 20_000


def test_labels_and_clusters_without_end_do_not_fill_the_memory() -> None:
    numbers = count()
    pairs = ((ClassificationRow("s", "x"), labels(f"label {next(numbers)}", 1)) for _ in range(20_000))

    report = measured("text_classification", pairs)

    assert len(report.labels) <= 10_001
    assert report.rows == 20_000
