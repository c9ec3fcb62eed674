"""Every example goes through its life: train, load, predict, over the protocol and through real processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from examples import checkpoint, clusters, custom_hooks, entities, iris, sentiment, stream, two_in_one
from mlpkit import App
from mlpkit.errors import ArgumentError, MlpkitError, ModelNotLoaded
from mlpkit.formats import read_rows
from mlpkit.testing import TestService
from tests.examples.conftest import DATA
from tests.servers import LONG

Serve = Callable[[App], TestService]
SCRIPTS = sorted(path for path in DATA.parent.glob("*.py"))


def loaded(service: TestService, algorithm: str, data: Path | None = None, parameters: object = None) -> str:
    model_id = service.trained(algorithm, data=data, parameters=parameters)
    service.client.load(algorithm, model_id)
    return model_id


def answers(service: TestService, model_id: str, sentences: Sequence[str]) -> list[Any]:
    return [service.client.predict(model_id, {"sentence": sentence}) for sentence in sentences]


def test_sentiment_learns_the_labels_of_new_sentences(served: Serve) -> None:
    service = served(sentiment.app)
    model_id = loaded(service, "sentiment", DATA / "sentiment.tsv", {"c": 10.0})
    rows: list[Any] = list(read_rows(DATA / "sentiment-test.tsv", "text_classification"))
    found = answers(service, model_id, [row.sentence for row in rows])
    right = sum(labels[0]["label"] == row.label for labels, row in zip(found, rows, strict=True))
    assert right / len(rows) >= 0.9
    assert all(sum(label["score"] for label in labels) == pytest.approx(100) for labels in found)


def test_sentiment_refuses_a_parameter_of_the_wrong_type_when_the_job_is_submitted(served: Serve) -> None:
    service = served(sentiment.app)
    before = service.client.jobs()
    with pytest.raises(ArgumentError, match="ngram"):
        service.client.train("sentiment", {"location": "any.tsv"}, {"ngram": "three"})
    assert service.client.jobs() == before


def test_iris_needs_no_data_and_keeps_its_accuracy(served: Serve) -> None:
    service = served(iris.app)
    model_id = loaded(service, "iris", parameters={"trees": 10})
    answer = service.client.predict(model_id, iris.app.examples[0])
    assert answer["name"] == "setosa"
    assert answer["probability"] > 0.9
    progress = service.client.job_view(model_id).progress
    assert progress is not None
    assert progress["metrics"]["accuracy"] > 0.9


def test_iris_refuses_a_flower_of_negative_size(served: Serve) -> None:
    service = served(iris.app)
    model_id = loaded(service, "iris", parameters={"trees": 1})
    with pytest.raises(ArgumentError, match="petal_width"):
        service.client.predict(model_id, {**iris.app.examples[0], "petal_width": -1})


def test_entities_finds_the_names_of_new_sentences(served: Serve) -> None:
    service = served(entities.app)
    model_id = loaded(service, "entities", DATA / "entities.tsv")
    rows: list[Any] = list(read_rows(DATA / "entities-test.tsv", "text_sequence_labeling"))
    common = found = wanted = 0
    for row, (answer,) in zip(rows, answers(service, model_id, [row.sentence for row in rows]), strict=True):
        right = {(span.start, span.end - 1, span.label) for span in row.spans}
        given = {(each["start_pos"], each["end_pos"], each["label"]) for each in answer["entity_list"]}
        common, found, wanted = common + len(right & given), found + len(given), wanted + len(right)
        assert all(
            row.sentence[each["start_pos"] : each["end_pos"] + 1] == each["name"] for each in answer["entity_list"]
        )
    assert 2 * common / (found + wanted) >= 0.8


def test_entities_says_so_where_nothing_is_marked(served: Serve, tmp_path: Path) -> None:
    service = served(entities.app)
    data = tmp_path / "plain.tsv"
    data.write_text("今天天气很好。\n", encoding="utf-8")
    with pytest.raises(MlpkitError, match=r"plain\.tsv|no marked entity"):
        service.trained("entities", data=data)


def test_checkpoint_learns_in_epochs_and_leaves_only_the_model(served: Serve) -> None:
    service = served(checkpoint.app)
    model_id = loaded(service, "epochs", DATA / "sentiment.tsv", {"epochs": 5})
    rows: list[Any] = list(read_rows(DATA / "sentiment-test.tsv", "text_classification"))
    found = answers(service, model_id, [row.sentence for row in rows])
    assert sum(labels[0]["label"] == row.label for labels, row in zip(found, rows, strict=True)) / len(rows) >= 0.8
    stored = [found.key.partition("/")[2] for found in service.storage.list(f"ml-platform-model/{model_id}")]
    assert stored == ["mlpkit.json", "model.joblib"]


def test_clusters_groups_what_a_prediction_brings(served: Serve) -> None:
    service = served(clusters.app)
    model_id = loaded(service, "clusters", parameters={"min_size": 2})
    groups = service.client.predict(model_id, {"sentences": [*clusters.SENTENCES, "今天天气很好"]})
    found = sorted(sorted(group["cluster"]) for group in groups)
    assert found == sorted([sorted(clusters.SENTENCES[:3]), sorted(clusters.SENTENCES[3:])])
    assert all(group["cluster_name"] in group["cluster"] and 0 < group["score"] <= 100 for group in groups)


def test_clusters_takes_a_single_sentence(served: Serve) -> None:
    service = served(clusters.app)
    model_id = loaded(service, "clusters")
    (group,) = service.client.predict(model_id, {"sentences": ["怎么退货", "怎么退货"]})
    assert group == {"cluster_name": "怎么退货", "cluster": ["怎么退货"], "score": 100.0}


def test_two_algorithms_of_one_script_answer_side_by_side(served: Serve) -> None:
    service = served(two_in_one.app)
    assert service.client.monitor().algorithms == ["language", "keywords"]
    best, *_ = service.client.predict("language", {"sentence": "今天天气很好 ok"})
    assert best["label"] == "Chinese"
    model_id = loaded(service, "keywords", DATA / "sentiment.tsv")
    assert "量子" in service.client.predict(model_id, {"sentence": "服务很好，量子"})


def test_custom_hooks_make_ids_and_protect_what_belongs_to_the_archive(served: Serve) -> None:
    service = served(custom_hooks.app)
    terms = {"terms": {"ＧＰＵ": "graphics processor"}}
    jobs = [service.client.train("glossary", parameters=terms, extend={"team": team}) for team in ("search", "archive")]
    for job in jobs:
        assert job.wait(LONG).status == "completed"
        service.client.load("glossary", job.model_id)
    mine, kept = (job.model_id for job in jobs)
    assert mine.startswith("search-")
    asked = [service.client.predict(mine, {"term": "gpu"}) for _ in range(2)]
    assert asked == [{"meaning": "graphics processor", "asked": 1}, {"meaning": "graphics processor", "asked": 2}]
    with pytest.raises(MlpkitError, match="cannot be deleted"):
        service.client.delete("glossary", kept)
    service.client.delete("glossary", mine)
    assert not service.storage.exists(f"ml-platform-model/{mine}/terms.json")
    assert "1 terms of search-" in service.log
    with pytest.raises(ModelNotLoaded):
        service.client.predict(mine, {"term": "gpu"})


def test_custom_hooks_know_the_models_of_other_services(served: Serve, tmp_path: Path) -> None:
    service = served(custom_hooks.app)
    assert service.client.status("glossary", "search-other").status == "unknown"
    terms = tmp_path / "terms.json"
    terms.write_text('{"gpu": "graphics processor"}')
    service.storage.save(terms, "ml-platform-model/search-other/terms.json")
    assert service.client.status("glossary", "search-other").status == "completed"


def test_stream_continues_a_text_with_words_that_it_has_seen(served: Serve, tmp_path: Path) -> None:
    data = tmp_path / "texts.tsv"
    data.write_text("the sea\tis wide and the sky is high\n", encoding="utf-8")
    service = served(stream.app)
    model_id = loaded(service, "stream", data)
    (text,) = service.client.predict(model_id, {"sentence": "look at the"}, {"words": 3})
    assert text.startswith("look at the s")
    assert len(text.split()) == 6


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_examples_stay_short(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 110
