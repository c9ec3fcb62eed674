"""Groups of similar sentences:   python -m mlpkit run examples/clusters.py:app

There is nothing to learn: training checks and stores the configuration, and every prediction groups the sentences that
it brings. A "model" is a way of grouping that has a name, its id: the platform loads and deletes it like any other.
"""

from typing import Annotated

import msgspec
import numpy as np
from sklearn.cluster import AgglomerativeClustering
from sklearn.feature_extraction.text import TfidfVectorizer

from mlpkit import App, ModelDir
from mlpkit.formats import Cluster

SENTENCES = ["怎么退货", "退货怎么办理", "我要退货", "发票怎么开", "可以开发票吗", "能开发票吗"]

app = App("clusters", kind="text_cluster", examples=[{"sentences": SENTENCES}])


class Grouping(msgspec.Struct):
    """The request's `parameter`: sentences join a group up to this cosine distance; smaller groups are left out."""

    distance: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.8
    min_size: Annotated[int, msgspec.Meta(ge=1)] = 1


class Sentences(msgspec.Struct):
    """The request's `features`."""

    sentences: Annotated[list[str], msgspec.Meta(min_length=1, max_length=2000)]


@app.train
def train(parameters: Grouping, out: ModelDir) -> None:
    (out / "grouping.json").write_bytes(msgspec.json.encode(parameters))


@app.load
def load(files: ModelDir) -> Grouping:
    return msgspec.json.decode((files / "grouping.json").read_bytes(), type=Grouping)


@app.predict
def predict(model: Grouping, features: Sentences) -> list[Cluster]:
    sentences = list(dict.fromkeys(features.sentences))
    if len(sentences) == 1:
        groups, vectors = np.array([0]), np.array([[1.0]])
    else:
        vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 2)).fit_transform(sentences).toarray()
        joining = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=model.distance)
        groups = joining.fit_predict(vectors)
    found = [_cluster(sentences, vectors, np.flatnonzero(groups == group)) for group in range(groups.max() + 1)]
    return sorted((each for each in found if len(each.cluster) >= model.min_size), key=lambda each: -len(each.cluster))


def _cluster(sentences: list[str], vectors: np.ndarray, members: np.ndarray) -> Cluster:
    """A group named after its most central sentence; the score is how close its members are to it on average, 0-100."""
    closeness = vectors[members] @ vectors[members].T
    central = int(closeness.mean(axis=1).argmax())
    score = 100 * float(closeness[central].mean())
    return Cluster(sentences[members[central]], [sentences[i] for i in members], round(score, 2))
