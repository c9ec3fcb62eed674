"""The workloads: how to make the model, how it answers, what callers send.

W1 a constant · W2 logistic regression on iris, one row · W3 one 512x512x512 float32 product per call, further rows
nearly free · W4 five milliseconds of plain Python · W5 a text of about 1 MiB in, its length out.

Callers send many different bodies, and a new `X-Request-ID` and `traceparent` with each request, as real ones do. W0 is
W1 with the same bytes again and again: one line for comparison with benchmarks that send those.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

LARGEST_BATCH = 32
COMPANY_SECONDS = 0.003
"""How long a peer whose batches wait by the clock may wait for company in W3: about one call of the model."""


def nothing() -> Any:
    return None


def constant(model: Any, batch: list[Any]) -> list[Any]:
    return [[{"label": "a", "score": 100}] for _ in batch]


def regression() -> Any:
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    data = load_iris()
    return LogisticRegression(max_iter=500).fit(data.data, data.target)


def classify(model: Any, batch: list[Any]) -> list[Any]:
    return [float(row.max()) for row in model.predict_proba([each["row"] for each in batch])]


def matrices() -> Any:
    import numpy

    generator = numpy.random.default_rng(0)
    return generator.random((512, 512), dtype="float32"), generator.random((512, 512), dtype="float32")


def product(model: Any, batch: list[Any]) -> list[Any]:
    left, right = model
    value = float((left @ right)[0, 0])
    return [value for _ in batch]


def loop(model: Any, batch: list[Any]) -> list[Any]:
    answers = []
    for _ in batch:
        total = 0
        for number in range(90_000):
            total += number & 3
        answers.append(total)
    return answers


def length(model: Any, batch: list[Any]) -> list[Any]:
    return [len(each["text"]) for each in batch]


WORKLOADS: dict[str, tuple[Callable[[], Any], Callable[[Any, list[Any]], list[Any]]]] = {
    "W0": (nothing, constant),
    "W1": (nothing, constant),
    "W2": (regression, classify),
    "W3": (matrices, product),
    "W4": (nothing, loop),
    "W5": (nothing, length),
}

IDENTICAL = frozenset({"W0"})
"""Workloads whose requests are all the same bytes."""
_VARIETY = 256
_LONGEST = 400
_MEBIBYTE = 1 << 20


def _sentences() -> list[object]:
    """Sentences of 5 to 400 letters, every fourth one in Chinese."""
    chance = random.Random(1)
    words = ("the", "service", "answered", "slowly", "yesterday", "but", "everybody", "liked", "its", "breakfast")
    characters = "我们今天晚上去吃饭吧这家酒店的服务很好房间也干净"
    sentences: list[object] = []
    for number in range(_VARIETY):
        length = chance.randint(5, _LONGEST)
        if number % 4 == 3:
            text = "".join(chance.choice(characters) for _ in range(length // 3 + 1))
        else:
            text = " ".join(chance.choice(words) for _ in range(length // 4 + 1))[:length]
        sentences.append({"sentence": text})
    return sentences


def _rows() -> list[object]:
    """Flowers like those of iris, with one or two decimals."""
    chance = random.Random(2)
    means = (5.8, 3.1, 3.8, 1.2)
    return [{"row": [round(chance.gauss(mean, 0.5), chance.randint(1, 2)) for mean in means]} for _ in range(_VARIETY)]


def _texts() -> list[object]:
    """Texts of 0.9 to 1.1 MiB, the first one of exactly 1 MiB."""
    lengths = (1.0, 0.93, 1.07, 0.9, 1.1, 0.97, 1.03)
    return [{"text": "x" * int(share * _MEBIBYTE)} for share in lengths]


FEATURES: dict[str, list[object]] = {
    "W0": [{"sentence": "a sentence of a few words"}],
    "W1": _sentences(),
    "W2": _rows(),
    "W3": _rows(),
    "W4": _sentences(),
    "W5": _texts(),
}
"""The `features` of a workload's requests, which are sent in turn."""

MARKS = {"W0": b"label", "W1": b"label", "W2": b"0.", "W3": b".", "W4": b"135000", "W5": b"1048576"}
"""A part of every right answer to the first request, whatever shape a peer gives it."""
