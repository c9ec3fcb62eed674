"""Names of people, places and organisations in a text:   python -m mlpkit run examples/entities.py:app

Trains on lines such as `<START:PER>李华<END>住在<START:LOC>杭州<END>。` The tagger is an averaged perceptron (Collins,
EMNLP 2002) that reads a sentence token by token: words if there are spaces between them, single characters in Chinese.
"""

import math
import random
import re
from collections import defaultdict

import msgspec

from mlpkit import App, ModelDir, Progress, TrainData
from mlpkit.formats import Entities, Span, from_bio

app = App("entities", kind="text_sequence_labeling", examples=[{"sentence": "王小明在北京大学读书。"}])
TOKEN = re.compile(r"[a-z0-9À-ɏ'’]+|\S", re.IGNORECASE)
PIECES = [(start, end) for start in range(5) for end in range(start + 1, min(start + 3, 5) + 1)]
Weights = dict[str, dict[str, float]]


class Hyper(msgspec.Struct):  # the request's `parameter`
    epochs: int = 10
    seed: int = 0


class Sentence(msgspec.Struct):  # the request's `features`
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


def read(sentence: str) -> tuple[list[tuple[int, int]], list[list[str]]]:
    """Where the tokens are, and what the tagger sees of each: up to three tokens around it, and the form of a word."""
    tokens = [token.span() for token in TOKEN.finditer(sentence)]
    words = [sentence[start:end] for start, end in tokens]
    padded = ["\2", "\2", *(word.lower() for word in words), "\3", "\3"]
    clues = [[f"{start}{' '.join(padded[i + start : i + end])}" for start, end in PIECES] for i in range(len(words))]
    for word, seen in zip(words, clues, strict=True):
        if len(word) > 1:
            shape = re.sub("[0-9]", "9", word)
            seen += [f"<{word[:3].lower()}", f">{word[-3:].lower()}", f"A{word.istitle()}", f"9{shape}"]
    return tokens, clues


def tags_of(spans: list[Span], tokens: list[tuple[int, int]]) -> list[str]:
    """The BIO tags of the tokens; an entity that ends inside a token takes the whole token."""
    tags = ["O"] * len(tokens)
    for span in spans:
        for i in [i for i, (start, end) in enumerate(tokens) if start < span.end and end > span.start]:
            tags[i] = f"{'B' if tokens[i][0] <= span.start else 'I'}-{span.label}"
    return tags


@app.train
def train(data: TrainData, parameters: Hyper, out: ModelDir, progress: Progress) -> None:
    rows = [(clues, tags_of(row.spans, tokens)) for row in data.rows() for tokens, clues in [read(row.sentence)]]
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
    tokens, all_clues = read(features.sentence)
    found: list[tuple[str, float]] = []
    for clues in all_clues:
        found.append(model.best(clues, found[-1][0] if found else "O"))
    spans = from_bio([tag for tag, _ in found], repair=True)
    leads = [min(lead for _, lead in found[span.start : span.end]) for span in spans]
    places = [Span(tokens[span.start][0], tokens[span.end - 1][1], span.label) for span in spans]
    return [Entities.of(features.sentence, places, [100 * math.tanh(lead / 10) for lead in leads])]
