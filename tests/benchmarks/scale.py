"""What many replicas ask of one database: real checkers and a real MariaDB, but models that load immediately.

    python -m tests.benchmarks.scale            1,000 replicas, 10,000 models of 100 algorithms; prints a table
    python -m tests.benchmarks.scale --real     three replicas and 100 models, simulated and then as three services

A simulated replica has a checker of its own, and shares the connections to the database with all others. All look one
after the other, so a look of all of them shows how long the database and the checkers work for one period.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import anyio
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from mlpkit import App
from mlpkit.algorithm import Algorithm
from mlpkit.platform.checker import AliasFollower, Checker, GateCheck
from mlpkit.platform.database import Database, database_url, make_tables
from mlpkit.serving.model import Claims
from mlpkit.settings import Settings, load_settings
from tests.acceptance.scripts import replica as script
from tests.acceptance.service import RunningService
from tests.servers import wait_until
from tests.servers.mariadb import mariadb

_PERIOD = 2.0
_SETTLED = 1.1
"""Seconds after which a checker takes a second look at a change: a period is always longer."""
_IDLE_PERIODS = 10
_COUNTED = ("Com_select", "Bytes_sent", "Bytes_received")


class Loaded:
    """In place of the models of a service: everything loads immediately. In place of its notes and aliases too."""

    def __init__(self) -> None:
        self.claims = Claims(())
        self.algorithms: dict[str, str] = {}

    def algorithm_of(self, model_id: str) -> str | None:
        return self.algorithms.get(model_id)

    def is_wanted_by_aliases_only(self, model_id: str) -> bool:
        return False

    async def load(self, algorithm: str, model_id: str, path: str | None, *, failures: int) -> None:
        self.algorithms[model_id] = algorithm

    async def unload(self, model_id: str) -> None:
        self.algorithms.pop(model_id, None)

    leave_to_aliases = unload

    def change_followed(self, add: object, remove: object) -> None:
        pass

    def listed(self) -> list[Any]:
        return []


class SimulatedReplica:
    """The checker of one replica, and what it has loaded."""

    def __init__(self, database: Database, algorithms: Mapping[str, Algorithm], settings: Settings) -> None:
        self.loaded = Loaded()
        other = cast(Any, self.loaded)
        # The algorithms store no models, so nobody asks for their gates.
        gate = GateCheck(algorithms, cast(Any, None), settings)
        aliases = AliasFollower(database, other, algorithms, gate, settings.checker_period)
        self._checker = Checker(database, other, other, aliases, algorithms, gate, settings.checker_period)

    async def look(self) -> None:
        """Reads the table once, and does what follows."""
        async with anyio.create_task_group() as tasks:
            await self._checker._pass(tasks.start_soon)


class Platform:
    """The platform's side of a database: it writes the tables, and counts what the replicas ask."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = {**variables, "MLP_CLIENT_MODE": "cluster", "MLPKIT_CHECK_PERIOD": str(_PERIOD)}
        self.settings = load_settings(self.variables, None)
        make_tables(self.settings)
        self._engine: Engine = create_engine(
            database_url(self.settings), isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        self._own = [0] * len(_COUNTED)
        before = self.counts()
        self._own = [after - count for count, after in zip(before, self.counts(), strict=True)]

    def counts(self) -> list[int]:
        """Queries, bytes of answers and bytes of questions so far, without those that count them."""
        with self._engine.connect() as connection:
            rows = connection.execute(text("SHOW GLOBAL STATUS WHERE Variable_name IN :names"), {"names": _COUNTED})
            found = {name: int(value) for name, value in rows}
        self._asked = getattr(self, "_asked", 0) + 1
        return [found[name] - own * self._asked for name, own in zip(_COUNTED, self._own, strict=True)]

    def want(self, algorithm: str, model_ids: list[str]) -> None:
        """Wants models of an algorithm to be loaded everywhere."""
        rows = [{"id": model_id, "algorithm": algorithm} for model_id in model_ids]
        with self._engine.connect() as connection:
            names = "model_id, path, status, loaded, algorithm"
            connection.execute(text(f"INSERT INTO model ({names}) VALUES (:id, :id, 'active', 1, :algorithm)"), rows)
            connection.execute(
                text("INSERT INTO load_record (load_time, algorithm) VALUES (NOW(), :algorithm)"),
                {"algorithm": algorithm},
            )

    def connections(self) -> int:
        """How many connections there are, without this one."""
        with self._engine.connect() as connection:
            rows = connection.execute(text("SHOW GLOBAL STATUS LIKE 'Threads_connected'"))
            return int(rows.one()[1]) - 1


@contextlib.contextmanager
def counted(platform: Platform, what: str, share: int) -> Iterator[None]:
    """Prints a row of the table: what happened, and what it asked of the database, for all and for each of `share`."""
    time.sleep(_SETTLED)
    before = platform.counts()
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    queries, sent, received = (after - count for count, after in zip(before, platform.counts(), strict=True))
    print(
        f"| {what} | {queries:,} | {queries / share:.2f} | {(sent + received) / 1e6:.2f} MB |"
        f" {(sent + received) / share:,.0f} B | {seconds:.2f} s |"
    )


async def look(replicas: list[SimulatedReplica]) -> None:
    for replica in replicas:
        await replica.look()


async def simulate(platform: Platform, apps: list[App], replicas: int, models: int) -> None:
    """Prints what the replicas ask, which share the apps equally, as the apps share the models."""
    print("| what happens | queries | a replica | bytes | a replica | time |\n| --- | --- | --- | --- | --- | --- |")
    database = Database(platform.settings)
    algorithms = [app.build() for app in apps]
    names = [list(each)[-1] for each in algorithms]
    each_has = models // len(apps)
    for name in names:
        platform.want(name, [f"{name}-{number}" for number in range(each_has)])
    all_replicas = [
        SimulatedReplica(database, algorithms[number % len(apps)], platform.settings) for number in range(replicas)
    ]
    with counted(platform, f"all {replicas:,} start, {models:,} models", replicas):
        await look(all_replicas)
    assert all(len(replica.loaded.algorithms) == each_has for replica in all_replicas)
    await anyio.sleep(_SETTLED)
    await look(all_replicas)
    with counted(platform, "a period in which nothing changes", replicas):
        await look(all_replicas)
    platform.want(names[0], ["new"])
    concerned = all_replicas[:: len(apps)]
    with counted(platform, "a period after one model was added", replicas):
        await look(all_replicas)
    assert all("new" in replica.loaded.algorithms for replica in concerned)
    with counted(platform, "the period after that", replicas):
        await look(all_replicas)
    with counted(platform, "the period after that", replicas):
        await look(all_replicas)
    database.close()


def run_real(platform: Platform, folder: Path, models: int) -> None:
    """Prints what three services ask in the same situations."""
    platform.want("light", [f"light-{number}" for number in range(models)])
    services = [
        RunningService(f"{script.__file__}:app", folder / str(number), {**platform.variables, "REPLICA": str(number)})
        for number in range(3)
    ]
    try:
        for service in services:
            service.wait_ready()
        time.sleep(3 * _PERIOD)
        with counted(platform, f"{_IDLE_PERIODS} periods in which nothing changes", 3 * _IDLE_PERIODS):
            time.sleep(_IDLE_PERIODS * _PERIOD)
        with counted(platform, f"{_IDLE_PERIODS} periods, one model added", 3 * _IDLE_PERIODS):
            platform.want("light", ["new"])
            began = time.monotonic()
            wait_until(lambda: all("new" in each.client.monitor().load for each in services), "all have the model")
            converged = time.monotonic() - began
            time.sleep(_IDLE_PERIODS * _PERIOD - converged)
        print(f"\nall three had it after {converged:.2f} s; {platform.connections()} connections")
    finally:
        for service in services:
            service.stop()


def app_of(name: str) -> App:
    """An app with one algorithm whose models need no files."""
    app = App(name)
    app.load(script.load_light)
    app.predict(script.predict)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--replicas", type=int, default=1_000)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--algorithms", type=int, default=100)
    options = parser.parse_args()
    # Each replica logs once which models are for others.
    silence = contextlib.redirect_stderr(io.StringIO())
    with silence, tempfile.TemporaryDirectory() as folder, mariadb() as server:
        if options.real:
            anyio.run(simulate, Platform(server.new_database()), [script.app], 3, 100)
            run_real(Platform(server.new_database()), Path(folder), 100)
        else:
            apps = [app_of(f"a{number}") for number in range(options.algorithms)]
            anyio.run(simulate, Platform(server.new_database()), apps, options.replicas, options.models)


if __name__ == "__main__":
    main()
