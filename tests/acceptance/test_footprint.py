"""How much memory a service takes before it holds a model, and how soon it, and a job of it, is there.

`make bench-footprint` shows the figures and their goals on a quiet machine. Here each time is beside that of something
well known in the same run, so that the rules hold on busy machines too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import Start
from tests.conftest import Report
from tests.servers import LONG, free_port, wait_until
from tests.servers.ports import accepts

pytestmark = pytest.mark.slow

ROOM = 1.4
"""Interpreters differ in what they take."""
TIMES_BARE = 5
"""How often as long as bare uvicorn a service may take to start; it is about twice as long."""
ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "benchmarks" / "tiny.py"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's part of shared memory")


def pss(process: psutil.Process) -> float:
    """MiB of a process, with its part of what it shares with others."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


@linux_only
def test_server_and_workers_without_a_model_are_small(start: Start, tmp_path: Path, report: Report) -> None:
    sizes = {}
    for workers in (1, 4):
        service = start(TINY, {"MLP_CLIENT_WORKER": str(workers)}, home=tmp_path / f"home-{workers}")
        wait_until(lambda: len(service.workers()) == workers, "all workers run")  # noqa: B023
        sizes[workers] = [pss(each) for each in service.family()]
        assert service.terminate()[0] == 0

    server, further = sizes[1][0], (sum(sizes[4]) - sum(sizes[1])) / 3
    report(
        f"PSS: server {server:.1f} MiB (aim: 40), all with one worker {sum(sizes[1]):.1f} (aim: 55), "
        f"each further worker {further:.1f} (aim: 15)"
    )
    assert server < 40 * ROOM
    assert sum(sizes[1]) < 55 * ROOM
    assert further < 15


def test_service_is_live_and_ready_soon_beside_a_bare_one(start: Start, tmp_path: Path, report: Report) -> None:
    times: dict[str, list[float]] = {"bare": [], "live": [], "ready": []}
    for number in range(4):
        times["bare"].append(seconds_until_bare_uvicorn_answers())
        for path in ("live", "ready"):
            times[path].append(seconds_until(path, start, tmp_path / f"{path}-{number}"))
    best = {name: min(taken) for name, taken in times.items()}
    report(
        f"first 200 at best: bare uvicorn {best['bare']:.2f} s, /health/live {best['live']:.2f} s, "
        f"/health/ready {best['ready']:.2f} s (goal on a quiet machine: 0.6 s)"
    )
    assert best["live"] < TIMES_BARE * best["bare"]
    assert best["ready"] < TIMES_BARE * best["bare"]


def test_job_starts_sooner_than_an_interpreter(start: Start, tmp_path: Path, report: Report) -> None:
    service = start(TINY)
    jobs = []
    interpreters = []
    for number in range(4):
        interpreters.append(seconds_to_run("import mlpkit.training.process"))
        file = tmp_path / f"began-{number}"
        began = time.time()
        service.client.train("tiny", parameters={"began": str(file)}).wait(LONG)
        jobs.append(float(file.read_text()) - began)
    report(
        f"from POST /train to the first line of train: {min(jobs):.3f} s at best (goal: 0.5 s); "
        f"a fresh interpreter that imports what a job needs: {min(interpreters):.3f} s"
    )
    assert min(jobs) < min(interpreters)


def test_import_is_quick_beside_that_of_a_web_framework(report: Report) -> None:
    empty, package, others = [], [], []
    for _ in range(7):
        empty.append(seconds_to_run("pass"))
        package.append(seconds_to_run("import mlpkit"))
        others.append(seconds_to_run("import uvicorn, starlette.applications"))
    ours = min(package) - min(empty)
    theirs = min(others) - min(empty)
    report(f"import mlpkit: {ours * 1e3:.0f} ms (goal: 60 ms); uvicorn and Starlette: {theirs * 1e3:.0f} ms")
    assert ours < theirs


def seconds_to_run(code: str) -> float:
    """How long a fresh interpreter takes to run the code and end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LONG)
    return time.perf_counter() - began


def seconds_until_bare_uvicorn_answers() -> float:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "tests.benchmarks.bare:asgi", "--port", str(port), "--log-level=error"]
    began = time.monotonic()
    server = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "WORKLOAD": "W1"})
    try:
        wait_until(lambda: accepts(port), "bare uvicorn accepts connections")
        return time.monotonic() - began
    finally:
        server.terminate()
        server.wait(LONG)


def seconds_until(path: str, start: Start, home: Path) -> float:
    began = time.monotonic()
    service = start(TINY, {"MLP_CLIENT_WORKER": "2"}, home=home, ready=False)
    wait_until(lambda: answers(f"{service.client.url}/health/{path}"), f"the service is {path}")
    taken = time.monotonic() - began
    assert service.terminate()[0] == 0
    return taken


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
