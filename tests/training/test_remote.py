"""A job on another machine: its folder travels without secrets, and all that it says arrives once, in order."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path

import pytest

from mlpkit.errors import SettingsError
from mlpkit.settings import Settings
from mlpkit.training import remote
from mlpkit.training.engine import ENGINES
from mlpkit.training.remote import pack_code
from tests.training.conftest import OpenQueue, end_of, job, reached, train

pytestmark = pytest.mark.anyio

SCRIPT = """
import os, time
from pathlib import Path
from mlpkit import App, ModelDir, Progress

app = App("it")

@app.train
def train(model_id: str, parameters: dict, progress: Progress, out: ModelDir):
    for number in range(parameters.get("lines", 0)):
        print(f"line {number}")
        progress.update(number / 10_000, count=number)
    progress.update(0.5, here=os.getcwd())
    while "go" in parameters and not Path(parameters["go"]).exists():
        time.sleep(0.01)
    if parameters.get("fail"):
        raise ValueError("boom")
    (out / "weights").write_text(model_id)
"""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The engine `remote`; the temporary folder of its machine."""
    monkeypatch.setitem(ENGINES, "remote", "tests.training.remote_engine:RemoteEngine")
    folder = tmp_path / "machine"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


async def test_what_a_job_says_arrives_once_and_in_order(open_queue: OpenQueue, elsewhere: Path, home: Path) -> None:
    async with open_queue(SCRIPT, engine="remote") as queue:
        ended = await train(queue, job("a", lines=500))
        assert (ended.state, ended.message) == ("completed", "")
        assert ended.progress is not None
        assert ended.progress.metrics["count"] == 499
        said = [line.rpartition(" ")[2] for line in queue.log_path("a").read_text().splitlines() if "| line " in line]
        assert said == [str(number) for number in range(500)]
        failed = await train(queue, job("b", fail=True))
        assert failed.message == "ValueError: boom"
        assert "Traceback" in queue.log_path("b").read_text()

    assert (home / "storage/ml-platform-model/a/weights").read_text() == "a"


async def test_a_job_leaves_nothing_on_its_machine(open_queue: OpenQueue, elsewhere: Path, tmp_path: Path) -> None:
    async with open_queue(SCRIPT, engine="remote") as queue:
        await queue.submit(job("a", go=str(tmp_path / "never")))
        running = await reached(queue, "a", lambda each: each.progress is not None and "here" in each.progress.metrics)
        assert running.progress is not None
        assert str(running.progress.metrics["here"]).startswith(str(elsewhere))
        assert "in train" in await queue.stack("a")
        usage = await queue.usage("a")
        assert usage is not None
        assert usage.memory > 0

        assert (await queue.cancel("a")).message == "cancelled"

        with pytest.raises(ProcessLookupError):
            os.kill(usage.pid, 0)
        assert (await train(queue, job("b"))).state == "completed"
    assert left_on(elsewhere) == []


async def test_the_log_of_a_job_keeps_its_limit(open_queue: OpenQueue, elsewhere: Path) -> None:
    async with open_queue(SCRIPT, engine="remote", job_log_size=3000) as queue:
        assert (await train(queue, job("a", lines=500))).state == "completed"
        log = queue.log_path("a").read_text()

    assert len(log) < 4000
    assert "more lines" in log
    assert "a job holds 3,000 bytes" in log


async def test_a_machine_without_disk_space_is_an_error_of_the_job(
    open_queue: OpenQueue, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc/nothing")
    async with open_queue(SCRIPT, engine="remote") as queue:
        await queue.submit(job("a"))
        ended = await end_of(queue, "a")

    assert ended.message.startswith(f"the job could not be started on {os.uname().nodename}: ")


def left_on(machine: Path) -> list[str]:
    """The folders of jobs."""
    return [each.name for each in machine.glob("*/job-*")]


def packed(target: str, home: Path) -> tuple[str, list[str]]:
    """The target, and the files that travel."""
    code = pack_code(target, Settings(home=home))
    return code.target, zipfile.ZipFile(io.BytesIO(code.archive)).namelist()


def test_secrets_and_what_python_makes_stay_here(tmp_path: Path) -> None:
    files = ("script.py", "words.txt", "helpers/__init__.py", "helpers/text.py")
    others = (
        *(".env", "prod.env", ".git/config", ".mlpkit/jobs.db", "__pycache__/script.cpython-311.pyc"),
        *("home/jobs.db", "venv/pyvenv.cfg", "venv/lib/x.py", "node_modules/x.js"),
    )
    for name in (*files, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    assert packed(f"{tmp_path}/script.py:app", tmp_path / "home") == ("script.py:app", sorted(files, key=_depth))


def _depth(name: str) -> tuple[int, str]:
    return name.count("/"), name


def test_a_script_in_a_package_travels_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far_away").mkdir()
    for name in ("__init__.py", "script.py"):
        (tmp_path / "far_away" / name).write_text("")
    expected = ["far_away/__init__.py", "far_away/script.py"]
    assert packed(f"{tmp_path}/far_away/script.py:app", tmp_path) == ("far_away/script.py:app", expected)

    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("far_away.script")
    try:
        assert packed("far_away.script:app", tmp_path) == ("far_away.script:app", expected)
    finally:
        for name in ("far_away", "far_away.script"):
            del sys.modules[name]


def test_an_installed_script_does_not_travel(tmp_path: Path) -> None:
    assert pack_code("pytest:app", Settings(home=tmp_path)).archive == b""


def test_a_folder_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LARGEST_FOLDER", 1 << 20)
    (tmp_path / "script.py").write_text("")
    (tmp_path / "data.bin").write_bytes(bytes(2 << 20))

    with pytest.raises(SettingsError, match=rf"the folder of the script, {tmp_path}, .* at most 1 MiB"):
        pack_code(f"{tmp_path}/script.py:app", Settings(home=tmp_path / "home"))
