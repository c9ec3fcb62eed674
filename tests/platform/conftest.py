"""Databases with the platform's tables: on MariaDB and PostgreSQL servers of our own, and in SQLite files."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from mlpkit.log import LogLine, LogOutput, logger
from mlpkit.platform.database import database_url, make_tables
from mlpkit.script import import_app
from mlpkit.service import Service
from mlpkit.settings import Settings, load_settings
from tests.impossible import impossible
from tests.servers import Unavailable, until
from tests.servers.database import DatabaseServer
from tests.servers.mariadb import mariadb
from tests.servers.postgres import postgres
from tests.serving.conftest import prediction_of

SERVERS: dict[str, Callable[[], AbstractContextManager[DatabaseServer]]] = {"mariadb": mariadb, "postgres": postgres}


@dataclass(frozen=True)
class Platform:
    """The platform's side: its tables in a database, and the environment of a replica that uses it."""

    environment: dict[str, str]
    engine: Engine
    server: DatabaseServer | None = None

    def settings(self, **changes: Any) -> Settings:
        """The settings of a replica in cluster mode."""
        environment = {"MLP_CLIENT_MODE": "cluster", "MLPKIT_DB_TIMEOUT": "2", **self.environment}
        return load_settings(environment, None).with_options(**changes)

    def sql(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        """Runs a statement, and gives its rows where it has some."""
        with self.engine.connect() as connection:
            result = connection.execute(text(statement), values)
            return [tuple(row) for row in result] if result.returns_rows else []

    def put_model(
        self,
        model_id: str,
        algorithm: str | None = "it",
        *,
        loaded: int | None = 1,
        path: str | None = None,
        status: str | None = "active",
    ) -> None:
        """Makes or replaces the row of a model."""
        self.sql("DELETE FROM model WHERE model_id = :model_id", model_id=model_id)
        self.sql(
            "INSERT INTO model (model_id, path, status, loaded, algorithm) "
            "VALUES (:model_id, :path, :status, :loaded, :algorithm)",
            model_id=model_id,
            path=path,
            status=status,
            loaded=loaded,
            algorithm=algorithm,
        )

    def note_change(self, instant: str, algorithm: str = "it") -> None:
        """Says that the models of an algorithm have changed."""
        self.sql("DELETE FROM load_record WHERE algorithm = :algorithm", algorithm=algorithm)
        self.sql(
            "INSERT INTO load_record (load_time, algorithm) VALUES (:instant, :algorithm)",
            instant=instant,
            algorithm=algorithm,
        )

    def status_of(self, model_id: str) -> str | None:
        """What the table says of a training."""
        rows = self.sql("SELECT status FROM model WHERE model_id = :model_id", model_id=model_id)
        return rows[0][0] if rows else None


@pytest.fixture
def log_lines() -> Iterator[Callable[[], str]]:
    """What was logged so far in this process, as the log shows it by default."""
    lines: list[LogLine] = []
    with logger.also_to(lines.append):
        yield lambda: "\n".join(f"{line.level} {line.message}" for line in lines if line.level != "DEBUG")


OpenPlatform = Callable[[str], Platform]


@pytest.fixture(scope="session")
def server_of() -> Iterator[Callable[[str], DatabaseServer]]:
    """Gives the server of a kind, started when it is asked for first."""
    running: dict[str, DatabaseServer] = {}
    with ExitStack() as exits:

        def give(kind: str) -> DatabaseServer:
            if kind not in running:
                try:
                    running[kind] = exits.enter_context(SERVERS[kind]())
                except Unavailable as reason:
                    impossible(reason)
            return running[kind]

        yield give


@pytest.fixture
def open_platform(tmp_path: Path, server_of: Callable[[str], DatabaseServer]) -> OpenPlatform:
    """Gives a new database of a kind, with the platform's tables."""

    def opened(kind: str) -> Platform:
        server = None if kind == "sqlite" else server_of(kind)
        file = {"MLP_CLIENT_DB_TYPE": "sqlite", "ML_CLIENT_MLP_DB_NAME": str(tmp_path / "platform.db")}
        environment = file if server is None else server.new_database()
        settings = load_settings(environment, None)
        make_tables(settings)
        engine = create_engine(database_url(settings), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        return Platform(environment, engine, server)

    return opened


@pytest.fixture(params=["sqlite", "mariadb", "postgres"])
def platform(request: pytest.FixtureRequest, open_platform: OpenPlatform) -> Platform:
    """A new database of each kind in turn."""
    return open_platform(request.param)


@pytest.fixture
def small_platform(open_platform: OpenPlatform) -> Platform:
    """A new SQLite database, for rules that do not depend on the server."""
    return open_platform("sqlite")


SCRIPT = """
from __future__ import annotations
import os, signal, time
from pathlib import Path
from mlpkit import App, ModelDir

folder = Path(__file__).parent
app = App("it")
other = app.algorithm("other")
stored = app.algorithm("stored")

@app.train
def train(parameters: dict) -> None:
    time.sleep(parameters.get("seconds", 0))
    if parameters.get("fails"):
        raise ValueError("as it was told")

@stored.train
def make(out: ModelDir) -> None:
    (out / "file").touch()

@app.load
@other.load
@stored.load
def load(model_id: str, model_path: str | None) -> str:
    if (folder / f"broken-{model_id}").exists():
        raise ValueError(f"{model_id} is broken")
    if (folder / f"deadly-{model_id}").exists():
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{model_id} from {model_path}"

@app.predict
@other.predict
@stored.predict
def predict(model: str) -> str:
    return model
"""

OpenReplica = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def open_replica(tmp_path: Path) -> OpenReplica:
    """`async with open_replica(platform) as replica`: a service in cluster mode, in this process and without a port.

    Replicas of one `name` have one home, and may only follow each other.
    """
    script = tmp_path / f"replica_{tmp_path.name}.py"
    script.write_text(SCRIPT, encoding="utf-8")
    target = f"{script}:app"

    @asynccontextmanager
    async def opened(platform: Platform, name: str = "one", **changes: Any) -> AsyncIterator[Service]:
        quick = {"workers": 0, "checker_period": 0.2, "shutdown_grace": 1.0, "home": tmp_path / name}
        settings = platform.settings(**{**quick, **changes})
        async with Service(import_app(target), settings, LogOutput(io.StringIO()), target=target) as replica:
            yield replica

    return opened


async def until_ready(replica: Service) -> None:
    """Waits until the replica may get requests."""
    await until(lambda: not replica.state.problems())


async def predicted(replica: Service, model_id: str) -> str:
    """What the model answers."""
    return (await prediction_of(replica.models, model_id, b"{}")).decode()
