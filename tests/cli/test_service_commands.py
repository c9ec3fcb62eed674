"""The commands around a running service: `run`, with `--reload` too, `jobs` and `models`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlpkit.cli.run import is_source
from mlpkit.client import Client
from tests.cli.conftest import Run, environment_of
from tests.servers import free_port, wait_until


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
            wait_until(lambda: client.ready().ready or process.poll() is not None, "the service is ready", 60)
            assert process.poll() is None, (folder / "log").read_text()
            yield process, client
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_with_0_when_it_is_told_to(folder: Path, number: signal.Signals) -> None:
    with serving(folder) as (process, _):
        process.send_signal(number)
        assert process.wait(30) == 0
    assert "Traceback" not in (folder / "log").read_text()


def test_a_port_in_use_is_said_plainly(folder: Path, mlpkit: Run) -> None:
    with serving(folder) as (_, client):
        ended = mlpkit("run", "mood.py", "--port", client.url.rpartition(":")[2], MLPKIT_HOME=str(folder / "other"))
    assert (ended.returncode, "is the port in use" in ended.stderr) == (2, True), ended.stderr
    assert "Traceback" not in ended.stderr


def test_jobs_and_models_show_what_the_service_does(folder: Path, mlpkit: Run) -> None:
    with serving(folder) as (_, client):
        assert "no jobs" in mlpkit("jobs", "--url", client.url).stdout
        job = client.train("mood", parameters={"steps": 2})
        job.wait(60)
        client.load("mood", job.model_id)
        jobs, models = mlpkit("jobs", "--url", client.url), mlpkit("models", "--url", client.url)
        listed = json.loads(mlpkit("jobs", "--url", client.url, "--json").stdout)
    assert job.model_id in jobs.stdout
    assert "completed" in jobs.stdout
    assert job.model_id in models.stdout
    assert listed[0]["model_id"] == job.model_id


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
        wait_until(has("another"), "the changed script is served", 60)
        script.write_text("broken (", encoding="utf-8")
        wait_until(lambda: not client.live(), "the broken script is not served", 60)
        script.write_text(
            "from mlpkit import App\napp = App('third')\n@app.load\ndef load() -> None: pass\n", encoding="utf-8"
        )
        wait_until(has("third"), "the repaired script is served", 60)
        process.terminate()
        assert process.wait(30) == 0
        assert not client.live()
