"""An algorithm that uses every path that a request can bring: to data, to models, to what stands beside the data."""

from __future__ import annotations

from typing import Any

import msgspec
from loguru import logger

from mlpkit import App, ModelDir, Storage, TrainData

app = App("filing")


class Where(msgspec.Struct):
    """The request's `features`: an object of the store to read, or a file of the model."""

    path: str = ""
    file: str = ""


@app.train
def train(data: TrainData, out: ModelDir) -> None:
    (out / "data").write_bytes(data.path.read_bytes())
    for path in (data.dictionary(), data.extra(), data.pretrained()):
        if path is not None:
            (out / "more").write_bytes(path.read_bytes())


@app.load
def load(files: ModelDir) -> ModelDir:
    logger.info("loading {}", files.path)
    return files


@app.predict
def predict(model: Any, features: Where, storage: Storage) -> str:
    if features.file:
        found: str = (model / features.file).read_text()
        return found
    return storage.fetch(features.path).read_text()
