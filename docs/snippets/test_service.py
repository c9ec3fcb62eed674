import topics

from mlpkit.testing import TestService


def test_it_answers_over_http() -> None:
    with TestService(topics.app) as service:
        model_id = service.trained("topics", data="topics.tsv")
        service.client.load("topics", model_id)
        best, *_ = service.client.predict(model_id, {"sentence": "the team saved a goal"})
    assert best["label"] == "sport"
