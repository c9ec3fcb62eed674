"""A service as a newcomer starts it, `python -m mlpkit run ...`: in a process, a home and on a port of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from mlpkit import Client
from tests.servers import LONG
from tests.servers.ports import accepts, free_port, wait_until

_OURS = ("MINIO_", "MLPKIT_", "MLP_", "ML_PLATFORM_", "CHECKER_", "CONNECT_")
_START_TIMEOUT, _STOP_TIMEOUT = LONG, LONG


class RunningService:
    """A started service; `client` talks to it, `home` is its folder, and started again on that it is the same service.

    Args:
        target: the import string, as on the command line.
        home: becomes `MLPKIT_HOME`; its folder is the working directory.
        settings: values by the names of the environment; none of this process gets through.
    """

    def __init__(self, target: str, home: Path, settings: Mapping[str, str]) -> None:
        self.home, self.port = home, free_port()
        self.client = Client(f"http://127.0.0.1:{self.port}", timeout=LONG)
        self._children: list[psutil.Process] = []
        self._log_file = home.parent / f"{home.name}.log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        with self._log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlpkit", "run", target, "--port", str(self.port)],
                cwd=home.parent,
                env={**kept, "MLPKIT_HOME": str(home), "MLP_CLIENT_WORKER": "1", **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What the service has written to its terminal so far, in all its runs."""
        return self._log_file.read_text(encoding="utf-8")

    def wait_live(self) -> None:
        """Returns when the server answers at all."""
        wait_until(lambda: self._ended() or accepts(self.port), "the service listens", _START_TIMEOUT)
        assert not self._ended(), self.log
        assert self.client.live()

    def wait_ready(self) -> None:
        """Returns when the service takes work."""
        self.wait_live()
        self.client.wait_ready(_START_TIMEOUT)

    def family(self) -> list[psutil.Process]:
        """The server and everything that it has started."""
        server = psutil.Process(self.pid)
        return [server, *server.children(recursive=True)]

    def worker(self) -> psutil.Process:
        """The one worker."""
        (found,) = self.workers()
        return found

    def workers(self) -> list[psutil.Process]:
        """The workers that run, the eldest first."""
        return running_as("mlpkit.serving", self.family())

    def fork_servers(self) -> list[psutil.Process]:
        """The fork servers that run, the eldest first."""
        return running_as("mlpkit.forksrv", self.family())

    def terminate(self) -> tuple[int, list[psutil.Process]]:
        """Sends SIGTERM; the exit code of the server, which must end by itself, and what it had started."""
        self._children = self._started()
        self.process.terminate()
        return self.process.wait(_STOP_TIMEOUT), self._children

    def kill(self) -> list[psutil.Process]:
        """Ends the server with SIGKILL, so that it can do nothing for what it had started, which is returned."""
        self._children = self._started()
        self.process.kill()
        self.process.wait()
        return self._children

    def stop(self) -> None:
        """Ends whatever still runs."""
        self.client.close()
        try:
            if not self._ended():
                self.terminate()
        finally:
            for each in self._children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            self.process.kill()
            self.process.wait()

    def _started(self) -> list[psutil.Process]:
        """What the server has started; their arguments go beside the log, where the tests look for secrets."""
        server, *children = self.family()
        with self._log_file.with_suffix(".arguments").open("a", encoding="utf-8") as file:
            for each in (server, *children):
                with contextlib.suppress(psutil.Error):
                    print(each.pid, *each.cmdline(), file=file)
        return children

    def _ended(self) -> bool:
        return self.process.poll() is not None


def running_as(module: str, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those of the processes that run as this module, the eldest first."""
    found = []
    for each in processes:
        # One that was just killed may be gone, or not yet be waited for.
        with contextlib.suppress(psutil.Error):
            # A fresh interpreter has its command line only.
            if module in (each.name(), *each.cmdline()):
                found.append((each.create_time(), each.pid, each))
    return [each for _, _, each in sorted(found)]


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended; one that nobody has collected yet counts as ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True
