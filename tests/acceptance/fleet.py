"""Three replicas with homes of their own behind nginx, on one MariaDB and one S3 store; and users who ask them."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from mlpkit import Client
from mlpkit.platform.database import database_url, make_tables
from mlpkit.settings import load_settings
from tests.acceptance.service import RunningService
from tests.servers import LONG
from tests.servers.database import DatabaseServer
from tests.servers.nginx import Nginx
from tests.servers.ports import wait_until

PERIOD = 2.0
NAMES = ("one", "two", "three")
_SCRIPT = Path(__file__).parent / "scripts" / "replica.py"


class Fleet:
    """The replicas, and what is done to them; `users` sends predictions through nginx."""

    def __init__(self, folder: Path, database: DatabaseServer, store: dict[str, str]) -> None:
        self._folder, self.database = folder, database
        self._tables = database.new_database()
        settings = load_settings(self._tables, None)
        make_tables(settings)
        self._engine = create_engine(database_url(settings), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self._environment = {
            **self._tables,
            **store,
            "MLP_CLIENT_MODE": "cluster",
            "MLPKIT_SYNC": "lead",
            "MLPKIT_CHECK_PERIOD": str(PERIOD),
            "MLPKIT_DB_TIMEOUT": "2",
            "MLPKIT_STORAGE_TIMEOUT": "2",
            "MLPKIT_STORAGE_RETRIES": "1",
            "MLPKIT_SHUTDOWN_GRACE": "10",
        }
        self.replicas: dict[str, RunningService] = {}
        for name in NAMES:
            self._begin(name)
        for each in self.replicas.values():
            each.wait_ready()
        self._nginx = Nginx(folder / "nginx", self._ports())
        self.client = Client(f"http://127.0.0.1:{self._nginx.port}", timeout=LONG)

    def stop(self) -> None:
        """Ends everything but the servers that it was given."""
        self._nginx.stop()
        self.client.close()
        for each in self.replicas.values():
            each.stop()

    def start(self, name: str) -> None:
        """Starts a replica that has ended again in its home, and gives it requests once it is ready."""
        self._begin(name)
        self.replicas[name].wait_ready()
        self._nginx.use(self._ports())

    def kill(self, name: str) -> None:
        """Ends a replica with SIGKILL, while it gets requests."""
        self.replicas.pop(name).kill()

    def retire(self, name: str) -> None:
        """Takes a replica out of nginx, and then ends it."""
        replica = self.replicas.pop(name)
        self._nginx.use(self._ports())
        code, _ = replica.terminate()
        assert code == 0, replica.log

    def sql(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        """Runs a statement of the platform, and gives its rows where it has some."""
        with self._engine.connect() as connection:
            result = connection.execute(text(statement), values)
            return [tuple(row) for row in result] if result.returns_rows else []

    def trained(self, word: str) -> str:
        """The id of a model that is in the store and answers with the word."""
        job = self.replicas["one"].client.train("word", parameters={"word": word})
        job.wait(LONG)
        return job.model_id

    def have(self, *model_ids: str) -> bool:
        """Whether all replicas have these models loaded."""
        return all(set(model_ids) <= set(each.client.monitor().load) for each in self.replicas.values())

    def until_all_have(self, *model_ids: str, timeout: float = LONG) -> float:
        """Waits until all replicas have these models loaded; how many seconds that took."""
        started = time.monotonic()
        wait_until(lambda: self.have(*model_ids), f"all replicas have {model_ids[:3]}", timeout)
        return time.monotonic() - started

    def answering(self, model_id: str, requests: int = 12) -> Counter[str]:
        """Who answers so many predictions through nginx."""
        return Counter(self.client.predict(model_id, {})["replica"] for _ in range(requests))

    def users(self, model_id: str) -> Users:
        """Users who ask this model all the time, while the `with` block runs."""
        return Users(self._nginx.port, model_id)

    def _begin(self, name: str) -> None:
        settings = {**self._environment, "REPLICA": name}
        self.replicas[name] = RunningService(f"{_SCRIPT}:app", self._folder / name, settings)

    def _ports(self) -> list[int]:
        return [each.port for each in self.replicas.values()]


class Users:
    """Two users who send one prediction after the other, each on a connection of its own."""

    def __init__(self, port: int, model_id: str) -> None:
        self._port, self._body = port, json.dumps({"model_id": model_id, "features": {}})
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(2)]
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.slowest = 0.0

    def __enter__(self) -> Users:
        for each in self._threads:
            each.start()
        wait_until(lambda: self.answers.total() > 0 or bool(self.failures), "the first prediction is answered")
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join(LONG)

    def _ask(self) -> None:
        while not self._over.wait(0.005):
            started = time.monotonic()
            try:
                self.answers[self._predict()] += 1
            except Exception as error:
                self.failures.append(f"after {time.monotonic() - started:.2f} s: {error!r}"[:300])
            self.slowest = max(self.slowest, time.monotonic() - started)

    def _predict(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LONG)
        try:
            connection.request("POST", "/predict", self._body, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            return str(answer["data"]["predictions"]["replica"])
        except KeyError:
            raise AssertionError(answer) from None
        finally:
            connection.close()


def seconds_until(condition: Callable[[], bool], what: str, timeout: float) -> float:
    """Waits for the condition; how many seconds that took."""
    started = time.monotonic()
    wait_until(condition, what, timeout)
    return time.monotonic() - started
