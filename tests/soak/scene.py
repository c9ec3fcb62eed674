"""The service of the soak, its store, and the models that users know; what is done to them is done here."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlpkit import Client
from mlpkit.errors import MlpkitError
from tests.acceptance.service import RunningService, gone
from tests.servers import S3Server, swift, wait_until
from tests.soak.record import Record

SERVED = Path(__file__).parent / "served.py"
ALGORITHMS = ("shared", "batched", "isolated", "coroutine")
MOVERS = 2
_ORPHANS_GONE, _RECOVERED = 2.0, 90.0


@dataclass(frozen=True)
class Known:
    """A model that users ask: which word it must answer with, and where it is stored."""

    algorithm: str
    model_id: str
    word: str
    path: str


class Store:
    """An entrance of its own to the S3 server: it may hang, and it may be gone."""

    def __init__(self, server: S3Server) -> None:
        assert server.folder is not None
        self._folder, self._name = server.folder, f"soak-{os.getpid()}"
        port = swift.write_proxy(server.folder, self._name)
        self.server = S3Server(f"127.0.0.1:{port}", server.access_key, server.secret_key)
        self._port = port
        self._start()

    def freeze(self) -> None:
        """Lets it accept connections and answer nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Ends what `freeze` began."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Refuses connections from now on."""
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        """Ends what `stop` began."""
        self._start()

    def _start(self) -> None:
        self._process: subprocess.Popen[bytes] = swift.start_server(
            self._folder, swift.installed_python(), "proxy", self._name
        )
        wait_until(lambda: swift.answers(self._port), "the store answers")


class Scene:
    """One service on one store. `steady` models stay loaded, each mover loads and unloads its own of `moving`."""

    def __init__(self, folder: Path, store: Store, record: Record, seed: int) -> None:
        self.folder, self.store, self.record, self.seed = folder, store, record, seed
        self.over = threading.Event()
        self._settings = {
            **store.server.environment,
            "SOAK_FOLDER": str(folder),
            "MLP_CLIENT_WORKER": "2",
            "MLP_TRAIN_TASK_NUM": "2",
            "MLPKIT_MAX_WAITING": "16",
            "MLPKIT_STORAGE_TIMEOUT": "2",
            "MLPKIT_STORAGE_RETRIES": "1",
            "MLPKIT_SHUTDOWN_GRACE": "10",
        }
        self.service = self._started()
        self.starts = 1
        self.steady: list[Known] = []
        self.moving: list[list[Known]] = [[] for _ in range(MOVERS)]

    @property
    def client(self) -> Client:
        """For the service that runs now; the one of a killed service fails."""
        return self.service.client

    def prepare(self) -> None:
        """Trains a model of each algorithm and loads it under a name that stays."""
        jobs = [self.client.train(each, parameters={"word": f"word of {each}"}) for each in ALGORITHMS]
        for job in jobs:
            job.wait(60)
            algorithm, path = job.algorithm, f"ml-platform-model/{job.model_id}"
            known = Known(algorithm, f"{algorithm}-steady", f"word of {algorithm}", path)
            self.client.load(known.algorithm, known.model_id, known.path)
            self.steady.append(known)
            for number, models in enumerate(self.moving):
                models.append(Known(algorithm, f"{algorithm}-moving-{number}", known.word, path))

    def workers(self) -> list[psutil.Process]:
        """The worker processes, the eldest first."""
        return self.service.workers()

    def kill_server(self) -> None:
        """SIGKILL, and the same service again; what was loaded must be loaded again, and no process be left."""
        with self.record.trouble("server", "kill -9 of the server"):
            children = self.service.kill()
            try:
                wait_until(lambda: all(gone(each) for each in children), "no process is left", _ORPHANS_GONE)
            except TimeoutError as error:
                self.record.blame(f"after kill -9 of the server: {error}")
            self.service.client.close()
            self.service = self._started()
            self.starts += 1
            loaded = self.client.monitor().load
            for known in self.steady:
                if known.model_id not in loaded:
                    self.record.blame(f"{known.model_id} was not loaded again after kill -9 of the server")

    def kill_worker(self, chance: random.Random, *, spare_the_eldest: bool) -> None:
        """SIGKILL for one worker, and back to ready."""
        with self.record.trouble("worker", "kill -9 of a worker"):
            self._kill(chance.choice(self.workers()[1 if spare_the_eldest else 0 :]))

    def kill_fork_server(self) -> None:
        """SIGKILL for the process of which workers and jobs are forked: all of them end with it."""
        if fork_servers := self.service.fork_servers():
            with self.record.trouble("worker", "kill -9 of the fork server"):
                before = self._restarts()
                fork_servers[0].kill()
                wait_until(lambda: self._restarts() > before, "the service has noticed", 5)
                self._recover()

    def stop_store(self, chance: random.Random) -> None:
        """The store hangs, or is gone, for a few seconds."""
        hangs, seconds = chance.random() < 0.5, chance.uniform(1, 5)
        with self.record.trouble("store", "the store hung" if hangs else "the store was gone"):
            (self.store.freeze if hangs else self.store.stop)()
            time.sleep(seconds)
            (self.store.thaw if hangs else self.store.start)()
            self._recover()

    def _kill(self, process: psutil.Process) -> None:
        before = self._restarts()
        # A worker that unloads its only model at this moment is gone, or is not started again.
        with contextlib.suppress(psutil.NoSuchProcess, TimeoutError):
            process.kill()
            wait_until(lambda: self._restarts() > before, "the service has noticed", 5)
        self._recover()

    def _restarts(self) -> float:
        metrics = self.client.request("GET", "/metrics").body.decode()
        return float(metrics.partition("\nmlpkit_worker_restarts_total ")[2].partition("\n")[0])

    def _recover(self) -> None:
        try:
            self.client.wait_ready(_RECOVERED)
        except MlpkitError as error:
            self.record.blame(f"after {self.record.troubles[-1].what}: {error}")

    def _started(self) -> RunningService:
        service = RunningService(f"{SERVED}:app", self.folder / "home", self._settings)
        service.wait_ready()
        return service
