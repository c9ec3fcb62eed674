"""A training that continues:   python -m mlpkit run examples/checkpoint.py:app

Each epoch ends with `checkpoint.save()`. If the service is stopped, or the
process is killed, the next attempt begins with the last epoch that was saved,
also on another machine with the same store. An epoch shuffles with a seed of
its own, so an interrupted training ends with exactly the numbers of one without
interruption.
"""

from typing import Annotated

import joblib
import msgspec
import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import SGDClassifier

from mlpkit import App, Checkpoint, ModelDir, Progress, TrainData
from mlpkit.formats import Label

app = App(
    "epochs",
    kind="text_classification",
    examples=[{"sentence": "服务很好"}],
)
words = HashingVectorizer(analyzer="char", ngram_range=(1, 2), n_features=2**16)


class Course(msgspec.Struct):
    """The request's `parameter`."""

    epochs: Annotated[int, msgspec.Meta(ge=1)] = 20
    seed: int = 0


class Sentence(msgspec.Struct):
    """The request's `features`."""

    sentence: str


@app.train(max_attempts=20)
def train(
    data: TrainData,
    parameters: Course,
    checkpoint: Checkpoint,
    out: ModelDir,
    progress: Progress,
) -> None:
    """Learns in epochs, and saves the state after each."""
    rows = [row for row in data.rows() if row.posneg]
    features = words.transform([row.sentence for row in rows])
    labels = np.array([row.label for row in rows])
    model = SGDClassifier(loss="log_loss", random_state=parameters.seed)
    done = 0
    if checkpoint.resumed:
        done, model = joblib.load(checkpoint / "state.joblib")
    total = parameters.epochs
    classes = np.unique(labels)
    epochs = range(done, total)
    for epoch in progress.track(epochs, "fit", total=total, done=done):
        generator = np.random.default_rng([parameters.seed, epoch])
        order = generator.permutation(len(labels))
        model.partial_fit(features[order], labels[order], classes=classes)
        joblib.dump((epoch + 1, model), checkpoint / "state.joblib")
        checkpoint.save()
    joblib.dump(model, out / "model.joblib")


@app.load
def load(files: ModelDir) -> SGDClassifier:
    """Reads the model back from its folder."""
    return joblib.load(files / "model.joblib")


@app.predict(max_batch_size=32)
def predict(
    model: SGDClassifier,
    features: list[Sentence],
) -> list[list[Label]]:
    """Scores every label from 0 to 100, best first."""
    texts = [item.sentence for item in features]
    scores = model.predict_proba(words.transform(texts))
    return [Label.ranked(model.classes_, row) for row in scores]
