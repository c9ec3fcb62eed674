from pathlib import Path

import topics

from mlpkit.formats import ClassificationRow
from mlpkit.testing import FakeTrainData, RecordedProgress, fake_model_dir


def test_it_learns_what_it_is_shown(tmp_path: Path) -> None:
    rows = [
        ClassificationRow("the team won", "sport"),
        ClassificationRow("the bank lends", "money"),
    ]
    folder = fake_model_dir(tmp_path)
    data = FakeTrainData(rows)
    topics.train(data, topics.Smoothing(), folder, RecordedProgress())
    best, *_ = topics.predict(topics.load(folder), topics.Sentence("the team"))
    assert best.label == "sport"
