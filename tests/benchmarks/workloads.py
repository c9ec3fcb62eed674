"""The workloads: a function that makes the model, and one that answers a batch of `features`.

W1 a constant · W2 logistic regression on iris, one row · W3 one 512x512x512 float32 product a call, further rows nearly
free · W4 five milliseconds of plain Python · W5 a text of 1 MiB in, its length out.
"""

from __future__ import annotations

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
    "W1": (nothing, constant),
    "W2": (regression, classify),
    "W3": (matrices, product),
    "W4": (nothing, loop),
    "W5": (nothing, length),
}

FEATURES: dict[str, object] = {
    "W1": {"sentence": "a sentence of a few words"},
    "W2": {"row": [5.1, 3.5, 1.4, 0.2]},
    "W3": {"row": [1.0, 2.0, 3.0, 4.0]},
    "W4": {"sentence": "x"},
    "W5": {"text": "x" * (1 << 20)},
}

MARKS = {"W1": b"label", "W2": b"0.9", "W3": b".", "W4": b"135000", "W5": b"1048576"}
"""What stands in every right answer, whatever shape a peer gives it."""
