"""Every way in which a job ends: its state, and a message that a person understands."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from mlpkit.training import Job, JobOutcome
from tests.training.conftest import OpenQueue, job, train

SCRIPT = """
import asyncio, ctypes, os, signal, subprocess, sys, threading, time
from mlpkit import App, ModelDir

app = App("it")
bare = app.algorithm("bare")
forks = app.algorithm("forks")
later = app.algorithm("later")
short = app.algorithm("short")
small = app.algorithm("small")
closing = app.algorithm("closing")

class Tee:
    def __init__(self, stream):
        self.write, self.flush = stream.write, stream.flush

@app.train
def train(parameters: dict):
    mode = parameters["mode"]
    if mode == "raise":
        raise ValueError("boom in train")
    if mode == "raise without text":
        raise KeyError
    if mode == "false":
        return False
    if mode == "numpy's false":
        import numpy
        return numpy.float32(0.4) > 0.5
    if mode == "exit":
        sys.exit(3)
    if mode == "os exit":
        os._exit(7)
    if mode == "close descriptors":
        os.closerange(3, 1000)
    if mode == "memory":
        raise MemoryError
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "segfault":
        ctypes.string_at(0)
    if mode == "unicode":
        raise ValueError("训练失败 \\udcff")
    if mode == "own streams":
        sys.stdout, sys.stderr = Tee(sys.stdout), None
        print("written by the tee")
    if mode == "hang at exit":
        threading.Thread(target=time.sleep, args=(60,)).start()
    return parameters.get("value")

@bare.load
def load():
    return None

@forks.train
def train_with_forks(parameters: dict, out: ModelDir):
    child = os.fork()
    if child == 0:
        print("from the child")
        if parameters["child"] == "exits":
            sys.exit(3)
        if parameters["child"] == "raises":
            raise ValueError("boom in the child")
        return False
    _, status = os.waitpid(child, 0)
    (out / "weights").write_text(str(os.waitstatus_to_exitcode(status)))
    if parameters.get("fail"):
        raise ValueError("boom in the parent")

@closing.train
def train_and_close(out: ModelDir):
    (out / "weights").write_text("w")
    os.closerange(3, 1000)

@later.train
async def train_later(parameters: dict):
    await asyncio.sleep(0.01)
    if parameters.get("fail"):
        raise ValueError("boom later")

@short.train(timeout=0.3)
def too_long():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "60"])
    time.sleep(60)

@small.train(memory="150MiB")
def too_large():
    hoard = []
    while True:
        hoard.append(bytearray(b"x") * (20 << 20))
        time.sleep(0.05)
"""

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("raise", "ValueError: boom in train"),
        ("raise without text", "KeyError"),
        ("false", "train returned False"),
        ("numpy's false", "train returned False"),
        ("exit", "SystemExit: 3"),
        ("os exit", "the training process exited with code 7 before train returned"),
        ("close descriptors", "the training process exited with code 1 before train returned"),
        ("memory", "MemoryError: the process could not get more memory"),
        (
            "kill",
            "the training process was killed by SIGKILL (most likely because the machine ran out of memory) "
            "before train returned",
        ),
        ("segfault", "the training process was killed by SIGSEGV before train returned"),
        ("unicode", "ValueError: 训练失败 \\udcff"),
    ],
)
async def test_failure_is_an_error_with_its_reason(open_queue: OpenQueue, mode: str, message: str) -> None:
    async with open_queue(SCRIPT) as queue:
        ended = await train(queue, job("m", mode=mode))

    assert (ended.state, ended.message) == ("error", message)
    assert ended.ended is not None
    assert ended.started is not None
    assert ended.created <= ended.started <= ended.ended


async def test_training_that_closes_all_descriptors_does_not_try_to_store_for_an_hour(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        ended = await train(queue, job("m", "closing"))
        log = queue.log_path("m").read_text()

    assert (ended.state, ended.message) == ("error", "the training process exited with code 1 before train returned")
    assert "the connection to the server was closed, as os.closerange does" in log


async def test_every_value_but_false_is_completed(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        for number, value in enumerate([None, 0, True, "my-own-id"]):
            ended = await train(queue, job(f"m-{number}", mode="return", value=value))
            assert (ended.state, ended.message) == ("completed", "")


@pytest.mark.parametrize(("child", "code"), [("exits", "3"), ("raises", "1"), ("returns", "0")])
async def test_process_that_train_forks_does_not_speak_for_the_job(
    open_queue: OpenQueue, home: Path, child: str, code: str
) -> None:
    async with open_queue(SCRIPT) as queue:
        ended = await train(queue, job("m", "forks", child=child))
        failed = await train(queue, job("f", "forks", child=child, fail=True))
        text = queue.log_path("m").read_text()

    assert (ended.state, ended.message) == ("completed", "")
    assert (home / "storage/ml-platform-model/m/weights").read_text() == code
    assert (failed.state, failed.message) == ("error", "ValueError: boom in the parent")
    assert text.count("from the child") == 1
    assert ("boom in the child" in text) == (child == "raises")
    assert "did not exit" not in text


async def test_process_that_the_script_forks_at_import_does_not_speak_for_the_job(
    open_queue: OpenQueue, home: Path
) -> None:
    script = "import os, sys, time\nfrom mlpkit import App, ModelDir\napp = App('it')\nchild = -1\n"
    script += "if sys.argv[0].endswith(':app'): child = os.fork()\n"
    script += "@app.train\ndef train(out: ModelDir):\n"
    script += "    os.waitpid(child, 0)\n    (out / 'child').write_text(str(child > 0))\n"
    async with open_queue(script) as queue:
        ended = await train(queue, job("m"))

    assert (ended.state, ended.message) == ("completed", "")
    assert (home / "storage/ml-platform-model/m/child").read_text() == "True"


async def test_failed_training_is_a_warning_that_gives_the_reason(open_queue: OpenQueue, lines: io.StringIO) -> None:
    async with open_queue(SCRIPT) as queue:
        await train(queue, job("m", mode="raise"))
        await train(queue, job("n", mode="return"))
        await queue.submit(job("c", mode="hang at exit"))
        await queue.cancel("c")

    ends = [line for line in lines.getvalue().splitlines() if "] of it ended: " in line and " server " in line]
    assert [line.split()[2] for line in ends][:2] == ["WARNING", "INFO"]
    assert ends[0].endswith("job [m] of it ended: error: ValueError: boom in train")
    assert ends[2].split()[2] == "INFO"


async def test_handler_may_put_streams_of_its_own_in_place(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        ended = await train(queue, job("m", mode="own streams"))

        assert (ended.state, ended.message) == ("completed", "")
        assert "written by the tee" in queue.log_path("m").read_text()


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("bare", "algorithm 'bare' has no train function"),
        ("short", "train took longer than its time limit of 0.3 s (timeout=): the process was killed"),
    ],
)
async def test_algorithm_that_cannot_train_is_an_error(open_queue: OpenQueue, algorithm: str, message: str) -> None:
    async with open_queue(SCRIPT) as queue:
        ended = await train(queue, job("m", algorithm))

    assert (ended.state, ended.message) == ("error", message)


async def test_memory_limit_kills_the_process_and_names_the_figures(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        ended = await train(queue, job("m", "small"))

    assert ended.state == "error"
    assert "its limit is 150 MiB (memory=)" in ended.message


async def test_async_handler_is_awaited(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        assert (await train(queue, job("m-1", "later"))).state == "completed"
        assert (await train(queue, job("m-2", "later", fail=True))).message == "ValueError: boom later"


async def test_script_that_cannot_be_imported_is_an_error_with_its_place(
    open_queue: OpenQueue, lines: io.StringIO
) -> None:
    script = "import sys\nfrom mlpkit import App\napp = App('it')\n@app.train\ndef train(): pass\n"
    script += "if sys.argv[0].endswith(':app'): nonsense\n"
    async with open_queue(script) as queue:
        ended = await train(queue, job("m"))

    assert ended.state == "error"
    assert "line 7: the script cannot be imported: NameError" in ended.message


async def test_script_that_takes_too_long_to_import_is_killed(open_queue: OpenQueue) -> None:
    script = "import sys, time\nfrom mlpkit import App\napp = App('it')\n@app.train\ndef train(): pass\n"
    script += "if sys.argv[0].endswith(':app'): time.sleep(60)\n"
    async with open_queue(script, start_timeout=1.0) as queue:
        ended = await train(queue, job("m"))

    expected = "the script was not imported within 1 s (MLPKIT_START_TIMEOUT): the process was killed"
    assert (ended.state, ended.message) == ("error", expected)


async def test_traceback_is_in_the_log_and_begins_with_the_users_frame(
    open_queue: OpenQueue, lines: io.StringIO
) -> None:
    async with open_queue(SCRIPT) as queue:
        await train(queue, job("m", mode="raise"))
        own_log = queue.log_path("m").read_text()

    for text in (own_log, lines.getvalue()):
        assert "ValueError: boom in train" in text
        assert 'in train\n        raise ValueError("boom in train")' in text
        assert "run.py" not in text


async def test_segfault_leaves_the_line_of_the_script_in_the_log(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        await train(queue, job("m", mode="segfault"))
        text = queue.log_path("m").read_text()

    assert "Segmentation fault" in text
    assert re.search(r"training_script_\d+\.py\", line \d+ in train", text)


async def test_process_that_does_not_exit_after_its_outcome_is_killed(
    open_queue: OpenQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpkit.training.process._EXIT_GRACE", 0.3)
    async with open_queue(SCRIPT) as queue:
        ended = await train(queue, job("m", mode="hang at exit"))
        assert ended.state == "completed"
        assert "did not exit within 0.3 s" in queue.log_path("m").read_text()


COMPLETED = JobOutcome("completed")
FAILED = JobOutcome("error", "boom")
STOPPED = JobOutcome("error", "stopped", stopped=True)
EARLY = "a soft cancel asked it to end; the model is what train had made by then"


@pytest.mark.parametrize(
    ("outcome", "soft", "hard", "end"),
    [
        (COMPLETED, False, False, ("completed", "")),
        (COMPLETED, False, True, ("completed", "")),
        (
            COMPLETED,
            True,
            True,
            ("completed", "a soft cancel asked it to end; the model is what train had made by then"),
        ),
        (FAILED, True, True, ("error", "boom")),
        (None, False, True, ("error", "cancelled")),
        (STOPPED, True, True, ("error", "cancelled")),
        (STOPPED, True, False, ("error", "cancelled")),
        (None, True, False, ("error", "cancelled")),
        (STOPPED, False, False, ("init", "")),
        (None, False, False, ("init", "")),
    ],
)
def test_outcome_wins_over_a_cancel_and_a_cancel_over_the_end_of_the_service(
    outcome: JobOutcome | None, soft: bool, hard: bool, end: tuple[str, str]
) -> None:
    ran = Job("m", "it", state="training", attempt=1, cancelling=soft)

    job = ran.after(outcome, cancelled=hard)

    assert (job.state, job.message) == end
    assert job.has_ended == (job.ended is not None)
