"""Figures of evaluations over HTTP, beside those of scikit-learn and seqeval for the same rows and answers.

With `-s` it prints them: first what `GET /jobs/{id}/evaluation` says, then what the other one computes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from seqeval.metrics import classification_report as seqeval_report
from sklearn.metrics import classification_report

from mlpkit.formats import EvaluationReport, Span, held_out, read_rows, to_bio
from tests.acceptance.conftest import Start, Upload
from tests.acceptance.test_real_data import EXAMPLES, ONE_THREAD, answers_to
from tests.conftest import Report
from tests.formats.test_evaluation import check_same

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHARE = 0.1
"""Test rows of `examples/sentiment.py`, if the request names no other ones."""
NAMES = {"precision": "precision", "recall": "recall", "f1": "f1-score"}
"""The figures, and how scikit-learn and seqeval call them."""


def of_labels(rows: Sequence[Any], answers: Sequence[Any]) -> Any:
    """The figures of scikit-learn."""
    return classification_report(
        [row.label for row in rows], [labels[0]["label"] for labels in answers], output_dict=True
    )


def of_entities(rows: Sequence[Any], answers: Sequence[Any]) -> Any:
    """The figures of seqeval."""
    found = [
        [Span(entity["start_pos"], entity["end_pos"] + 1, entity["label"]) for entity in answer["entity_list"]]
        for (answer,) in answers
    ]
    return seqeval_report(
        [to_bio(len(row.sentence), row.spans) for row in rows],
        [to_bio(len(row.sentence), spans) for row, spans in zip(rows, found, strict=True)],
        output_dict=True,
    )


@dataclass(frozen=True)
class Corpus:
    """A data set, and the example that is trained on it.

    Its test rows are those of its own file, or else the share that the training leaves out.
    """

    name: str
    algorithm: str
    kind: str
    expected: Callable[[Sequence[Any], Sequence[Any]], Any]
    has_test_file: bool = True
    parameters: dict[str, Any] = field(default_factory=dict)


CORPORA = [
    Corpus("classify-zh-kdconv", "sentiment", "text_classification", of_labels, parameters={"c": 10, "ngram": 2}),
    Corpus("classify-en-banking77", "sentiment", "text_classification", of_labels, has_test_file=False),
    Corpus("ner-zh-weibo", "entities", "text_sequence_labeling", of_entities),
]


def rows_of(corpus: Corpus, folder: Path, seed: int | None) -> list[Any]:
    """The rows that the model was tested with and that say what is right."""
    if corpus.has_test_file:
        rows = list(read_rows(folder / "test.tsv", corpus.kind))
    else:
        assert seed is not None
        chosen = held_out(folder / "train.tsv", corpus.kind, SHARE, seed)
        rows = [row for row in read_rows(folder / "train.tsv", corpus.kind) if hash(row.sentence) in chosen]
    return [row for row in rows if getattr(row, "posneg", 1)]


def table(report: EvaluationReport, expected: dict[str, Any]) -> str:
    """The averages of both, side by side."""
    lines = [f"{'':>12}{'precision':>20}{'recall':>20}{'f1':>20}"]
    for name in ("micro", "macro", "weighted"):
        ours = getattr(report, name)
        # scikit-learn calls the micro average of a whole set of labels its accuracy.
        other = expected.get(f"{name} avg") or dict.fromkeys(NAMES.values(), expected["accuracy"])
        pairs = ((getattr(ours, figure), other[called]) for figure, called in NAMES.items())
        lines.append(f"{name:>12}" + "".join(f"{f'{one:.4f} / {two:.4f}':>20}" for one, two in pairs))
    return "\n".join(lines)


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda corpus: corpus.name)
def test_figures_over_http_are_those_of_scikit_learn_and_seqeval(
    corpus: Corpus, corpora: Path, start: Start, upload: Upload, report: Report
) -> None:
    folder = corpora / corpus.name
    client = start(EXAMPLES / f"{corpus.algorithm}.py", ONE_THREAD).client
    test = upload(folder / "test.tsv") if corpus.has_test_file else None
    job = client.train(corpus.algorithm, upload(folder / "train.tsv"), corpus.parameters, test=test)
    job.wait(300)
    found = msgspec.convert(client.evaluation(job.model_id), EvaluationReport)

    rows = rows_of(corpus, folder, found.seed)
    client.load(corpus.algorithm, job.model_id)
    answers = answers_to(client, job.model_id, (row.sentence for row in rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that nobody answers
        expected = corpus.expected(rows, answers)

    source = f"test={SHARE:g}" if test is None else f"data.test_location: {test}"
    assert (found.rows, found.source, found.error) == (len(rows), source, "")
    other = "scikit-learn" if corpus.expected is of_labels else "seqeval"
    report(f"{corpus.name}, {found.rows} rows, mlpkit / {other}\n{table(found, expected)}")
    check_same(found, expected)
    if corpus.expected is of_labels:
        assert found.micro is not None
        assert (found.accuracy, found.micro.f1) == pytest.approx((expected["accuracy"], expected["accuracy"]))
    averages = {"accuracy", "micro avg", "macro avg", "weighted avg"}
    assert set(found.labels) == set(expected) - averages
