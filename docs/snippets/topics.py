"""Topics of sentences, by the words in them:   mlpkit run topics.py"""

import math
import re
from collections import Counter, defaultdict

import msgspec

from mlpkit import App, ModelDir, Progress, TrainData
from mlpkit.formats import Label

app = App(
    "topics",
    kind="text_classification",
    examples=[{"sentence": "our team won"}],
)

# One Chinese character, or a word of another language.
WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")


class Smoothing(msgspec.Struct):
    alpha: float = 1.0


class Sentence(msgspec.Struct):
    sentence: str


class Topics(msgspec.Struct):
    words: dict[str, dict[str, int]]  # label -> word -> count
    alpha: float

    def probabilities(self, sentence: str) -> list[float]:
        """Naive Bayes with equal priors: one number from 0 to 1 a label."""
        vocabulary = len(set().union(*self.words.values()))
        logs = []
        for counts in self.words.values():
            total = sum(counts.values()) + self.alpha * vocabulary
            found = [counts.get(word, 0) for word in WORD.findall(sentence)]
            shares = [(count + self.alpha) / total for count in found]
            logs.append(sum(map(math.log, shares)))
        weights = [math.exp(log - max(logs)) for log in logs]
        return [weight / sum(weights) for weight in weights]


@app.train
def train(
    data: TrainData,
    parameters: Smoothing,
    out: ModelDir,
    progress: Progress,
) -> None:
    words: dict[str, Counter[str]] = defaultdict(Counter)
    for row in progress.track(data.rows(), "count"):
        if row.posneg:
            words[row.label].update(WORD.findall(row.sentence))
    model = Topics(words, parameters.alpha)
    (out / "topics.json").write_bytes(msgspec.json.encode(model))


@app.load
def load(files: ModelDir) -> Topics:
    content = (files / "topics.json").read_bytes()
    return msgspec.json.decode(content, type=Topics)


@app.predict
def predict(model: Topics, features: Sentence) -> list[Label]:
    return Label.ranked(model.words, model.probabilities(features.sentence))
