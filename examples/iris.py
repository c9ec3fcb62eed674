"""Iris flowers from four measurements, with scikit-learn's own data:   python -m mlpkit run examples/iris.py:app

A request without `data.location` trains on scikit-learn's own 150 flowers, so there is nothing to upload. The kind is
`text_custom` (the default), so the answer may be any type of yours. The accuracy ends in the model's manifest.
"""

from typing import Annotated

import joblib
import msgspec
import numpy as np
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

from mlpkit import App, ModelDir, Progress

app = App("iris", examples=[{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}])

Centimetres = Annotated[float, msgspec.Meta(gt=0, lt=100)]


class Forest(msgspec.Struct):
    """The request's `parameter`; a number of trees out of bounds is refused when the job is submitted."""

    trees: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50
    seed: int = 0


class Flower(msgspec.Struct):
    """The request's `features`."""

    sepal_length: Centimetres
    sepal_width: Centimetres
    petal_length: Centimetres
    petal_width: Centimetres


class Species(msgspec.Struct):
    """What a prediction answers."""

    name: str
    probability: float


@app.train(cpus=1, timeout=600)
def train(parameters: Forest, out: ModelDir, progress: Progress) -> None:
    flowers = load_iris()
    forest = RandomForestClassifier(parameters.trees, random_state=parameters.seed)
    with progress.stage("evaluate"):
        progress.update(accuracy=cross_val_score(forest, flowers.data, flowers.target, cv=5).mean())
    with progress.stage("fit"):
        forest.fit(flowers.data, flowers.target_names[flowers.target])
    joblib.dump(forest, out / "forest.joblib")


@app.load
def load(files: ModelDir) -> RandomForestClassifier:
    return joblib.load(files / "forest.joblib")


@app.predict(max_batch_size=64)
def predict(model: RandomForestClassifier, features: list[Flower]) -> list[Species]:
    probabilities = model.predict_proba(np.array([msgspec.structs.astuple(flower) for flower in features]))
    names = model.classes_[probabilities.argmax(axis=1)]
    return [Species(str(name), float(row.max())) for name, row in zip(names, probabilities, strict=True)]
