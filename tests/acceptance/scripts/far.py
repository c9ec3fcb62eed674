"""Work for the nodes of a cluster. Each job says in `<folder>/<model_id>.pids` that it runs, and waits for `go`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from mlpkit import App, Checkpoint, ModelDir, Progress

app = App("far")
quick = app.algorithm("quick")
saving = app.algorithm("saving")
two_gpus = app.algorithm("two_gpus")
nine_gpus = app.algorithm("nine_gpus")
stuck = app.algorithm("stuck")
large = app.algorithm("large")


class Meeting(msgspec.Struct):
    """The request's `parameter`."""

    folder: str


def tell(model_id: str, folder: str, text: str = "") -> None:
    with Path(folder, f"{model_id}.pids").open("a") as file:
        print(os.getpid(), text, file=file)


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.02)


@app.train(max_attempts=2)
def train(model_id: str, parameters: Meeting, progress: Progress, out: ModelDir) -> None:
    progress.update(0.5, "half")
    print("a line of train")
    tell(model_id, parameters.folder)
    wait_for(Path(parameters.folder, "go"))
    (out / "weights").write_text(model_id)


@app.load
def load(files: ModelDir) -> str:
    return (files / "weights").read_text()


@app.predict
def predict(model: str, features: dict[str, str]) -> str:
    return model


@quick.train
def train_quick(model_id: str, parameters: Meeting, out: ModelDir) -> None:
    tell(model_id, parameters.folder)
    (out / "weights").write_text(model_id)


@saving.train(max_attempts=3)
def train_saving(model_id: str, parameters: Meeting, checkpoint: Checkpoint, out: ModelDir) -> None:
    step = int((checkpoint / "step").read_text()) if checkpoint.resumed else 0
    tell(model_id, parameters.folder, f"from {step}")
    while step < 3:
        step += 1
        (checkpoint / "step").write_text(str(step))
        checkpoint.save(now=True)
        if step == 2:
            tell(model_id, parameters.folder, "saved")
            wait_for(Path(parameters.folder, "go"))
    (out / "weights").write_text(model_id)


@two_gpus.train(gpus=2)
def train_two(model_id: str, parameters: Meeting) -> None:
    tell(model_id, parameters.folder, os.environ.get("CUDA_VISIBLE_DEVICES", "none"))


@nine_gpus.train(gpus=9)
def train_nine(model_id: str, parameters: Meeting) -> None:
    tell(model_id, parameters.folder)


@stuck.train
def train_stuck(model_id: str, parameters: Meeting) -> None:
    tell(model_id, parameters.folder)
    # One call of C code, which holds the interpreter and looks at no signal.
    sum(range(10**15))


@large.train(memory="64GiB")
def train_large(model_id: str, parameters: Meeting) -> None:
    tell(model_id, parameters.folder)
