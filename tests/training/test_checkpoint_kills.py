"""Two trainings, killed ten times at random: their parameters are, bit for bit, those of undisturbed trainings."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlpkit.settings import load_settings
from mlpkit.storage import open_storage
from tests.servers import LONG, wait_until
from tests.training.conftest import WriteScript

KILLS = 10
SCRIPT = '''
import json, os, time
from pathlib import Path
import numpy as np
from mlpkit import App, Checkpoint, ModelDir, Progress

app = App("net")
words = app.algorithm("words")

def begins(parameters, model_id, step):
    with open(Path(parameters["folder"]) / f"{model_id}.begun", "a") as begun:
        print(os.getpid(), step, file=begun)

def wait_for_kills(parameters, step, steps):
    """The last step waits until all kills have been, so that no training ends before."""
    while step == steps - 1 and not (Path(parameters["folder"]) / "finish").exists():
        time.sleep(0.01)

@app.train(max_attempts=100)
def train(parameters: dict, model_id: str, checkpoint: Checkpoint, out: ModelDir, progress: Progress):
    """As a loop of PyTorch: a network, an optimizer with momentum, a generator of random batches."""
    steps = parameters["steps"]
    random = np.random.default_rng(7)
    inputs = random.normal(size=(500, 8))
    wanted = np.sin(inputs.sum(axis=1, keepdims=True))
    state = {"first": random.normal(size=(8, 16)) / 4, "second": random.normal(size=(16, 1)) / 4}
    state |= {f"{name} moment": np.zeros_like(value) for name, value in state.items()}
    step = 0
    if checkpoint.resumed:
        with np.load(checkpoint / "state.npz") as saved:
            state = {name: saved[name] for name in state}
        kept = json.loads((checkpoint / "more.json").read_text())
        random.bit_generator.state = kept["random"]
        step = kept["step"]
    begins(parameters, model_id, step)
    for step in progress.track(range(step, steps), "fit", total=steps, done=step):
        wait_for_kills(parameters, step, steps)
        batch = random.integers(0, len(inputs), 32)
        hidden = np.tanh(inputs[batch] @ state["first"])
        error = hidden @ state["second"] - wanted[batch]
        gradients = {
            "second": hidden.T @ error / 32,
            "first": inputs[batch].T @ ((error @ state["second"].T) * (1 - hidden**2)) / 32,
        }
        for name, gradient in gradients.items():
            state[f"{name} moment"] = 0.9 * state[f"{name} moment"] + gradient
            state[name] = state[name] - 0.05 * state[f"{name} moment"]
        np.savez(checkpoint / "state.npz", **state)
        kept = {"step": step + 1, "random": random.bit_generator.state}
        (checkpoint / "more.json").write_text(json.dumps(kept))
        checkpoint.save()
    np.savez(out / "model.npz", **state)

@words.train(max_attempts=100)
def train_words(parameters: dict, model_id: str, checkpoint: Checkpoint, out: ModelDir, progress: Progress):
    """scikit-learn's `partial_fit`, with a seed of its own for each step."""
    import joblib
    from sklearn.linear_model import SGDClassifier

    # scikit-learn is imported for longer than a kill waits, so the network is further by then.
    steps = max(40, parameters["steps"] // 25)
    random = np.random.default_rng(5)
    inputs = random.normal(size=(400, 6))
    wanted = (inputs.sum(axis=1) > 0).astype(int)
    model = SGDClassifier(loss="log_loss", random_state=3)
    step = 0
    if checkpoint.resumed:
        step, model = joblib.load(checkpoint / "state.joblib")
    begins(parameters, model_id, step)
    for step in progress.track(range(step, steps), "fit", total=steps, done=step):
        wait_for_kills(parameters, step, steps)
        batch = np.random.default_rng([5, step]).integers(0, len(inputs), 32)
        model.partial_fit(inputs[batch], wanted[batch], classes=[0, 1])
        joblib.dump((step + 1, model), checkpoint / "state.joblib")
        checkpoint.save()
    np.savez(out / "model.npz", coefficients=model.coef_, intercept=model.intercept_, steps=model.t_)
'''
SERVICE = """
import asyncio, json, sys
from pathlib import Path
from mlpkit.log import configure
from mlpkit.script import import_app
from mlpkit.settings import load_settings
from mlpkit.training import Job, TrainingQueue

async def main(home, target, folder, period, steps, *ids):
    settings = load_settings().with_options(home=Path(home), checkpoint_period=float(period), train_task_num=2)
    queue = TrainingQueue(import_app(target).build(), target, settings, configure(stream=sys.stderr))
    await queue.open()
    for name in ids:
        parameters = json.dumps({"folder": folder, "steps": int(steps)})
        await queue.submit(Job(name, name.partition("-")[0], parameters=parameters))
    print("open", flush=True)
    while sum(queue.counts().values()):
        await asyncio.sleep(0.05)
    await queue.close()

asyncio.run(main(*sys.argv[1:]))
"""


@dataclass(frozen=True)
class Course:
    """How long the trainings are, and the longest wait before a kill; `environment` names the store."""

    steps: int
    longest_wait: float
    environment: dict[str, str]


@pytest.fixture(params=["folder", "S3"])
def course(request: pytest.FixtureRequest) -> Course:
    if request.param == "folder":
        return Course(1500, 0.4, {})
    # Each checkpoint takes a dozen requests.
    return Course(150, 1.5, request.getfixturevalue("s3").environment)


@contextmanager
def service(
    home: Path, target: str, folder: Path, period: float, course: Course, *ids: str
) -> Iterator[subprocess.Popen[str]]:
    """A process that owns a queue, once it has accepted the jobs; killed at the end, if it has not ended."""
    command = [sys.executable, "-c", SERVICE, str(home), target, str(folder), str(period), str(course.steps), *ids]
    environment = {**os.environ, **course.environment}
    with (home.parent / "service.log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        with process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "open\n", (home.parent / "service.log").read_text()
                yield process
            finally:
                process.kill()


def begun(folder: Path, model_id: str) -> list[tuple[int, int]]:
    """The process and the first step of each attempt."""
    file = folder / f"{model_id}.begun"
    text = file.read_text() if file.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [(int(pid), int(step)) for pid, step in map(str.split, lines)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trainings_killed_ten_times_make_the_models_of_undisturbed_ones(
    write_script: WriteScript, home: Path, tmp_path: Path, course: Course
) -> None:
    target = write_script(SCRIPT)
    chance = random.Random(2026)
    ids = ["net-killed", "words-killed"]
    kills = 0
    while kills < KILLS:
        with service(home, target, tmp_path, 0, course, *([] if kills else ids)) as running:
            # Twice the processes of the jobs, then the service itself.
            for victim in ("jobs", "jobs", "service"):
                for model_id in ids:
                    at_least = kills + 1
                    wait_until(lambda: len(begun(tmp_path, model_id)) >= at_least, "the attempt begins")  # noqa: B023
                time.sleep(chance.uniform(0, course.longest_wait))
                if victim == "service":
                    running.kill()
                else:
                    for model_id in ids:
                        os.kill(begun(tmp_path, model_id)[-1][0], signal.SIGKILL)
                kills += 1
                if kills == KILLS:
                    break
            running.kill()
    (tmp_path / "finish").touch()
    with service(home, target, tmp_path, 0, course) as running:
        assert running.wait(LONG) == 0
    with service(home, target, tmp_path, 3600, course, "net-undisturbed", "words-undisturbed") as running:
        assert running.wait(LONG) == 0

    storage = open_storage(load_settings({**course.environment, "MLPKIT_HOME": str(home)}, None))
    for algorithm in ("net", "words"):
        steps = [step for _, step in begun(tmp_path, f"{algorithm}-killed")]
        print(algorithm, "began at", steps)
        assert len(steps) >= KILLS
        assert steps == sorted(steps)
        assert steps[-1] > 0
        models = [f"ml-platform-model/{algorithm}-{how}" for how in ("killed", "undisturbed")]
        killed, undisturbed = [storage.fetch(f"{model}/model.npz").read_bytes() for model in models]
        assert killed == undisturbed
        left = [stat.path.removeprefix(f"{models[0]}/") for stat in storage.list(f"{models[0]}/")]
        assert left == ["mlpkit.json", "model.npz"]
    storage.close()
