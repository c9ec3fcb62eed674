"""Sentiment of reviews, in one script:   python -m mlpkit run examples/sentiment.py:app"""

import joblib
import msgspec
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from mlpkit import App, ModelDir, Progress, TrainData
from mlpkit.formats import Label

app = App(
    "sentiment",
    kind="text_classification",
    examples=[{"sentence": "味道很好，下次还来。"}],
)


class Hyper(msgspec.Struct):
    """The request's `parameter`; it is checked when the job is submitted."""

    c: float = 1.0
    ngram: int = 3


class Review(msgspec.Struct):
    """The request's `features`."""

    sentence: str


@app.train(test=0.1)
def train(
    data: TrainData,
    parameters: Hyper,
    out: ModelDir,
    progress: Progress,
) -> None:
    rows = list(progress.track(data.rows(), "read"))
    examples = [row for row in rows if row.posneg]
    model = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, parameters.ngram)),
        LogisticRegression(C=parameters.c, class_weight="balanced", max_iter=1000),
    )
    with progress.stage("fit"):
        model.fit([row.sentence for row in examples], [row.label for row in examples])
    joblib.dump(model, out / "model.joblib")


@app.load
def load(files: ModelDir) -> Pipeline:
    return joblib.load(files / "model.joblib")


@app.predict(max_batch_size=32)
def predict(model: Pipeline, features: list[Review]) -> list[list[Label]]:
    scores = model.predict_proba([review.sentence for review in features])
    return [Label.ranked(model.classes_, row) for row in scores]


if __name__ == "__main__":
    app.run()
