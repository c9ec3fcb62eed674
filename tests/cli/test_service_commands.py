"""The commands around a running service: `run`, with `--reload` too, `jobs` and `models`."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlpkit.cli.run import is_source
from mlpkit.client import Client
from mlpkit.errors import TrainFailed
from tests.cli.conftest import Run, environment_of
from tests.cli.terminal import in_terminal
from tests.servers import LONG, free_port, wait_until


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Client]]:
    """`mlpkit run mood.py` in the folder, ready."""
    port = free_port()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlpkit", "run", "mood.py", "--port", str(port), "--workers", "1", *options],
            cwd=folder,
            env=environment_of(folder / "home", MLPKIT_SHUTDOWN_GRACE="1"),
            stdout=log,
            stderr=log,
        )
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            wait_until(lambda: client.ready().ready or process.poll() is not None, "the service is ready")
            assert process.poll() is None, (folder / "log").read_text()
            yield process, client
    finally:
        process.terminate()
        process.wait(LONG)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_with_0_when_it_is_told_to(folder: Path, number: signal.Signals) -> None:
    with serving(folder) as (process, _):
        process.send_signal(number)
        assert process.wait(LONG) == 0
    assert "Traceback" not in (folder / "log").read_text()


def test_a_port_in_use_is_said_plainly(folder: Path, mlpkit: Run) -> None:
    with serving(folder) as (_, client):
        ended = mlpkit("run", "mood.py", "--port", client.url.rpartition(":")[2], MLPKIT_HOME=str(folder / "other"))
    assert (ended.returncode, "is the port in use" in ended.stderr) == (2, True), ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr


def test_jobs_and_models_show_what_the_service_does(folder: Path, mlpkit: Run) -> None:
    with serving(folder) as (_, client):
        assert "no jobs" in mlpkit("jobs", "--url", client.url).stdout
        job = client.train("mood", parameters={"steps": 2})
        job.wait(LONG)
        client.load("mood", job.model_id)
        jobs, models = mlpkit("jobs", "--url", client.url), mlpkit("models", "--url", client.url)
        listed = json.loads(mlpkit("jobs", "--url", client.url, "--json").stdout)
    assert job.model_id in jobs.stdout
    assert "completed" in jobs.stdout
    assert job.model_id in models.stdout
    assert listed[0]["model_id"] == job.model_id


def test_jobs_are_readable_in_a_narrow_terminal_and_in_a_pipe(folder: Path, mlpkit: Run) -> None:
    with serving(folder) as (_, client):
        completed = client.train("mood", parameters={"steps": 2})
        completed.wait(LONG)
        failed = client.train("mood", parameters={"fail": "数据里没有标签"})
        with pytest.raises(TrainFailed):
            failed.wait(LONG)
        client.load("mood", completed.model_id)
        environment = environment_of(folder / "home")
        del environment["COLUMNS"]
        command = [sys.executable, "-m", "mlpkit", "jobs", "--url", client.url]
        narrow = in_terminal(command, folder, environment, columns=80).screen
        wide = in_terminal(command, folder, environment, columns=160).screen
        models = in_terminal([*command[:3], "models", *command[4:]], folder, environment, columns=80).screen
        piped = mlpkit("jobs", "--url", client.url, COLUMNS="80").stdout.splitlines()
    for lines in (narrow, wide, models, piped):
        for word in ("completed", "error"):
            assert not any(line.startswith(word[3:]) or line.endswith(word[:-2]) for line in lines), lines
    # Id and details have a line each, and the reason of the failure follows.
    assert narrow[0] == failed.model_id
    assert re.fullmatch(r"  mood  error  \d\d:\d\d:\d\d  [\d.]+ s", narrow[1]), narrow
    assert narrow[2] == completed.model_id
    assert re.match(r"  mood  completed  \d\d:\d\d:\d\d  [\d.]+ s", narrow[3])
    assert narrow[-1] == f"{failed.model_id}: ValueError: 数据里没有标签"
    assert all(len(line) <= 80 for line in narrow[:-1])
    assert models[0] == completed.model_id
    assert re.fullmatch(r"  mood  loaded  \d\d:\d\d:\d\d  .+", models[1])
    # A line for each job, whatever the width of the shell is.
    for lines in (wide, piped):
        assert lines[0].split()[:5] == ["model", "algorithm", "state", "submitted", "took"]
        assert re.match(rf"{completed.model_id}  mood       completed  \d\d:\d\d:\d\d   [\d.]+ s", lines[2]), lines


def test_no_service_is_said_plainly(mlpkit: Run) -> None:
    ended = mlpkit("jobs", "--url", f"http://127.0.0.1:{free_port()}")
    assert (ended.returncode, "no service answers" in ended.stderr, "Traceback" in ended.stderr) == (1, True, False)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/mood.py", True),
        ("/parts/words.yaml", True),
        ("/.env", True),
        ("/data/train.tsv", False),
        ("/.mlpkit/models.json", False),
        ("/.venv/lib/other.py", False),
        ("/__pycache__/mood.py", False),
        ("/.#mood.py", False),
    ],
)
def test_reload_looks_at_code_and_settings_only(path: str, expected: bool) -> None:
    assert is_source(path) is expected


def test_reload_starts_again_when_the_script_changes(folder: Path) -> None:
    def has(name: str) -> Callable[[], bool]:
        return lambda: client.ready().ready and name in client.monitor().algorithms

    with serving(folder, "--reload") as (process, client):
        script = folder / "mood.py"
        script.write_text(script.read_text(encoding="utf-8").replace('"other"', '"another"'), encoding="utf-8")
        wait_until(has("another"), "the changed script is served")
        script.write_text("broken (", encoding="utf-8")
        wait_until(lambda: not client.live(), "the broken script is not served")
        script.write_text(
            "from mlpkit import App\napp = App('third')\n@app.load\ndef load() -> None: pass\n", encoding="utf-8"
        )
        wait_until(has("third"), "the repaired script is served")
        process.terminate()
        assert process.wait(LONG) == 0
        assert not client.live()
