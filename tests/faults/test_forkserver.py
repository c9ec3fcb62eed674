"""The fork server of a real service: its children are what fresh interpreters are, and its end is survived."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlpkit import Client
from tests.acceptance.service import gone, running_as
from tests.faults.conftest import Start
from tests.servers import LONG, free_port, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children are fresh interpreters")

ROOT = Path(__file__).parents[2]
FACTS = Path(__file__).parent / "scripts" / "facts.py"
EXIT = """
import atexit, os, sys
sys.stdout.write("half a line")
def note():
    with open(os.environ["FAULTS_FOLDER"] + "/exits", "a") as file:
        file.write(f"{os.getpid()}\\n")
atexit.register(note)
"""
SERVER = """
import os, signal, threading, time
origin = os.environ.pop("MLPKIT_TEST_SERVER", "")
if origin:
    signal.signal(signal.SIGUSR1, lambda *_: None)
if origin == "fresh":
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
"""


def fork_servers_of(pid: int) -> list[psutil.Process]:
    """Those that run."""
    return running_as("mlpkit.forksrv", psutil.Process(pid).children())


def fork_server_of(pid: int) -> psutil.Process:
    (found,) = fork_servers_of(pid)
    return found


def opened(pid: int) -> dict[str, str]:
    folder = Path(f"/proc/{pid}/fd")
    return {each.name: os.readlink(each) for each in folder.iterdir()}


def marked(mark: str) -> list[psutil.Process]:
    """The processes that have the mark in their environment."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if each.environ().get("MLPKIT_TEST_MARK") == mark and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


def customize(tmp_path: Path, text: str) -> dict[str, str]:
    """The environment in which every interpreter runs this at its start, and buffers its output as usual."""
    folder = tmp_path / "custom"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "PYTHONUNBUFFERED": ""}


def test_fork_server_has_its_own_name_and_session(start: Start) -> None:
    service = start()
    fork_server = fork_server_of(service.pid)
    assert fork_server.name() == "mlpkit.forksrv"
    # Ctrl-C in the server's terminal is not for it.
    assert os.getsid(fork_server.pid) == os.getpgid(fork_server.pid) == fork_server.pid
    # Whoever kills the server by its command line must not hit its children before it can end them.
    assert not [each for each in service.family()[1:] if "run" in each.cmdline()]


def test_fork_server_holds_no_descriptor_of_the_server(start: Start, tmp_path: Path) -> None:
    with (tmp_path / "inherited").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        command = [sys.executable, "-m", "mlpkit", "run", str(FACTS), "--workers", "1", "--port"]
        port = free_port()
        server = subprocess.Popen(
            [*command, str(port)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MLPKIT_HOME": str(tmp_path / "home")},
            pass_fds=(file.fileno(),),
        )
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            wait_until(lambda: client.ready().ready, "the service is ready")
        assert str(tmp_path / "inherited") in opened(server.pid).values()
        held = opened(fork_server_of(server.pid).pid)
        assert [held[each] for each in "01"] == ["/dev/null"] * 2
        assert set(held.values()) & set(opened(server.pid).values()) <= {"/dev/null", held["2"]}
        # The requests, and the pipe that tells it of an end.
        assert len(held) == 3 + 1 + 2
    finally:
        server.terminate()
        assert server.wait(LONG) == 0


@pytest.mark.parametrize(
    ("script", "code"),
    [
        pytest.param(None, 2, id="no script"),
        pytest.param("from mlpkit import App\napp = App('x')\n@app.load\ndef load(wrong): ...", 2, id="mistakes"),
        pytest.param("import os\nos._exit(3)", 3, id="dies"),
    ],
)
def test_command_that_fails_leaves_no_process(tmp_path: Path, script: str | None, code: int) -> None:
    if script is not None:
        (tmp_path / "script.py").write_text(script)
    ended = subprocess.run(
        [sys.executable, "-m", "mlpkit", "run", "script.py", "--port", str(free_port())],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLPKIT_TEST_MARK": str(tmp_path)},
        # Whoever held the pipe would be waited for.
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
    wait_until(lambda: marked(str(tmp_path)) == [], "nothing is left")


def test_killed_fork_server_is_collected_and_started_again(start: Start) -> None:
    service = start()
    first = fork_server_of(service.pid)
    first.kill()

    def is_another() -> bool:
        with contextlib.suppress(psutil.Error, ValueError):
            return fork_server_of(service.pid).pid != first.pid and len(service.workers()) == 1
        return False

    wait_until(is_another, "there is another fork_server, with a worker")
    service.client.wait_ready(LONG)
    assert not psutil.pid_exists(first.pid)
    service.client.load("faulty", "m")


def test_if_every_interpreter_has_a_thread_children_are_not_forked(start: Start, tmp_path: Path) -> None:
    thread = "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
    service = start(customize(tmp_path, thread))
    service.client.load("faulty", "m")
    assert fork_servers_of(service.pid) == []


def test_fork_server_runs_no_exit_of_the_servers_and_prints_nothing_of_it(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    service = start(customize(tmp_path, EXIT))
    job = service.client.train("faulty", parameters={"do": "nothing"})
    job.wait(LONG)
    told = service.client.log(job.model_id)
    fork_server = fork_server_of(service.pid)
    (guard,) = (each for each in service.family() if each.name() == "sh")
    # It would end the fork_server before that has ended by itself.
    guard.suspend()
    assert service.terminate()[0] == 0
    wait_until(lambda: gone(fork_server), "the fork_server has ended")
    guard.kill()
    exits = (folder / "exits").read_text().split()
    assert str(service.pid) in exits
    assert str(fork_server.pid) not in exits
    assert service.log.count("half a line") == 1
    assert "half a line" not in told


@pytest.mark.untraced
def test_job_finds_what_it_finds_in_a_fresh_interpreter(tmp_path: Path) -> None:
    """Also where the server has a terminal, and a handler of its own for a signal."""
    forked, fresh = (facts_of(each, tmp_path / each, customize(tmp_path, SERVER)) for each in ("forked", "fresh"))
    assert forked == fresh
    assert (forked["crash dumps"], forked["session"], forked["threads"]) == (True, True, 1)


def facts_of(origin: str, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What a job finds under a server that has a terminal and whose fork_server is of that origin."""
    folder.mkdir()
    port, file = free_port(), folder / "facts"
    ours, terminal = pty.openpty()
    settings = {"MLPKIT_HOME": str(folder), "MLPKIT_TEST_SERVER": origin, "MLPKIT_LOG_LEVEL": "warning"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlpkit", "run", str(FACTS), "--workers", "1", "--port", str(port)],
        cwd=folder.parent,
        env={**os.environ, **environment, **settings},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            wait_until(lambda: client.ready().ready, "the service is ready")
            client.train("facts", parameters={"file": str(file)}).wait(LONG)
    finally:
        server.terminate()
        assert server.wait(LONG) == 0
        os.close(ours)
        os.close(terminal)
    found: dict[str, Any] = json.loads(file.read_text())
    return found
