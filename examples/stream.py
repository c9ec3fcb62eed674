"""A text that is written word by word:   python -m mlpkit run examples/stream.py

    curl -N localhost:8000/predict -H "Content-Type: application/json" -H "Accept: text/event-stream" \\
        -d '{"model_id": "ID", "features": {"sentence": "the sea"}}'

`predict` yields the pieces. Callers that accept `text/event-stream` get each as soon as it is there; all others get the
whole text at the end. If a caller goes away, the generator is closed at its next `yield`.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import msgspec

from mlpkit import App, ModelDir, TrainData

app = App("stream", kind="text_generation")
Follows = dict[str, list[str]]


class Prompt(msgspec.Struct):
    """The text to continue."""

    sentence: str


class Params(msgspec.Struct):
    """How to continue it."""

    words: int = 20
    seed: int = 0


@app.train
def train(data: TrainData, out: ModelDir) -> None:
    """Learns which word follows which."""
    follows: defaultdict[str, list[str]] = defaultdict(list)
    for row in data.rows():
        words = f"{row.source} {row.target}".split()
        for word, following in pairwise(words):
            follows[word].append(following)
    (out / "follows.json").write_text(json.dumps(follows), encoding="utf-8")


@app.load
def load(files: ModelDir) -> Follows:
    """The words that follow each word."""
    follows: Follows = json.loads((files / "follows.json").read_text(encoding="utf-8"))
    return follows


@app.predict
def predict(model: Follows, features: Prompt, params: Params | None = None) -> Iterator[str]:
    """Continues the text, a word at a time."""
    options = params or Params()
    chance = random.Random(options.seed)
    word = features.sentence.split()[-1]
    yield features.sentence
    for _ in range(options.words):
        if word not in model:
            return
        word = chance.choice(model[word])
        yield f" {word}"
