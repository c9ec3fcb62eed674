"""The nursery of `mlpkit run` is forked of the server: they share memory, and nothing else can be told from outside."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlpkit import Client
from tests.acceptance.service import gone, running_as
from tests.faults.conftest import Start
from tests.servers import free_port, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children are fresh interpreters")

ROOT = Path(__file__).parents[2]
FACTS = Path(__file__).parent / "scripts" / "facts.py"
LITTLE, MUCH = 0.2, 3.0
"""MiB. A server shares 7 with a nursery that was forked of it, and none with a fresh interpreter."""
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


def nurseries_of(pid: int) -> list[psutil.Process]:
    """Those that run."""
    return running_as("mlpkit.nursery", psutil.Process(pid).children())


def nursery_of(pid: int) -> psutil.Process:
    (found,) = nurseries_of(pid)
    return found


def shared(pid: int) -> float:
    """MiB that a process has written and shares with another one all the same: that is forked of it, or it of that."""
    total, anonymous = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        # The pages of a file that was installed a moment ago are shared and not yet on the disk, whoever maps them.
        if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+)", line):
            anonymous = mapping[1] == "0"
        elif anonymous and line.startswith("Shared_Dirty:"):
            total += int(line.split()[1])
    return total / 1024


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


def test_nursery_shares_the_servers_memory_and_nothing_of_its_name_and_session(start: Start) -> None:
    service = start()
    nursery = nursery_of(service.pid)
    assert shared(service.pid) > MUCH
    assert nursery.name() == "mlpkit.nursery"
    # Ctrl-C in the server's terminal is not for it.
    assert os.getsid(nursery.pid) == os.getpgid(nursery.pid) == nursery.pid
    # Whoever kills the server by its command line must not hit its children before it can end them.
    assert not [each for each in service.family()[1:] if "run" in each.cmdline()]


def test_nursery_holds_no_descriptor_of_the_server(start: Start, tmp_path: Path) -> None:
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
            wait_until(lambda: client.ready().ready, "the service is ready", 60)
        assert shared(server.pid) > MUCH
        assert str(tmp_path / "inherited") in opened(server.pid).values()
        held = opened(nursery_of(server.pid).pid)
        assert [held[each] for each in "012"] == ["/dev/null"] * 3
        assert set(held.values()) & set(opened(server.pid).values()) <= {"/dev/null"}
        # The requests, the line of the worker, and the pipe that tells it of an end.
        assert len(held) == 3 + 2 + 2
    finally:
        server.terminate()
        assert server.wait(30) == 0


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
    wait_until(lambda: marked(str(tmp_path)) == [], "nothing is left", 10)


def test_killed_nursery_is_collected_and_started_again_as_a_fresh_interpreter(start: Start) -> None:
    service = start()
    first = nursery_of(service.pid)
    assert shared(service.pid) > MUCH
    first.kill()

    def is_another() -> bool:
        with contextlib.suppress(psutil.Error, ValueError):
            return nursery_of(service.pid).pid != first.pid and len(service.workers()) == 1
        return False

    wait_until(is_another, "there is another nursery, with a worker")
    service.client.wait_ready(30)
    assert not psutil.pid_exists(first.pid)
    assert shared(service.pid) < LITTLE
    service.client.load("faulty", "m")


@pytest.mark.parametrize(
    ("custom", "nurseries"),
    [
        pytest.param(
            "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
            0,
            id="thread, of every interpreter",
        ),
        pytest.param("import sys; sys.settrace(lambda *_: None)", 1, id="debugger"),
        pytest.param("import io, sys; sys.stdout = io.StringIO()", 1, id="replaced stream"),
    ],
)
def test_server_that_is_not_as_a_fresh_interpreter_is_not_forked(
    start: Start, tmp_path: Path, custom: str, nurseries: int
) -> None:
    service = start(customize(tmp_path, custom))
    assert shared(service.pid) < LITTLE
    service.client.load("faulty", "m")
    assert len(nurseries_of(service.pid)) == nurseries


def test_nursery_runs_no_exit_of_the_servers_and_prints_nothing_of_it(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    service = start(customize(tmp_path, EXIT))
    assert shared(service.pid) > MUCH
    job = service.client.train("faulty", parameters={"do": "nothing"})
    job.wait(30)
    told = service.client.log(job.model_id)
    nursery = nursery_of(service.pid)
    (guard,) = (each for each in service.family() if each.name() == "sh")
    # It would end the nursery before that has ended by itself.
    guard.suspend()
    assert service.terminate()[0] == 0
    wait_until(lambda: gone(nursery), "the nursery has ended", 10)
    guard.kill()
    exits = (folder / "exits").read_text().split()
    assert str(service.pid) in exits
    assert str(nursery.pid) not in exits
    assert service.log.count("half a line") == 1
    assert "half a line" not in told


def test_job_finds_what_it_finds_in_a_fresh_interpreter(tmp_path: Path) -> None:
    """Also where the server has a terminal, and a handler of its own for a signal."""
    forked, fresh = (facts_of(each, tmp_path / each, customize(tmp_path, SERVER)) for each in ("forked", "fresh"))
    assert forked == fresh
    assert (forked["crash dumps"], forked["session"], forked["threads"]) == (True, True, 1)


def facts_of(origin: str, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What a job finds under a server that has a terminal and whose nursery is of that origin."""
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
            wait_until(lambda: client.ready().ready, "the service is ready", 60)
            assert (shared(server.pid) > MUCH) == (origin == "forked")
            client.train("facts", parameters={"file": str(file)}).wait(30)
    finally:
        server.terminate()
        assert server.wait(30) == 0
        os.close(ours)
        os.close(terminal)
    found: dict[str, Any] = json.loads(file.read_text())
    return found
