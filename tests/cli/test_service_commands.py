"""The commands around a running service: `run`, with `--reload` too, and those that speak to it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlpkit.cli.run import is_source
from mlpkit.client import Client
from mlpkit.errors import ServiceUnreachable, TrainFailed
from tests.cli.conftest import Run, environment_of
from tests.cli.terminal import in_terminal
from tests.servers import LONG, closed_port, free_port, wait_until


@contextlib.contextmanager
def serving(folder: Path, *options: str, port: int | None = None) -> Iterator[tuple[subprocess.Popen[bytes], Client]]:
    """`mlpkit run mood.py` in the folder, ready."""
    port = free_port() if port is None else port
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


TALKATIVE = """
import logging, sys, warnings
print("to stdout")
print("to stderr", file=sys.stderr)
logging.warning("from logging")
warnings.warn("from warnings")
sys.stdout.write("without an end")
"""


def test_what_a_script_prints_at_import_is_in_the_log_of_each_process(folder: Path) -> None:
    script = folder / "mood.py"
    script.write_text(script.read_text(encoding="utf-8") + TALKATIVE, encoding="utf-8")
    (folder / ".env").write_text("MLPKIT_LOG_FORMAT=json\n")
    with serving(folder):
        pass
    # Each line is JSON, also those of the server.
    lines = [json.loads(line) for line in (folder / "log").read_text(encoding="utf-8").splitlines()]
    assert not [line for line in lines if line["message"].endswith("\n")]
    for text in ("to stdout", "to stderr", "from logging", "UserWarning: from warnings", "without an end"):
        assert sorted(line["process"] for line in lines if text in line["message"]) == ["server", "worker-0"], text


def test_models_shows_a_model_that_is_missing_and_why(folder: Path, mlpkit: Run) -> None:
    (folder / "home").mkdir()
    (folder / "home" / "models.json").write_text('[{"algorithm": "mood", "model_id": "gone"}]')
    with serving(folder) as (_, client):
        shown = mlpkit("models", "--url", client.url).stdout
        listed = json.loads(mlpkit("models", "--url", client.url, "--json").stdout)
    assert shown.splitlines()[1].split()[:3] == ["gone", "mood", "unloaded"]
    assert "\ngone: load fail " in shown
    assert [(each["model_id"], each["state"]) for each in listed] == [("gone", "unloaded")]


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


def test_a_job_is_shown_followed_and_loaded_by_its_id_alone(folder: Path, mlpkit: Run) -> None:
    with serving(folder) as (_, client):
        at = ("--url", client.url)
        job = client.train("mood", parameters={"steps": 4, "seconds": 1.0})
        followed = mlpkit("logs", "-f", job.model_id, *at)
        printed = mlpkit("logs", job.model_id, *at)
        drawn = in_terminal(
            [sys.executable, "-m", "mlpkit", "logs", job.model_id, *at],
            folder,
            environment_of(folder / "home"),
            columns=200,
        )
        shown = mlpkit("status", job.model_id, *at)
        listed = json.loads(mlpkit("status", job.model_id, "--json", *at).stdout)
        loaded = mlpkit("load", job.model_id, *at)
        states = [model.state for model in client.models()]
        unloaded = mlpkit("unload", job.model_id, *at)
        left = client.models()
        again = mlpkit("unload", job.model_id, *at)
        cancelled = mlpkit("cancel", job.model_id, *at)
    assert followed.returncode == 0, followed.stderr
    assert followed.stdout == printed.stdout
    assert followed.stdout.count("a line of the job") == 1
    assert [line.rstrip() for line in drawn.screen] == printed.stdout.splitlines()
    assert followed.stderr.splitlines()[-1] == f"mood {job.model_id}: completed"
    lines = dict(line.split(maxsplit=1) for line in shown.stdout.splitlines())
    assert (lines["model"], lines["algorithm"], lines["state"]) == (job.model_id, "mood", "completed")
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    assert (listed["model_id"], listed["state"]) == (job.model_id, "completed")
    assert (loaded.stdout, states) == (f"{job.model_id} is loaded\n", ["loaded"])
    assert (unloaded.stdout, left) == (f"{job.model_id} is unloaded\n", [])
    assert (again.returncode, again.stderr) == (1, f"error: model [{job.model_id}] not loaded\n")
    assert (cancelled.returncode, cancelled.stdout) == (0, f"{job.model_id} had ended before: completed\n")


def test_following_a_job_that_fails_ends_with_1_and_its_reason(folder: Path, mlpkit: Run) -> None:
    with serving(folder) as (_, client):
        job = client.train("mood", parameters={"fail": "row 7 has no label"})
        ended = mlpkit("logs", "-f", job.model_id, "--url", client.url)
    assert ended.returncode == 1
    assert "a line of the job" in ended.stdout
    assert ended.stderr.splitlines()[-1] == "error: ValueError: row 7 has no label"


def test_ctrl_c_ends_following_with_one_line_and_not_the_job(folder: Path, mlpkit: Run) -> None:
    with serving(folder) as (_, client):
        job = client.train("mood", parameters={"seconds": 600})
        command = [sys.executable, "-m", "mlpkit", "logs", "-f", job.model_id, "--url", client.url]
        environment = environment_of(folder / "home")
        shown = in_terminal(command, folder, environment, interrupt_at=lambda output: "a line of the job" in output)
        stack = mlpkit("stack", job.model_id, "--url", client.url)
        state = client.job_view(job.model_id).state
        cancelled = mlpkit("cancel", job.model_id, "--url", client.url)
        after = client.job_view(job.model_id).state
    assert shown.code == 130
    assert shown.screen[-1].removeprefix("^C") == "interrupted: the job continues"
    assert "Traceback" not in shown.output
    assert "in train" in stack.stdout, stack.stderr
    assert state == "training"
    assert cancelled.stdout.startswith(f"{job.model_id} has ended: ")
    assert after == "error"


def test_a_soft_cancel_says_that_the_job_was_asked(folder: Path, mlpkit: Run) -> None:
    with serving(folder) as (_, client):
        job = client.train("mood", parameters={"seconds": 600})
        wait_until(lambda: client.job_view(job.model_id).state == "training", "the job runs")
        ended = mlpkit("cancel", "--soft", job.model_id, "--json", "--url", client.url)
        wait_until(lambda: client.job_view(job.model_id).state == "error", "the job has ended")
    assert json.loads(ended.stdout)["model_id"] == job.model_id


def test_following_continues_when_the_service_starts_again(folder: Path, mlpkit: Run) -> None:
    with serving(folder) as (_, client):
        job = client.train("mood", parameters={"seconds": 600})
        port = int(client.url.rpartition(":")[2])
        followed = subprocess.Popen(
            [sys.executable, "-m", "mlpkit", "logs", "-f", job.model_id, "--url", client.url],
            env=environment_of(folder / "home"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert followed.stdout is not None
            assert "a line of the job" in next(line for line in followed.stdout if "a line of the job" in line)
        except BaseException:
            followed.kill()
            raise
    with serving(folder, port=port) as (_, client):
        wait_until(lambda: client.job_view(job.model_id).state == "training", "the job runs again")
        client.cancel("mood", job.model_id)
        _, errors = followed.communicate(timeout=LONG)
    assert followed.returncode == 1, errors
    assert "cancel" in errors.splitlines()[-1], errors


def test_status_shows_the_place_of_a_waiting_job_and_when_it_will_probably_start(folder: Path, mlpkit: Run) -> None:
    with serving(folder) as (_, client):
        client.train("mood").wait(LONG)
        jobs = [client.train("mood", parameters={"seconds": 30.0}) for _ in range(7)]
        shown = mlpkit("status", jobs[-1].model_id, "--url", client.url)
        for job in jobs:
            job.cancel()
    lines = dict(line.split(maxsplit=1) for line in shown.stdout.splitlines())
    assert (lines["state"], lines["progress"]) == ("init", "waiting, number 2")
    assert re.fullmatch(r"to start at \d\d:\d\d:\d\d", lines["expected"])


@pytest.mark.parametrize("command", ["status", "logs", "logs -f", "stack", "cancel", "load", "unload"])
def test_an_unknown_id_and_no_service_are_said_plainly(folder: Path, mlpkit: Run, command: str) -> None:
    with serving(folder) as (_, client):
        unknown = mlpkit(*command.split(), "nobody", "--url", client.url)
    with closed_port() as port:
        away = mlpkit(*command.split(), "nobody", "--url", f"http://127.0.0.1:{port}")
    assert unknown.returncode in (1, 2)
    assert unknown.stderr.startswith("error: ")
    assert "nobody" in unknown.stderr
    assert (away.returncode, "no service answers" in away.stderr) == (1, True)
    for ended in (unknown, away):
        assert (ended.stdout, ended.stderr.count("\n")) == ("", 1)


def test_no_service_is_said_plainly(mlpkit: Run) -> None:
    with closed_port() as port:
        ended = mlpkit("jobs", "--url", f"http://127.0.0.1:{port}")
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
        def found() -> bool:
            # The one that is replaced may end between the two requests.
            with contextlib.suppress(ServiceUnreachable):
                return client.ready().ready and name in client.monitor().algorithms
            return False

        return found

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
