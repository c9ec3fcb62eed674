"""The optional hooks:   python -m mlpkit run examples/custom_hooks.py:app

A glossary per team: training keeps the terms, predictions look them up. It has
ids and a status of its own, protects some models from deletion, and has
dependencies per call and per process.
"""

import sqlite3
import time
import unicodedata
import uuid
from collections.abc import Iterator
from typing import Annotated

import msgspec

from mlpkit import App, Depends, Log, ModelDir, Storage

MODELS = "ml-platform-model"

app = App("glossary", examples=[{"term": "GPU"}])

Name = Annotated[str, msgspec.Meta(pattern="^[a-z]{1,20}$")]


class Terms(msgspec.Struct):  # the request's `parameter`
    terms: Annotated[dict[str, str], msgspec.Meta(min_length=1)]


class Owner(msgspec.Struct):  # the request's `extend`
    team: Name = "everyone"


class Question(msgspec.Struct):  # the request's `features`
    term: str


def tables() -> Iterator[sqlite3.Connection]:
    """One database in memory per process, closed when the process stops."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("create table used (model_id text, term text)")
    yield connection
    connection.close()


def stopwatch(log: Log) -> Iterator[float]:
    """When the call began; what follows the `yield` runs after the call."""
    began = time.perf_counter()
    yield began
    log.debug("took {:.3f} ms", (time.perf_counter() - began) * 1000)


Tables = Annotated[sqlite3.Connection, Depends(tables, scope="process")]
Began = Annotated[float, Depends(stopwatch)]


def fold(term: str) -> str:
    return unicodedata.normalize("NFKC", term).casefold()


@app.model_id
def model_id(extend: Owner) -> str:
    return f"{extend.team}-{uuid.uuid4().hex[:12]}"


@app.train
def train(parameters: Terms, out: ModelDir) -> None:
    folded = {fold(term): meaning for term, meaning in parameters.terms.items()}
    (out / "terms.json").write_bytes(msgspec.json.encode(folded))


@app.load(warm_up=False)  # The examples must not count as questions.
def load(files: ModelDir) -> dict[str, str]:
    content = (files / "terms.json").read_bytes()
    return msgspec.json.decode(content, type=dict[str, str])


@app.predict
def predict(
    model: dict[str, str],
    features: Question,
    model_id: str,
    used: Tables,
    began: Began,
) -> dict[str, object]:
    term = fold(features.term)
    used.execute("insert into used values (?, ?)", (model_id, term))
    question = "select count(*) from used where model_id = ? and term = ?"
    (count,) = used.execute(question, (model_id, term)).fetchone()
    return {"meaning": model.get(term), "asked": count}


@app.unload
def unload(model: dict[str, str], model_id: str, log: Log) -> None:
    log.info("{} terms of {} are no longer served here", len(model), model_id)


@app.status
def status(model_id: str, default: str, storage: Storage) -> str:
    """A glossary that another service made is completed here too."""
    is_stored = storage.exists(f"{MODELS}/{model_id}/terms.json")
    return "completed" if default == "unknown" and is_stored else default


@app.delete
def delete(model_id: str, storage: Storage, log: Log) -> None:
    if model_id.startswith("archive-"):
        raise PermissionError("a glossary of the archive cannot be deleted")
    count = storage.delete(f"{MODELS}/{model_id}/", recursive=True)
    log.info("{} objects deleted", count)
