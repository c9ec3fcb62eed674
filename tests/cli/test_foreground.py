"""`mlpkit train` in a terminal: bars, Ctrl-C, and the debugger."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import environment_of
from tests.cli.terminal import in_terminal, screen_of, without_escapes

BARS = """
import time
from tqdm import tqdm
from loguru import logger
from mlpkit import App, ModelDir, TrainData

app = App("进度", kind="text_classification")

@app.train
def train(data: TrainData, out: ModelDir):
    print("开始训练")
    for epoch in tqdm(range(3), desc="轮次"):
        for step in tqdm(range(20), desc="批次", leave=False):
            time.sleep(0.02)
        logger.info("轮次 {} 完成", epoch)
    (out / "model.txt").write_text("x")
"""
ROWS = "今天真好\tgood\t1\n" * 2 + "今天很差\tbad\t1\n" * 2


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "bars.py").write_text(BARS, encoding="utf-8")
    (tmp_path / "rows.tsv").write_text(ROWS, encoding="utf-8")
    return tmp_path


def environment(project: Path) -> dict[str, str]:
    return {**environment_of(project / "home", TERM="xterm", LANG="C.UTF-8"), "COLUMNS": "80"}


TRAIN = [sys.executable, "-m", "mlpkit", "train", "bars.py", "--data", "rows.tsv"]


@pytest.mark.untraced
def test_bars_of_tqdm_add_no_lines_to_the_terminal(project: Path) -> None:
    shown = in_terminal(TRAIN, project, environment(project))
    assert shown.code == 0, shown.output
    screen = [line for line in shown.screen if " WARNING " not in line]
    assert screen[0] == "开始训练"
    assert [line.rpartition(" | ")[2] for line in screen[1:4]] == ["轮次 0 完成", "轮次 1 完成", "轮次 2 完成"]
    bar, place = screen[4:]
    assert bar.startswith("进度 ")
    assert "completed" in bar
    # While it ran, each of the two bars had a line, one below the other.
    assert re.search(r"training 轮次 \d/3[^\n]*\n[^\n]*批次 \d+/20", without_escapes(shown.output))
    assert Path(place).is_dir()


@pytest.mark.untraced
def test_ctrl_c_ends_a_training_with_one_line_and_130(project: Path) -> None:
    shown = in_terminal(
        TRAIN, project, environment(project), interrupt_at=lambda output: "批次" in output.partition("轮次 0 完成")[2]
    )
    assert shown.code == 130, shown.output
    assert "Traceback" not in shown.output
    after = shown.screen[next(i for i, line in enumerate(shown.screen) if "轮次 0 完成" in line) + 1 :]
    assert [line for line in after if "轮次 1 完成" not in line] == ["interrupted: no model was stored"]
    stored = [file for file in (project / "home" / "storage").rglob("*") if file.is_file()]
    assert stored == [], "neither a model nor the uploaded data may stay"


HALF = """
import time
from mlpkit import App, ModelDir

app = App("half")

class Half:
    def __init__(self):
        print("waits", flush=True)
        time.sleep(60)
        self.whole = True

    def __del__(self):
        self.whole

@app.train
def train(out: ModelDir):
    Half()
"""


def test_ctrl_c_in_a_constructor_is_one_line_even_if_the_half_object_fails(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(HALF)
    command = [sys.executable, "-m", "mlpkit", "train", "half.py"]
    shown = in_terminal(command, tmp_path, environment(tmp_path), interrupt_at=lambda output: "waits" in output)
    assert shown.code == 130, shown.output
    assert [line for line in shown.screen if line != "waits"] == ["interrupted: no model was stored"]


ROW = """
import time
from mlpkit import App

app = App("row", kind="text_classification")

@app.load
def load(model_id):
    return model_id

@app.features
def features(row):
    waits("features")
    return {"sentence": row.sentence}

@app.predict(BATCH)
def predict(model, features: TYPE):
    waits("predict")

@app.evaluate
def evaluate(pairs):
    waits("evaluate")
    return {"rows": len(list(pairs))}

def waits(where):
    if where == "WHERE":
        print("waits", flush=True)
        time.sleep(10)
"""


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("where", ["features", "predict", "evaluate"])
def test_ctrl_c_ends_an_evaluation_and_is_no_failure_of_a_row(project: Path, where: str, batch: bool) -> None:
    script = ROW.replace("WHERE", where).replace("BATCH", "max_batch_size=8" if batch else "")
    (project / "row.py").write_text(script.replace("TYPE", "list[dict]" if batch else "dict"))
    command = [sys.executable, "-m", "mlpkit", "evaluate", "row.py", "--model", "m", "--data", "rows.tsv"]
    shown = in_terminal(command, project, environment(project), interrupt_at=lambda output: "waits" in output)
    assert shown.code == 130, shown.output
    assert shown.output.replace("^C", "").split() == ["waits"]


CHECKPOINT = """
import os, signal, time
from pathlib import Path
from mlpkit import App, Checkpoint, ModelDir, Progress

app = App("count")

@app.train
def train(checkpoint: Checkpoint, out: ModelDir, progress: Progress):
    file = checkpoint / "count"
    count = int(file.read_text()) if checkpoint.resumed else 0
    print("begins with", count)
    for number in progress.track(range(count, 10), "count", total=10, done=count):
        while number == 6 and Path("wait").exists() and not progress.stopping:
            print("waits")
            time.sleep(0.05)
        file.write_text(str(number + 1))
        checkpoint.save()
    (out / "count").write_text(file.read_text())
"""


@pytest.mark.parametrize("by", ["Ctrl-C", "SIGTERM"])
def test_an_interrupted_training_saves_its_checkpoint_and_continues_later(tmp_path: Path, by: str) -> None:
    (tmp_path / "count.py").write_text(
        CHECKPOINT if by == "Ctrl-C" else CHECKPOINT.replace('print("waits")', "os.kill(os.getpid(), signal.SIGTERM)")
    )
    (tmp_path / "wait").touch()
    command = [sys.executable, "-m", "mlpkit", "train", "count.py", "--model-id", "m"]
    shown = in_terminal(command, tmp_path, environment(tmp_path), interrupt_at=lambda output: "waits" in output)
    assert shown.code == 130, shown.output
    lines = without_escapes(shown.output).replace("\r", "").split("\n")
    assert "add this to the same command to continue: --model-id m --resume-from m" in shown.output, lines
    assert lines[-2] == "interrupted: no model was stored"

    shown = in_terminal([*command, "--resume-from", "m"], tmp_path, environment(tmp_path))
    assert shown.code == 0, shown.output
    assert "begins with 7" in shown.output
    left = [file.name for file in (tmp_path / "home" / "storage").rglob("*") if file.is_file()]
    assert sorted(left) == ["count", "mlpkit.json"]


def test_the_screen_of_the_tests_is_that_of_a_terminal() -> None:
    assert screen_of("one\r\ntwo\r\n\x1b[1A\x1b[2Kthree\r\n") == ["one", "three"]
    assert screen_of("10%\r90%\r\ndone") == ["90%", "done"]
