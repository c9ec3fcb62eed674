"""Measures mlpkit against a bare ASGI callable and Starlette, in turn, on this machine: `python -m tests.benchmarks`.

Every figure is a ratio to the bare callable's run in the same round: machines are noisy, ratios less so. The load is
made by `wrk` (Debian package of that name); the server is pinned to the first CPU and `wrk` to the second where
`taskset` exists (W4, which has two workers, uses both).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.benchmarks.workloads import FEATURES

PEERS = ("asgi", "starlette", "mlpkit")
CASES = (("W1", 1), ("W1", 16), ("W1", 64), ("W2", 16), ("W3", 1), ("W3", 16), ("W3", 64), ("W4", 16), ("W5", 16))
START_SECONDS = 30.0
Figures = dict[tuple[str, int, str], list[dict[str, float]]]


def command(peer: str, workload: str, port: int) -> list[str]:
    if peer == "mlpkit":
        workers = "2" if workload == "W4" else "1"
        served = ["mlpkit", "run", "tests.benchmarks.served:app", "--port", str(port), "--workers", workers]
        return [sys.executable, "-m", *served]
    several = ["--workers", "2"] if workload == "W4" else []
    target = f"tests.benchmarks.bare:{peer}"
    quiet = ["--no-access-log", "--log-level", "warning", "--lifespan", "off"]
    return [sys.executable, "-m", "uvicorn", target, "--port", str(port), *quiet, *several]


@contextlib.contextmanager
def served(peer: str, workload: str, home: Path) -> Iterator[tuple[int, psutil.Process]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pinned = ["taskset", "-c", "0"] if shutil.which("taskset") and workload != "W4" else []
    environment = {**os.environ, "WORKLOAD": workload, "MLPKIT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment["OPENBLAS_NUM_THREADS"] = "1"
    with (home / f"{peer}.log").open("w") as log:
        process = subprocess.Popen([*pinned, *command(peer, workload, port)], env=environment, stdout=log, stderr=log)
    try:
        wait_for_answer(port, workload, process)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_answer(port: int, workload: str, process: subprocess.Popen[bytes]) -> None:
    body = json.dumps({"model_id": "m", "features": FEATURES[workload]})
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, ValueError):
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            if json.loads(connection.getresponse().read()).get("status") == "success":
                return
        time.sleep(0.05)
    raise SystemExit(f"the server did not answer within {START_SECONDS:g} s: {process.args!r}")


def cpu_seconds(server: psutil.Process) -> float:
    total = 0.0
    for each in [server, *server.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = each.cpu_times()
            total += times.user + times.system
    return total


def load(port: int, script: Path, connections: int, seconds: int) -> dict[str, float]:
    pinned = ["taskset", "-c", "1"] if shutil.which("taskset") else []
    arguments = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
    url = f"http://127.0.0.1:{port}/predict"
    done = subprocess.run([*pinned, *arguments, url], capture_output=True, text=True, timeout=seconds + 30, check=True)
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise SystemExit(f"the load had errors:\n{done.stdout}")
    found = re.search(r"FIGURES (\d+) (\d+) ([\d.]+) ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    requests, microseconds = int(found[1]), int(found[2])
    return {"requests": requests, "rate": requests / microseconds * 1e6, "p50": float(found[3]), "p99": float(found[4])}


def write_script(folder: Path, workload: str) -> Path:
    body = json.dumps({"model_id": "m", "features": FEATURES[workload]})
    script = folder / f"{workload}.lua"
    script.write_text(
        'wrk.method = "POST"\n'
        f"wrk.body = {json.dumps(body)}\n"
        'wrk.headers["Content-Type"] = "application/json"\n'
        "done = function(summary, latency, requests)\n"
        '  io.write(string.format("FIGURES %d %d %f %f\\n", summary.requests, summary.duration,\n'
        "    latency:percentile(50), latency:percentile(99)))\n"
        "end\n"
    )
    return script


def measure(cases: list[tuple[str, int]], rounds: int, seconds: int) -> Figures:
    figures: Figures = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="mlpkit-bench-") as folder:
        for workload in dict.fromkeys(name for name, _ in cases):
            script = write_script(Path(folder), workload)
            with contextlib.ExitStack() as stack:
                servers = {}
                for peer in PEERS:
                    home = Path(folder) / f"{workload}-{peer}"
                    home.mkdir()
                    servers[peer] = stack.enter_context(served(peer, workload, home))
                for connections in [count for name, count in cases if name == workload]:
                    for _ in range(rounds):
                        for peer, (port, server) in servers.items():
                            before = cpu_seconds(server)
                            figure = load(port, script, connections, seconds)
                            figure["cpu"] = (cpu_seconds(server) - before) / figure["requests"] * 1e6
                            figures[workload, connections, peer].append(figure)
    return figures


def report(figures: Figures) -> None:
    print("| case | peer | req/s | ratio to asgi (min-max) | CPU us/req | CPU ratio | p50 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|---|")
    for (workload, connections, peer), runs in figures.items():
        bare = figures[workload, connections, "asgi"]
        ratios = [run["rate"] / other["rate"] for run, other in zip(runs, bare, strict=True)]
        cpus = [run["cpu"] / other["cpu"] for run, other in zip(runs, bare, strict=True)]
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        print(
            f"| {workload}@{connections} | {peer} | {middle['rate']:.0f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
            f"| {middle['cpu']:.0f} | {statistics.median(cpus):.2f} "
            f"| {middle['p50'] / 1000:.2f} | {middle['p99'] / 1000:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--only", default="", help="regular expression over W1@64 and so on")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed: apt-get install wrk")
    cases = [(name, count) for name, count in CASES if re.search(options.only, f"{name}@{count}")]
    report(measure(cases, options.rounds, options.seconds))


if __name__ == "__main__":
    main()
