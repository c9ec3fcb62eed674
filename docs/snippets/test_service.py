import topics

from mlpkit.testing import TestService


def test_it_answers_over_http() -> None:
    with TestService(topics.app) as service:
        model_id = service.trained("topics", data="topics.tsv")
        service.client.load("topics", model_id)
        features = {"sentence": "the team saved a goal"}
        best, *_ = service.client.predict(model_id, features)
    assert best["label"] == "sport"
