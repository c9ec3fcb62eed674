"""A real database server of the tests' own: started, stopped, frozen and thawed by the id of its process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from tests.secret import MARK
from tests.servers.ports import LONG, wait_until

USER, PASSWORD = "mlp", f"{MARK}-p@ss/w:rd"
"""The password has every character that a URL would take for its own."""


@dataclass
class DatabaseServer:
    """A server on 127.0.0.1 with a user `mlp` who may do everything."""

    kind: str
    driver: str
    port: int
    command: Sequence[str]
    folder: Path
    user: str | None = None
    process: subprocess.Popen[bytes] | None = None
    _made: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Starts the server, or starts it again with the same data; returns when it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=self.user
            )
        wait_until(lambda: self._answers() or not self._runs(), f"{self.kind} answers")
        if not self._runs():
            raise OSError(f"{self.kind} ended at its start: {(self.folder / 'server.log').read_text()[-500:]}")

    def stop(self) -> None:
        """Ends the server, and leaves its data."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGQUIT if self.kind == "postgresql" else signal.SIGTERM)
            try:
                self.process.wait(LONG)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Makes the server hang: it accepts connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Ends what `freeze` began."""
        self._signal(signal.SIGCONT)

    def new_database(self) -> dict[str, str]:
        """A new, empty database: the variables that make a service of mlpkit use it."""
        name = f"t_{os.getpid()}_{len(self._made)}"
        self._made.append(name)
        engine = self._engine("" if self.kind == "mysql" else "postgres")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        return {
            "MLP_CLIENT_DB_TYPE": self.kind,
            "DB_HOST": "127.0.0.1",
            "DB_PORT": str(self.port),
            "DB_USER": USER,
            "DB_PASS": PASSWORD,
            "ML_CLIENT_MLP_DB_NAME": name,
        }

    def remove(self) -> None:
        """Ends the server and removes its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            with self._engine("" if self.kind == "mysql" else "postgres").connect():
                return True
        except SQLAlchemyError:
            return False

    def _engine(self, database: str) -> Engine:
        url = URL.create(self.driver, USER, PASSWORD, "127.0.0.1", self.port, database)
        return create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)

    def _runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _signal(self, number: signal.Signals) -> None:
        """Signals every process of the server: PostgreSQL has one for each connection."""
        import psutil

        assert self.process is not None
        server = psutil.Process(self.process.pid)
        for process in [server, *server.children(recursive=True)]:
            process.send_signal(number)


def run(command: Sequence[str], *, user: str | None = None, stdin: str = "") -> None:
    """Runs a command that prepares a server; OSError with its last words when it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=LONG, user=user, cwd="/")
    if done.returncode:
        raise OSError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-500:]}")
