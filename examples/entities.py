"""Names of people, places and organisations in Chinese text:   python -m mlpkit run examples/entities.py:app

Trains on lines such as `<START:PER>李华<END>住在<START:LOC>杭州<END>。` The tagger is an averaged perceptron (Collins,
EMNLP 2002) that reads a sentence character by character; a thousand sentences take it some ten seconds.
"""

import math
import random
from collections import defaultdict

import msgspec

from mlpkit import App, ModelDir, Progress, TrainData
from mlpkit.formats import Entities, from_bio, to_bio

app = App("entities", kind="text_sequence_labeling", examples=[{"sentence": "王小明在北京大学读书。"}])

PIECES = [(start, end) for start in range(5) for end in range(start + 1, min(start + 3, 5) + 1)]
Weights = dict[str, dict[str, float]]


class Hyper(msgspec.Struct):
    """The request's `parameter`."""

    epochs: int = 6
    seed: int = 0


class Sentence(msgspec.Struct):
    """The request's `features`."""

    sentence: str


class Tagger(msgspec.Struct):
    """The model: how much each clue speaks for and against each tag (`O`, `B-PER`, `I-PER`, ...)."""

    tags: list[str]
    weights: Weights

    def best(self, clues: list[str], before: str) -> tuple[str, float]:
        """The best tag after the tag `before`, and how far it is ahead of the second best."""
        scores = dict.fromkeys(self.tags, 0.0)
        for clue in (*clues, before):
            for tag, weight in self.weights.get(clue, {}).items():
                scores[tag] += weight
        first, second = sorted(self.tags, key=scores.__getitem__, reverse=True)[:2]
        return first, scores[first] - scores[second]


def clues_of(text: str) -> list[list[str]]:
    """What the tagger sees of every character: the pieces of up to three characters among it and two on each side."""
    padded = f"\2\2{text}\3\3"
    return [[f"{start}{padded[i + start : i + end]}" for start, end in PIECES] for i in range(len(text))]


@app.train
def train(data: TrainData, parameters: Hyper, out: ModelDir, progress: Progress) -> None:
    rows = [(clues_of(row.sentence), to_bio(len(row.sentence), row.spans)) for row in data.rows()]
    weights: Weights = defaultdict(lambda: defaultdict(float))
    late: Weights = defaultdict(lambda: defaultdict(float))
    tagger, step = Tagger(sorted({tag for _, tags in rows for tag in tags}), weights), 0
    if len(tagger.tags) < 2:
        raise ValueError("the training data has no marked entity, such as <START:PER>李华<END>")
    for _ in progress.track(range(parameters.epochs), "epochs"):
        random.Random(parameters.seed + step).shuffle(rows)
        for sentence, tags in rows:
            before = "O"
            for clues, right in zip(sentence, tags, strict=True):
                step, (guess, _) = step + 1, tagger.best(clues, before)
                for clue in (*clues, before) if guess != right else ():
                    for tag, change in ((right, 1.0), (guess, -1.0)):
                        weights[clue][tag] += change
                        late[clue][tag] += change * step
                before = guess
    for clue, tags_of_clue in late.items():
        for tag, sum_of_changes in tags_of_clue.items():
            weights[clue][tag] -= sum_of_changes / step
    (out / "tagger.json").write_bytes(msgspec.json.encode(tagger))


@app.load
def load(files: ModelDir) -> Tagger:
    return msgspec.json.decode((files / "tagger.json").read_bytes(), type=Tagger)


@app.predict
def predict(model: Tagger, features: Sentence) -> list[Entities]:
    """The score of an entity is its least lead, squeezed into 0-100: good for ordering, no probability."""
    found: list[tuple[str, float]] = []
    for clues in clues_of(features.sentence):
        found.append(model.best(clues, found[-1][0] if found else "O"))
    spans = from_bio([tag for tag, _ in found], repair=True)
    leads = [min(lead for _, lead in found[span.start : span.end]) for span in spans]
    return [Entities.of(features.sentence, spans, [100 * math.tanh(lead / 10) for lead in leads])]
