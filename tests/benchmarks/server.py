"""A server while it is measured: started, asked until it answers, seen from outside, ended with all its children."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.benchmarks.peer import Peer, Start
from tests.benchmarks.workloads import MARKS

START_SECONDS = 120.0
SERVER_CPU, CLIENT_CPU = "0", "1"


class Unavailable(Exception):
    """The server could not be installed or started; says why."""


@dataclass(frozen=True)
class Server:
    """A server that answers. `first_answer` is in seconds from its start."""

    process: psutil.Process
    port: int
    first_answer: float
    log: Path

    def cpu_seconds(self) -> float:
        """The CPU time of the server and all its children so far."""
        return sum(cpu_seconds(each) for each in self.processes())

    def memory(self) -> float:
        """The proportional set size of all its processes in MiB."""
        total = 0
        for each in self.processes():
            with contextlib.suppress(psutil.Error):
                total += each.memory_full_info().pss
        return total / 2**20

    def processes(self) -> list[psutil.Process]:
        """The server and its children."""
        return [self.process, *self.process.children(recursive=True)]


def cpu_seconds(process: psutil.Process) -> float:
    """The CPU time of one process so far; 0 of one that is gone."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def pinned(cpu: str) -> list[str]:
    """What a command line begins with to keep to one CPU; nothing where that cannot be."""
    return ["taskset", "-c", cpu] if shutil.which("taskset") and (os.cpu_count() or 1) > 1 else []


@contextlib.contextmanager
def on_cpu(cpu: str) -> Iterator[None]:
    """Keeps this process to one CPU meanwhile, where that can be."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(before) < 2:
        yield
        return
    os.sched_setaffinity(0, {int(cpu)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def serve(peer: Peer, workload: str, python: Path, folder: Path) -> Iterator[Server]:
    """A server that has answered once; on one CPU, W4 with two workers on all.

    Raises:
        Unavailable: it ended, or gave no right answer within two minutes; the message ends with its log.
    """
    folder.mkdir(parents=True)
    workers = 2 if workload == "W4" else 1
    start = Start(python, workload, free_port(), workers, folder)
    with start_server(peer, start, pinned(SERVER_CPU) if workers == 1 else []) as server:
        yield server


@contextlib.contextmanager
def start_server(peer: Peer, start: Start, before: list[str]) -> Iterator[Server]:
    """The same with everything said: `before` is what the command line begins with."""
    log = start.folder / "log"
    environment = os.environ | {
        "WORKLOAD": start.workload,
        "PORT": str(start.port),
        "WORKERS": str(start.workers),
        "MLPKIT_HOME": str(start.folder),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        **peer.environment,
    }
    with log.open("w") as output:
        began = time.monotonic()
        process = subprocess.Popen([*before, *peer.command(start)], env=environment, stdout=output, stderr=output)
    root = psutil.Process(process.pid)
    try:
        _wait_for_answer(peer, start, process, log)
        yield Server(root, start.port, time.monotonic() - began, log)
    finally:
        _end(process, root)


def _wait_for_answer(peer: Peer, start: Start, process: subprocess.Popen[bytes], log: Path) -> None:
    body = peer.bodies(start.workload)[0].encode()
    answer = b"nothing"
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", start.port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", peer.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            if response.status == 200 and MARKS[start.workload] in answer:
                return
        time.sleep(0.02)
    said = log.read_text(errors="replace").strip().splitlines()[-15:]
    raise Unavailable("\n".join((f"{peer.name} answered {answer[:200]!r} to {start.workload}", *said)))


def _end(process: subprocess.Popen[bytes], root: psutil.Process) -> None:
    family = [root, *root.children(recursive=True)] if process.poll() is None else []
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    _, left = psutil.wait_procs(family, timeout=3)
    for each in left:
        with contextlib.suppress(psutil.Error):
            each.kill()
    process.wait(10)
