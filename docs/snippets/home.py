import joblib
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from mlpkit import App, ModelDir, TrainData
from mlpkit.formats import Label

app = App("topics", kind="text_classification")


@app.train
def train(data: TrainData, parameters: dict, out: ModelDir):
    rows = list(data.rows())
    texts = [row.sentence for row in rows]
    labels = [row.label for row in rows]
    classifier = LogisticRegression(**parameters)
    model = make_pipeline(TfidfVectorizer(), classifier)
    model.fit(texts, labels)
    joblib.dump(model, out / "model.joblib")


@app.load
def load(files: ModelDir):
    return joblib.load(files / "model.joblib")


@app.predict
def predict(model, features: dict) -> list[Label]:
    (row,) = model.predict_proba([features["sentence"]])
    return Label.ranked(model.classes_, row)
