"""The service to check: the command starts it, or it runs already."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpkit.client import Client
from mlpkit.errors import ArgumentError, ServiceUnreachable
from mlpkit.processes import memory_of
from mlpkit.settings import Settings, load_settings

_START_SECONDS = 120.0
_STOP_SECONDS = 45.0
_SAMPLE_SECONDS = 0.05
_LAST_LINES = 15


@dataclass
class CheckedService:
    """A service to check, and what is known of the algorithm.

    `trains` is False if it has no `train`; `pid` is None if the service's processes cannot be seen.
    """

    target: str
    client: Client
    settings: Settings
    algorithm: str
    kind: str
    examples: Sequence[Any]
    trains: bool = True
    pid: int | None = None

    def memory(self) -> int:
        """Resident bytes of all processes; 0 if they cannot be seen."""
        return 0 if self.pid is None else memory_of(self.pid)


class MemoryWatch:
    """Measures a service's memory twenty times a second, in a thread."""

    def __init__(self, service: CheckedService) -> None:
        self._subject = service
        self._highest = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="mlpkit-check-memory", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stopped.set()
        self._thread.join()

    def take(self) -> int:
        """The highest memory since the last call, in bytes."""
        highest = max(self._highest, self._subject.memory())
        self._highest = 0
        return highest

    def _sample(self) -> None:
        while self._subject.pid is not None and not self._stopped.wait(_SAMPLE_SECONDS):
            self._highest = max(self._highest, self._subject.memory())


@contextmanager
def started(target: str, algorithm: str | None, examples: Sequence[Any]) -> Iterator[CheckedService]:
    """A service for a script, with one worker and the folder store.

    Its home is removed afterwards.

    Raises:
        DeclarationError: the script has mistakes.
        ServiceUnreachable: the service did not start; the message has the end of its log.
    """
    from mlpkit.script import choose_algorithm, import_app

    found = choose_algorithm(import_app(target), algorithm)
    with tempfile.TemporaryDirectory(prefix="mlpkit-check-") as folder, socket.socket() as probe:
        home = Path(folder)
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        environment = _environment(home)
        settings = load_settings(environment)
        probe.close()
        with (
            Client(f"http://127.0.0.1:{port}") as client,
            _running(target, port, client, environment, home / "service.log") as pid,
        ):
            known = examples or found.examples
            yield CheckedService(target, client, settings, found.name, found.kind, known, "train" in found.hooks, pid)


@contextmanager
def running(client: Client, algorithm: str | None, kind: str, examples: Sequence[Any]) -> Iterator[CheckedService]:
    """A service that is running already.

    The settings of this process must name its store.

    Raises:
        ArgumentError: it does not have that algorithm, or has several and `algorithm` is None.
    """
    algorithms = client.monitor().algorithms
    name = algorithm or (algorithms[0] if len(algorithms) == 1 else "")
    if name not in algorithms:
        problem = (
            f"the service has no algorithm {name!r}" if name else "name an algorithm of the service with --algorithm"
        )
        raise ArgumentError(f"{problem} ({', '.join(algorithms)})")
    yield CheckedService(client.url, client, load_settings(), name, kind, examples)


def _environment(home: Path) -> dict[str, str]:
    """The environment of the started service.

    The empty values stop `.env` from setting these variables.
    """
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MINIO_", "MLPKIT_", "ML_PLATFORM_"))
    }
    own = {
        "MLPKIT_HOME": str(home),
        "MLP_CLIENT_WORKER": "1",
        "MLP_CLIENT_MODE": "standalone",
        "ML_PLATFORM_CLIENT_API_PREFIX": "/",
        "MINIO_HOST": "",
        "MLPKIT_TOKEN": "",
        "MLPKIT_HTTP_ERRORS": "platform",
        "MLPKIT_SHUTDOWN_GRACE": "5",
        "PYTHONUNBUFFERED": "1",
    }
    return {**kept, **own}


@contextmanager
def _running(target: str, port: int, client: Client, environment: dict[str, str], log: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "mlpkit", "run", target, "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command line
            command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        _wait_ready(process, client, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], client: Client, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not (readiness := client.ready()).ready:
        if process.poll() is not None:
            raise ServiceUnreachable(f"the service ended at its start with code {process.returncode}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            reasons = "; ".join(readiness.reasons)
            raise ServiceUnreachable(f"the service is not ready after {_START_SECONDS:g} s: {reasons}\n{_tail(log)}")
        time.sleep(_SAMPLE_SECONDS)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])
