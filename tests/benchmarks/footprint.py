"""How soon a service is there and how little it takes: `python -m tests.benchmarks.footprint`, about a minute.

Every figure stands beside its goal, first for an empty service, then for one with 1,000 models loaded and 10,000 jobs
in its journal, which must change none by more than a tenth. Medians; quiet machines only. Memory is the proportional
set size: what processes share counts once. The sums hold the fork server and the guard too.

It installs mlpkit into an environment of its own, as `pip install mlpkit` does: what else is there is imported as well
where a package looks for it (uvicorn for watchfiles, 3 MiB for a service with one worker).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import msgspec
import psutil

from mlpkit.training import Job
from tests.acceptance.service import RunningService
from tests.benchmarks.catalog import MLPKIT
from tests.benchmarks.environments import install
from tests.benchmarks.server import cpu_seconds
from tests.servers import wait_until

Figures = dict[str, float]
WORKERS = 2
MODELS, JOBS = 1_000, 10_000
BATCHES, PREDICTIONS = 5, 1_000
GOALS: Figures = {
    "installed, MiB": 40,
    "import mlpkit, ms": 100,
    "first 200 of /health/live, s": 0.6,
    "first 200 of /health/ready, s": 0.6,
    "server, MiB": 40,
    "server and one worker, MiB": 55,
    "server and two workers, MiB": 70,
    "each further worker, MiB": 15,
    "job: from POST /train to the first line of train, s": 0.5,
}
ASKED = (
    "/health/ready",
    "/health/live",
    "/status?algorithm=tiny&model_id=began-0",
    "/monitor",
    "/metrics",
    "/jobs?limit=10",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--installed", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.installed is None:
        begin_in_own_environment(options.rounds)
    folder, mebibytes = options.installed
    try:
        report(options.rounds, float(mebibytes))
    finally:
        shutil.rmtree(folder)


def begin_in_own_environment(rounds: int) -> NoReturn:
    """Goes on as the Python of a new environment, which removes it: a second process would share pages with those
    that are measured."""
    folder = tempfile.mkdtemp(prefix="mlpkit-core-")
    try:
        mebibytes = install(Path(folder), MLPKIT.pip).mebibytes
        python = f"{folder}/bin/python"
        arguments = ["-m", "tests.benchmarks.footprint", "--rounds", str(rounds)]
        os.execv(python, [python, *arguments, "--installed", folder, str(mebibytes)])
    except BaseException:
        shutil.rmtree(folder)
        raise


def report(rounds: int, mebibytes: float) -> None:
    with tempfile.TemporaryDirectory(prefix="mlpkit-footprint-") as folder:
        home = Path(folder) / "home"
        once = {"installed, MiB": mebibytes, "import mlpkit, ms": import_time()}
        empty = {**once, **figures(home, rounds, fill_models=0)}
        fill_journal(home, JOBS)
        full = figures(home, rounds, fill_models=MODELS)
    print(f"| figure | goal | empty | {MODELS:,} models, {JOBS:,} jobs | ratio |")
    print("|---|---|---|---|---|")
    for name, value in empty.items():
        crowded = full.get(name)
        rest = f"{crowded:.4g} | {crowded / value:.2f}" if crowded is not None else "| "
        print(f"| {name} | {GOALS.get(name, '')} | {value:.4g} | {rest} |")
    for name in full.keys() - empty.keys():
        print(f"| {name} | | | {full[name]:.4g} | |")


def import_time() -> float:
    code = "import time; began = time.perf_counter(); import mlpkit; print(time.perf_counter() - began)"
    # Not from here: the folder of the tests holds another copy.
    command, elsewhere = [sys.executable, "-c", code], tempfile.gettempdir()
    return 1e3 * statistics.median(float(subprocess.check_output(command, cwd=elsewhere)) for _ in range(9))


def figures(home: Path, rounds: int, *, fill_models: int) -> Figures:
    """All figures of one service, started several times on its home."""
    found: Figures = {}
    with running(home) as service:
        before = family_memory(service)
        load_models(service, fill_models or 1)
        if fill_models:
            found["a loaded model, KiB"] = (family_memory(service) - before) * 1024 / fill_models
        found["job: from POST /train to the first line of train, s"] = statistics.median(
            job_start(service, home / f"began-{number}") for number in range(rounds)
        )
        found |= requests(service)
    starts = [start_times(home) for _ in range(rounds)]
    found["first 200 of /health/live, s"] = statistics.median(live for live, _ in starts)
    found["first 200 of /health/ready, s"] = statistics.median(ready for _, ready in starts)
    if not fill_models:
        found |= memory(home)
    return found


@contextmanager
def running(home: Path, workers: int = WORKERS) -> Iterator[RunningService]:
    service = launched(home, workers)
    try:
        service.wait_ready()
        yield service
    finally:
        service.stop()


def launched(home: Path, workers: int = WORKERS) -> RunningService:
    home.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).parent / "tiny.py"
    settings = {"MLP_CLIENT_WORKER": str(workers), "MLPKIT_LOG_LEVEL": "warning"}
    return RunningService(f"{script}:app", home, settings)


def start_times(home: Path) -> tuple[float, float]:
    """Seconds to the first 200 from /health/live and /health/ready."""
    began = time.perf_counter()
    service = launched(home)
    try:
        times = []
        for path in ("/health/live", "/health/ready"):
            while not answers(service, path):
                time.sleep(0.003)
            times.append(time.perf_counter() - began)
        return times[0], times[1]
    finally:
        service.stop()


def answers(service: RunningService, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def memory(home: Path) -> Figures:
    """MiB of an idle service before it holds a model, on a home of its own."""
    sizes: dict[int, list[float]] = {}
    for workers in (1, 2, 4):
        with running(home.with_name(f"home-{workers}"), workers) as service:
            wait_until(lambda: len(service.workers()) == workers, "all workers run")  # noqa: B023
            time.sleep(1)
            sizes[workers] = [pss(each) for each in service.family()]
    one, two, four = (sum(each) for each in sizes.values())
    return {
        "server, MiB": sizes[1][0],
        "server and one worker, MiB": one,
        "server and two workers, MiB": two,
        "each further worker, MiB": (four - two) / 2,
    }


def family_memory(service: RunningService) -> float:
    return sum(pss(each) for each in service.family())


def pss(process: psutil.Process) -> float:
    return float(process.memory_full_info().pss) / 2**20


def job_start(service: RunningService, file: Path) -> float:
    """Seconds from the request to the first line of `train`, which writes the time into `file`."""
    file.unlink(missing_ok=True)
    fields = {"algorithm": "tiny", "model_id": file.name, "model_path": "m/p", "data": {}, "extend": {}}
    began = time.time()
    ask(service, "POST", "/train", {**fields, "parameter": {"began": str(file)}})
    wait_until(lambda: file.exists() and file.read_text() != "", "the job runs")
    return float(file.read_text()) - began


def load_models(service: RunningService, count: int) -> None:
    for number in range(count):
        fields = {"algorithm": "tiny", "model_id": f"model-{number}", "model_path": "m/p"}
        ask(service, "POST", "/load", fields)


def requests(service: RunningService) -> Figures:
    """Milliseconds of requests on one connection, and the CPU time of all processes for a prediction."""
    found: Figures = {}
    for path in ASKED:
        found[f"GET {path.partition('?')[0]}, ms"] = median_ms(service, "GET", path, None, 500)
    body, times, costs = {"model_id": "model-0", "features": {}}, [], []
    for _ in range(BATCHES):
        before = sum(map(cpu_seconds, service.family()))
        times.append(median_ms(service, "POST", "/predict", body, PREDICTIONS))
        costs.append((sum(map(cpu_seconds, service.family())) - before) / PREDICTIONS * 1e6)
    return {**found, "POST /predict, ms": statistics.median(times), "POST /predict, CPU us": statistics.median(costs)}


def median_ms(service: RunningService, method: str, path: str, body: object, count: int) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    encoded = json.dumps(body) if body is not None else None
    times = []
    for _ in range(count):
        began = time.perf_counter()
        connection.request(method, path, encoded, {"Content-Type": "application/json"})
        connection.getresponse().read()
        times.append(time.perf_counter() - began)
    connection.close()
    return 1e3 * statistics.median(times)


def ask(service: RunningService, method: str, path: str, body: object) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["status"] == "success", answer


def fill_journal(home: Path, count: int) -> None:
    """Puts ended jobs into the journal of a service that does not run: through it, each would be synced to disk."""
    jobs = (
        Job(f"job-{number}", "tiny", "m/p", state="completed", started=time.time(), ended=time.time())
        for number in range(count)
    )
    rows = ((each.model_id, each.algorithm, each.state, msgspec.json.encode(each).decode()) for each in jobs)
    with sqlite3.connect(home / "jobs.db") as journal:
        journal.executemany("INSERT INTO job (model_id, algorithm, state, record) VALUES (?, ?, ?, ?)", rows)
    journal.close()


if __name__ == "__main__":
    main()
