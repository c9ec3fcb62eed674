"""Work that waits until a file is there, so that a test decides what happens when.

In the folder that the test names, each `train` writes its process id and that of a process that it has started into
`<model_id>.pids`, each `load` writes a line into `loads`, each batch its size into `batches`; then they wait for
`go-train`, `go-load` and `go-predict`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from loguru import logger

from mlpkit import App, Log, ModelDir

app = App("patient")
hasty = app.algorithm("hasty")
batched = app.algorithm("batched")


class Meeting(msgspec.Struct):
    """The request's `parameter`, and the `features` of a batch."""

    folder: str


class Word(msgspec.Struct):
    """The request's `features`."""

    word: str


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.02)


def work(model_id: str, folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as started:
        with (folder / f"{model_id}.pids").open("a") as pids:
            print(os.getpid(), started.pid, file=pids)
        wait_for(folder / "go-train")
        started.kill()


@app.train(max_attempts=2)
def train(model_id: str, parameters: Meeting, out: ModelDir, log: Log) -> None:
    log.info("a line of train")
    work(model_id, Path(parameters.folder))
    (out / "folder.txt").write_text(parameters.folder)


@hasty.train(timeout=1)
def train_hasty(model_id: str, parameters: Meeting) -> None:
    work(model_id, Path(parameters.folder))


@app.load
def load(files: ModelDir, model_id: str) -> Path:
    folder = Path((files / "folder.txt").read_text())
    logger.info("a line of load")
    with (folder / "loads").open("a") as loads:
        print(model_id, file=loads)
    wait_for(folder / "go-load")
    return folder


@app.predict
def predict(model: Path, features: Word) -> str:
    print("a line of predict")
    return features.word.upper()


@batched.load
def load_batched() -> None:
    return None


@batched.predict(max_batch_size=32)
def predict_batched(model: None, features: list[Meeting]) -> list[int]:
    folder = Path(features[0].folder)
    with (folder / "batches").open("a") as batches:
        print(len(features), file=batches)
    wait_for(folder / "go-predict")
    return [len(features)] * len(features)
