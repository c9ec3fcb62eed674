"""The examples on real data over HTTP, with an S3 store: what they reach, and the whole life of their models."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlpkit import Client
from mlpkit.errors import ModelNotLoaded
from mlpkit.formats import read_rows
from mlpkit.storage import Storage
from tests.acceptance.conftest import Start, Upload
from tests.conftest import Report
from tests.corpora import ROOT
from tests.servers import LONG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLES = ROOT / "examples"
CALLERS = 32
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Threads of BLAS that wait for each other on a busy machine make a fit ten times slower."""


@dataclass(frozen=True)
class Corpus:
    """A folder of test data, what the example is told for it, and the accuracy that it must reach at least."""

    name: str
    floor: float
    parameters: dict[str, Any] = field(default_factory=dict)


CLASSIFICATIONS = [
    Corpus("classify-zh-kdconv", 0.920, {"c": 10, "ngram": 2}),
    Corpus("classify-en-banking77", 0.871, {"c": 5}),
]


def rows_of(file: Path, kind: str) -> list[Any]:
    return list(read_rows(file, kind))


def answers_to(client: Client, model_id: str, sentences: Iterable[str], **params: Any) -> list[Any]:
    """The predictions for the sentences, which many callers ask for at the same time."""

    def ask(sentence: str) -> Any:
        return client.predict(model_id, {"sentence": sentence}, params)

    with ThreadPoolExecutor(CALLERS) as callers:
        return list(callers.map(ask, sentences))


def counted(client: Client, metric: str, algorithm: str) -> float:
    """The sum of a counter of the algorithm."""
    text = client.request("GET", "/metrics").body.decode()
    return sum(
        float(each) for each in re.findall(rf'^{metric}{{algorithm="{algorithm}".*}} (\S+)$', text, re.MULTILINE)
    )


@pytest.mark.parametrize("corpus", CLASSIFICATIONS, ids=lambda corpus: corpus.name)
def test_classification_example_reaches_the_floor(
    corpus: Corpus, corpora: Path, start: Start, upload: Upload, store: Storage, report: Report
) -> None:
    data = corpora / corpus.name
    rows = [row for row in rows_of(data / "test.tsv", "text_classification") if row.posneg]
    client = start(EXAMPLES / "sentiment.py", ONE_THREAD).client

    began = time.monotonic()
    # With rows of its own to be tested with, it learns from all others.
    job = client.train("sentiment", upload(data / "train.tsv"), corpus.parameters, test=upload(data / "test.tsv"))
    job.wait(300)
    trained = time.monotonic() - began
    client.load("sentiment", job.model_id)
    began = time.monotonic()
    answers = answers_to(client, job.model_id, (row.sentence for row in rows), top_n=1)
    asked = time.monotonic() - began

    right = [label["label"] == row.label for (label,), row in zip(answers, rows, strict=True)]
    accuracy = sum(right) / len(rows)
    size_of_batch = len(rows) / counted(client, "mlpkit_batches_total", "sentiment")
    report(
        f"{corpus.name}: accuracy {accuracy:.4f} of {len(rows)} rows (floor {corpus.floor}); "
        f"trained in {trained:.1f} s; "
        f"{len(rows) / asked:.0f} predictions/s from {CALLERS} callers, {size_of_batch:.1f} in a batch"
    )
    assert accuracy >= corpus.floor
    assert size_of_batch > 1.5
    assert counted(client, "mlpkit_predictions_total", "sentiment") == len(rows)

    client.unload("sentiment", job.model_id)
    with pytest.raises(ModelNotLoaded):
        client.predict(job.model_id, {"sentence": rows[0].sentence})
    assert {each.path.rpartition("/")[2] for each in store.list(f"ml-platform-model/{job.model_id}/")} == {
        "evaluation.json",
        "mlpkit.json",
        "model.joblib",
    }
    client.delete("sentiment", job.model_id)
    assert store.list(f"ml-platform-model/{job.model_id}/") == []


def test_row_that_is_no_example_of_its_label_teaches_no_label(
    corpora: Path, start: Start, upload: Upload, tmp_path: Path
) -> None:
    rows = rows_of(corpora / "classify-zh-kdconv" / "train.tsv", "text_classification")[:600]
    assert {row.label for row in rows if row.posneg} == {"电影", "音乐", "旅游"}
    lines = [f"{row.sentence}\t{row.label}\t{int(row.posneg and row.label != '旅游')}\n" for row in rows]
    file = tmp_path / "train.tsv"
    file.write_text("".join(lines), encoding="utf-8")
    client = start(EXAMPLES / "sentiment.py", ONE_THREAD).client

    job = client.train("sentiment", upload(file))
    job.wait(LONG)
    client.load("sentiment", job.model_id)

    answer = client.predict(job.model_id, {"sentence": "故宫博物院在北京"})
    assert {label["label"] for label in answer} == {"电影", "音乐"}


@pytest.mark.parametrize(("corpus", "floor"), [("ner-zh-weibo", 0.37), ("ner-en-snips", 0.70)])
def test_entities_example_finds_names_with_and_without_spaces_between_words(
    corpus: str, floor: float, corpora: Path, start: Start, upload: Upload, report: Report
) -> None:
    data = corpora / corpus
    rows = rows_of(data / "test.tsv", "text_sequence_labeling")
    client = start(EXAMPLES / "entities.py").client

    began = time.monotonic()
    job = client.train("entities", upload(data / "train.tsv"))
    job.wait(300)
    trained = time.monotonic() - began
    client.load("entities", job.model_id)
    answers = answers_to(client, job.model_id, (row.sentence for row in rows))

    right = found = marked = 0
    for (answer,), row in zip(answers, rows, strict=True):
        for entity in answer["entity_list"]:
            assert row.sentence[entity["start_pos"] : entity["end_pos"] + 1] == entity["name"]
        # An entity counts if both ends and the label are right.
        guessed = {(entity["start_pos"], entity["end_pos"] + 1, entity["label"]) for entity in answer["entity_list"]}
        expected = {(span.start, span.end, span.label) for span in row.spans}
        right, found, marked = right + len(guessed & expected), found + len(guessed), marked + len(expected)
    f1 = 2 * right / (found + marked)
    report(
        f"{corpus}: F1 {f1:.4f} (floor {floor}), precision {right / found:.3f}, recall {right / marked:.3f} "
        f"of {marked} entities in {len(rows)} rows; trained in {trained:.1f} s"
    )
    assert f1 >= floor
    assert trained < 60 or corpus != "ner-en-snips"
