"""Algorithms to look at on the page: typed ones of several kinds, a training that writes hostile text, and a stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from mlpkit import App, Progress, TrainData
from mlpkit.formats import Argument, Cluster, Entities, Label, Predicate, Relation, Span

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1> \x1b[31mred\x1b[0m \u202egnp.exe"

app = App("labels", kind="text_classification", examples=[{"sentence": "味道很好"}])
names = App("names", kind="text_sequence_labeling", examples=[{"sentence": "😀李华住在杭州。"}])
talk = App("talk", kind="text_generation")
rows = App("rows", kind="text_classification")
links = App("links", kind="relation_extraction", examples=[{"sentence": "李华住在杭州。"}])
groups = App("groups", kind="text_cluster")
free = App("free")


class Hyper(msgspec.Struct):
    """How to train."""

    steps: Annotated[int, msgspec.Meta(ge=1, le=500, description="How many steps.")] = 3
    mode: Literal["fine", "stuck", "hostile"] = "fine"


class Sentence(msgspec.Struct):
    sentence: Annotated[str, msgspec.Meta(min_length=1)]
    count: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1


def waits_for_ever() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


@app.train
def train(parameters: Hyper, progress: Progress) -> None:
    for step in progress.track(range(parameters.steps), "fit"):
        progress.update(loss=1 / (step + 1), val_loss=1.2 / (step + 1))
        time.sleep(0.12)
    if parameters.mode == "stuck":
        print("it waits now", flush=True)
        waits_for_ever()
    if parameters.mode == "hostile":
        progress.update(message=HOSTILE, **{HOSTILE: 1.0})
        print(HOSTILE)
        print("x" * 1_000_000)
        raise ValueError(HOSTILE)


@rows.train
def train_rows(data: TrainData) -> None:
    print(f"{sum(1 for _ in data.rows())} rows were read")


@app.load
@names.load
@talk.load
@rows.load
@links.load
@groups.load
@free.load
def load() -> str:
    return "a model"


@app.predict
def predict(features: Sentence) -> list[Label]:
    return [Label("好评", 65.0), Label(HOSTILE, 35.0)]


@names.predict
def predict_names(features: dict[str, Any]) -> list[Entities]:
    return [Entities.of(features["sentence"], [Span(1, 3, "PER"), Span(5, 7, "LOC")])]


@talk.predict
def predict_talk(features: dict[str, str]) -> Iterator[str]:
    """Says the second half of its text only when a file is there.

    With `left` it goes on until it is closed, and makes this file then.
    """
    yield "Once"
    end = time.monotonic() + 120
    while not Path(features["file"]).exists() and time.monotonic() < end:
        time.sleep(0.05)
    yield " upon a time"
    try:
        while "left" in features and time.monotonic() < end:
            time.sleep(0.05)
            yield "."
    except GeneratorExit:
        Path(features["left"]).touch()
        raise


@rows.predict
def predict_rows(features: Sentence) -> list[Label]:
    return [Label("a", 100.0)]


@links.predict
def predict_links(features: Sentence) -> list[Relation]:
    return [Relation(Argument("李华", 0, 2, "PER"), Predicate("住在"), Argument(HOSTILE, 4, 6, "LOC"), 87.5)]


@groups.predict
def predict_groups(features: dict[str, Any]) -> list[Cluster]:
    return [Cluster("退货", ["怎么退货", "我要退货"], 92.0), Cluster(HOSTILE, ["x" * 200])]


@free.predict
def predict_free(features: dict[str, Any]) -> Any:
    """Answers what it is told; with `times`, a text that often."""
    answer = msgspec.json.decode(features["json"])
    return answer * features["times"] if "times" in features else answer


both = App("both").include(app, names, talk, rows, links, groups)
parts = App("parts").include(talk, free)
