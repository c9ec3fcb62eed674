"""Does whatever harm a test orders: in a load, in a predict, in a batch, in a training, at the start of a worker.

What a load, a delete or a start does stands in the folder `FAULTS_FOLDER`, in the files `load <model_id>`,
`delete <model_id>` and `start`; what a predict or a train does comes with the request.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil

from mlpkit import App, Progress

FOLDER = Path(os.environ["FAULTS_FOLDER"])
WEIGHTS = {"big": 200_000_000, "huge": 500_000_000}
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"

app = App("faulty")
batches = app.algorithm("batches")
hasty = app.algorithm("hasty")
queued = app.algorithm("queued")
alone = app.algorithm("alone")
greedy = app.algorithm("greedy")
again = app.algorithm("again")
twins = app.algorithm("twins")
careful = app.algorithm("careful")


class Order(msgspec.Struct):
    """The request's `features`: what to do, for how long, and a text to answer with."""

    do: str = ""
    seconds: float = 0.0
    say: str = ""


class Work(msgspec.Struct):
    """The request's `parameter`: what to do until the file `go` is there."""

    do: str = ""


def note(file: str, *words: object) -> None:
    with (FOLDER / file).open("a") as notes:
        print(*words, file=notes)


def hold_the_gil() -> None:
    """Sleeps in C code with the interpreter locked and SIGTERM blocked: no Python runs in this process any more."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ctypes.PyDLL(None).sleep(600)


def leave_the_channel() -> None:
    """Hangs up on the server, and goes on living."""
    channel = socket.socket(fileno=os.dup(int(sys.argv[1])))
    channel.shutdown(socket.SHUT_RDWR)
    hold_the_gil()


def obey(do: str) -> None:
    match do:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "hold":
            hold_the_gil()
        case "leave":
            leave_the_channel()
        case "allocate":
            b"x" * (2 << 30)
        case "raise":
            raise RuntimeError("as it was ordered")


@app.on_start
def start() -> None:
    note("starts", time.monotonic())
    if (FOLDER / "start").exists():
        os._exit(7)


@app.load
@batches.load
@hasty.load
@queued.load
@alone.load(isolated=True)
@twins.load(isolated=True, replicas=2)
@greedy.load(memory="500TiB")
def load(model_id: str) -> dict[str, object]:
    note("loads", model_id)
    order = FOLDER / f"load {model_id}"
    if order.exists():
        do, _, seconds = order.read_text().partition(" ")
        time.sleep(float(seconds or 0))
        obey(do)
    return {"model_id": model_id, "weight": b"x" * WEIGHTS.get(model_id.partition("-")[0], 0)}


@careful.load(memory=int(os.environ.get("FAULTS_MEMORY", "1")))
def load_alone(model_id: str) -> dict[str, object]:
    note("careful", model_id, time.monotonic())
    time.sleep(0.3)
    return {"model_id": model_id}


@app.predict(threads=4)
@hasty.predict(timeout=1)
@queued.predict
@alone.predict
@twins.predict
@careful.predict
def predict(model: dict[str, object], features: Order) -> object:
    if features.say:
        note("predictions", features.say)
    time.sleep(features.seconds)
    obey(features.do)
    return {"model_id": model["model_id"], "pid": os.getpid(), "say": features.say}


@batches.predict(max_batch_size=4)
def predict_batch(model: dict[str, object], features: list[Order]) -> list[object]:
    note("batches", *(each.say for each in features))
    return [predict(model, each) for each in features]


@app.delete
def delete(model_id: str) -> None:
    order = FOLDER / f"delete {model_id}"
    note("deletes", model_id, "begins")
    time.sleep(float(order.read_text()) if order.exists() else 0)
    note("deletes", model_id, "ends")


def count(model_id: str) -> None:
    """Notes that the job begins and ends, and where another process still runs it."""
    file = FOLDER / f"runs {model_id}"
    for pid in file.read_text().split() if file.exists() else ():
        # One that has ended and that nobody has collected is still a process, and runs nothing.
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE:
                note("twice", model_id, pid)
    note(file.name, os.getpid())
    time.sleep(0.05)


@app.train
@again.train(max_attempts=2)
def train(model_id: str, parameters: Work, progress: Progress) -> None:
    progress.update(begun=1)
    if parameters.do == "count":
        count(model_id)
    elif parameters.do != "nothing":
        with subprocess.Popen([sys.executable, "-c", STUBBORN]) as started:
            note(f"train {model_id}", os.getpid(), started.pid)
            try:
                obey(parameters.do)
                while not (FOLDER / "go").exists() and not (FOLDER / f"go {model_id}").exists():
                    time.sleep(0.02)
            finally:
                started.kill()
