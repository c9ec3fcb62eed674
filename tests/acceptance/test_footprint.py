"""How much memory a service takes before it holds a model, and how soon it is there."""

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

from tests.acceptance.conftest import Report, Start

pytestmark = pytest.mark.slow

SLACK = 3
"""A time that was reached on a quiet machine may take so many times longer on a busy one."""


def pss(process: psutil.Process) -> float:
    """MiB of a process, with its part of what it shares with others."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's part of shared memory")
def test_server_and_worker_without_a_model_are_small(start: Start, report: Report) -> None:
    service = start("counting")
    server, worker = pss(psutil.Process(service.pid)), pss(service.worker())
    report(f"PSS {server + worker:.1f} MiB: server {server:.1f}, worker {worker:.1f} (limit 90)")
    assert server + worker < 90


def test_service_is_live_within_a_second(start: Start, tmp_path: Path, report: Report) -> None:
    times = []
    for number in range(3):
        began = time.monotonic()
        service = start("counting", home=tmp_path / f"home-{number}", ready=False)
        while not answers(f"{service.client.url}/health/live"):
            assert time.monotonic() - began < 60, service.log
        times.append(time.monotonic() - began)
        assert service.terminate()[0] == 0
    report(f"first 200 from /health/live after {statistics.median(times):.2f} s, the median of {len(times)} (aim: 1 s)")
    assert statistics.median(times) < 1 * SLACK


def test_import_is_quick(report: Report) -> None:
    code = "import time; began = time.perf_counter(); import mlpkit; print(time.perf_counter() - began)"
    times = [float(subprocess.check_output([sys.executable, "-c", code], timeout=60)) for _ in range(7)]
    report(f"import mlpkit in {statistics.median(times) * 1e3:.0f} ms, the median of {len(times)} (aim: 150 ms)")
    assert statistics.median(times) < 0.150 * SLACK


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
