"""How much memory a service takes before it holds a model, and how soon it, and a job of it, is there.

`make bench-footprint` shows the figures and their goals on a quiet machine; the bounds here are for busy ones.
"""

from __future__ import annotations

import re
import statistics
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
from tests.servers import LONG, stretched, wait_until

pytestmark = pytest.mark.slow

ROOM = 1.4
"""Interpreters differ in what they take."""
TINY = Path(__file__).parents[1] / "benchmarks" / "tiny.py"
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


def test_service_is_live_and_ready_at_once(start: Start, tmp_path: Path, report: Report) -> None:
    for path in ("live", "ready"):
        times = [seconds_until(path, start, tmp_path / f"{path}-{number}") for number in range(3)]
        best, median = min(times), statistics.median(times)
        report(f"first 200 from /health/{path}: {best:.2f} s at best, median {median:.2f} s (aim: 0.6 s)")
        assert best < stretched(0.6)


def test_job_starts_at_once(start: Start, tmp_path: Path, report: Report) -> None:
    service = start(TINY)
    times = []
    for number in range(3):
        file, began = tmp_path / f"began-{number}", time.time()
        service.client.train("tiny", parameters={"began": str(file)}).wait(LONG)
        times.append(float(file.read_text()) - began)
    report(f"from POST /train to the first line of train: {min(times):.3f} s at best (aim: 0.5 s)")
    assert min(times) < 0.5


def test_import_is_quick(report: Report) -> None:
    code = "import time; began = time.perf_counter(); import mlpkit; print(time.perf_counter() - began)"
    times = [float(subprocess.check_output([sys.executable, "-c", code], timeout=LONG)) for _ in range(7)]
    best, median = min(times) * 1e3, statistics.median(times) * 1e3
    report(f"import mlpkit: {best:.0f} ms at best, median {median:.0f} ms (aim: 100 ms)")
    assert min(times) < stretched(0.100)


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
