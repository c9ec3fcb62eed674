"""Two algorithms in one script and one service:   python -m mlpkit run examples/two_in_one.py:app

`language` needs no training: its model is a table in the script. `keywords` learns from a file of sentences which pairs
of characters are rare. Each has decorators of its own, and a request names the algorithm that it means.
"""

import math
from collections import Counter
from itertools import pairwise
from typing import Annotated

import msgspec

from mlpkit import App, ModelDir, TrainData
from mlpkit.formats import Label

app = App("two-in-one")
language = app.algorithm("language", kind="text_classification", examples=[{"sentence": "今天天气很好"}])
keywords = app.algorithm("keywords", examples=[{"sentence": "今天天气很好"}])

Ranges = dict[str, tuple[str, str]]


class Text(msgspec.Struct):
    """The `features` of both."""

    sentence: Annotated[str, msgspec.Meta(min_length=1)]


class Rarity(msgspec.Struct):
    """The model of `keywords`: in how many of how many sentences a pair of characters was seen."""

    sentences: int
    seen: dict[str, int]

    def of(self, pair: str) -> float:
        return math.log((1 + self.sentences) / (1 + self.seen.get(pair, 0)))


@language.load(preload=["language"])
def load_language() -> Ranges:
    return {"Chinese": ("一", "鿿"), "English": ("A", "z"), "Russian": ("А", "я")}


@language.predict
def predict_language(model: Ranges, features: Text) -> list[Label]:
    counts = [sum(first <= char <= last for char in features.sentence) for first, last in model.values()]
    return Label.ranked(list(model), [count / max(1, sum(counts)) for count in counts])


@keywords.train
def train_keywords(data: TrainData, out: ModelDir) -> None:
    sentences = [row.columns[0] for row in data.rows()]
    seen = Counter(pair for sentence in sentences for pair in set(pairs(sentence)))
    (out / "rarity.json").write_bytes(msgspec.json.encode(Rarity(len(sentences), seen)))


@keywords.load
def load_keywords(files: ModelDir) -> Rarity:
    return msgspec.json.decode((files / "rarity.json").read_bytes(), type=Rarity)


@keywords.predict
def predict_keywords(model: Rarity, features: Text) -> list[str]:
    return sorted(set(pairs(features.sentence)), key=lambda pair: (-model.of(pair), pair))[:3]


def pairs(sentence: str) -> list[str]:
    """Neighbouring letters; a pair never reaches over punctuation."""
    return [first + second for first, second in pairwise(sentence) if first.isalpha() and second.isalpha()]
