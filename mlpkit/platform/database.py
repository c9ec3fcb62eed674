"""The platform's database: its tables, and few statements with timeouts.

Source: `tests/wire/PROTOCOL.md`, section 5. The platform owns `model` and `load_record`; `mlpkit db init` makes them
for those who have none, and mlpkit's own table `model_alias`. Only SQL that MySQL, MariaDB, PostgreSQL, SQL Server and
SQLite all know is used.

Every statement runs in a thread of its own, at most `_AT_ONCE` at a time. A thread that hangs in a dead database is
left behind: its caller has gone on after `MLPKIT_DB_TIMEOUT`, and the end of the process does not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import anyio
from sqlalchemy import (
    URL,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Engine,
    MetaData,
    Row,
    Select,
    SmallInteger,
    String,
    Table,
    create_engine,
    delete,
    event,
    func,
    insert,
    inspect,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.sql.dml import Delete, Insert, Update
from sqlalchemy.types import NullType

from mlpkit.errors import DatabaseError
from mlpkit.log import logger
from mlpkit.serving import Alias
from mlpkit.settings import DATABASE_NAMES, Settings

T = TypeVar("T")

_AT_ONCE = 4
_DRIVERS = {
    "mysql": "mysql+pymysql",
    "postgresql": "postgresql+psycopg",
    "mssql": "mssql+pymssql",
    "sqlite": "sqlite",
}
_DEFAULT_SCHEMA = {"mssql": "ml_platform"}
_WITH_SCHEMA = ("mssql", "postgresql")
_MOST_INSTANTS = 1000
"""How many instants are compared: an instant in the future must not hide the changes of other rows."""
_PORTS = {"mysql": 3306, "postgresql": 5432, "mssql": 1433}
_WORDS = {"active": "completed", "inactive": "completed", "error": "error"}

Change = tuple[tuple[object, int], ...]
"""When an algorithm's models changed, newest first, and how often each instant is noted; only compared."""


@dataclass(frozen=True)
class WantedModel:
    """A row that says: load this. Nothing about it has been checked."""

    algorithm: str | None
    model_id: str | None
    path: str | None


class Tables:
    """The tables, under their names in this database, and the statements.

    `model`, `record` and `alias` are SQLAlchemy tables.

    Columns keep the platform's names as their keys: `tables.model.c.loaded` is right whatever this database calls it.
    """

    def __init__(self, settings: Settings) -> None:
        names = {name: name.rpartition(".")[2] for name in DATABASE_NAMES} | dict(settings.db_names)
        schema = settings.db_schema or _DEFAULT_SCHEMA.get(settings.db_type)
        self.metadata = MetaData(schema=schema if settings.db_type in _WITH_SCHEMA else None)
        instant = DateTime().with_variant(mysql.DATETIME(fsp=3), "mysql", "mariadb")
        self.model = Table(
            names["model"],
            self.metadata,
            Column(names["model.model_id"], String(64), primary_key=True, key="model_id"),
            Column(names["model.path"], String(1024), key="path"),
            Column(names["model.status"], String(16), key="status"),
            Column(names["model.loaded"], SmallInteger, key="loaded"),
            Column(names["model.algorithm"], String(64), key="algorithm"),
        )
        self.record = Table(
            names["load_record"],
            self.metadata,
            Column(names["load_record.load_time"], instant, key="load_time"),
            Column(names["load_record.algorithm"], String(64), key="algorithm"),
        )
        self.alias = Table(
            names["model_alias"],
            self.metadata,
            Column(names["model_alias.algorithm"], String(64), primary_key=True, key="algorithm"),
            Column(names["model_alias.alias"], String(64), primary_key=True, key="alias"),
            Column(names["model_alias.model_id"], String(64), nullable=False, key="model_id"),
            Column(names["model_alias.moved"], instant, key="moved"),
        )

    def rows_of(self, model_id: str) -> Select[Any]:
        """All columns of a model's rows; none or several are possible."""
        model = self.model.c
        return select(model.model_id, model.status, model.loaded, model.algorithm, model.path).where(
            model.model_id == model_id
        )

    def changes(self, algorithms: Iterable[str]) -> Select[Any]:
        """Algorithm, load_time and number of rows, newest first.

        At most `_MOST_INSTANTS` pairs of algorithm and instant.

        The instant is as the driver gives it, only to be compared.
        """
        record = self.record.c
        return (
            select(record.algorithm, type_coerce(record.load_time, NullType()), func.count())
            .where(record.algorithm.in_(list(algorithms)), record.load_time.is_not(None))
            .group_by(record.algorithm, record.load_time)
            .order_by(record.load_time.desc(), record.algorithm)
            .limit(_MOST_INSTANTS)
        )

    def wanted(self, algorithms: Iterable[str]) -> Select[Any]:
        """algorithm, model_id and path of the models that are to be loaded."""
        model = self.model.c
        return (
            select(model.algorithm, model.model_id, model.path)
            .where(model.algorithm.in_(list(algorithms)), model.loaded == 1)
            .order_by(model.model_id, model.path)
        )

    def foreign(self, algorithms: Iterable[str]) -> Select[Any]:
        """The other algorithms with models to load, and how many."""
        model = self.model.c
        none_of_these = or_(model.algorithm.is_(None), model.algorithm.not_in(list(algorithms)))
        return select(model.algorithm, func.count()).where(model.loaded == 1, none_of_these).group_by(model.algorithm)

    def end_training(self, model_id: str, word: str) -> Update:
        """Puts the word in the place of `training`, and of nothing else."""
        model = self.model.c
        return update(self.model).where(model.model_id == model_id, model.status == "training").values(status=word)

    def add_model(self, model_id: str, algorithm: str, *, status: str, loaded: int, path: str | None = None) -> Insert:
        """A row for a model that has none."""
        return insert(self.model).values(
            model_id=model_id, algorithm=algorithm, status=status, loaded=loaded, path=path
        )

    def want(self, model_id: str, algorithm: str, path: str | None) -> Update:
        """Says that a model with a row is to be loaded."""
        return (
            update(self.model).where(self.model.c.model_id == model_id).values(loaded=1, algorithm=algorithm, path=path)
        )

    def unwant(self, model_id: str) -> Update:
        """Says that a model is not to be loaded."""
        return update(self.model).where(self.model.c.model_id == model_id).values(loaded=0)

    def note_change(self, algorithm: str) -> Update:
        """Tells all replicas that something about the algorithm's models has changed."""
        return update(self.record).where(self.record.c.algorithm == algorithm).values(load_time=func.now())

    def add_record(self, algorithm: str) -> Insert:
        """The same for an algorithm that has no record yet."""
        return insert(self.record).values(algorithm=algorithm, load_time=func.now())

    def aliases(self, algorithms: Iterable[str]) -> Select[Any]:
        """algorithm, alias and model_id of these algorithms' aliases."""
        alias = self.alias.c
        return select(alias.algorithm, alias.alias, alias.model_id).where(alias.algorithm.in_(list(algorithms)))

    def add_alias(self, algorithm: str, alias: str, model_id: str) -> Insert:
        """A row for an alias that has none."""
        return insert(self.alias).values(algorithm=algorithm, alias=alias, model_id=model_id, moved=func.now())

    def move_alias(self, algorithm: str, alias: str, model_id: str) -> Update:
        """Lets an alias with a row lead to a model."""
        return update(self.alias).where(*self._is(algorithm, alias)).values(model_id=model_id, moved=func.now())

    def remove_alias(self, algorithm: str, alias: str) -> Delete:
        """Removes the row of an alias."""
        return delete(self.alias).where(*self._is(algorithm, alias))

    def _is(self, algorithm: str, alias: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return self.alias.c.algorithm == algorithm, self.alias.c.alias == alias


def database_url(settings: Settings) -> URL:
    """The database's URL; its `str` hides the password."""
    kind = settings.db_type
    if kind == "sqlite":
        return URL.create(_DRIVERS[kind], database=settings.db_name)
    return URL.create(
        _DRIVERS[kind],
        username=settings.db_user,
        password=settings.db_password or None,
        host=settings.db_host,
        port=settings.db_port or _PORTS[kind],
        database=settings.db_name,
        query={"charset": "utf8mb4"} if kind == "mysql" else {},
    )


def _open_engine(settings: Settings) -> Engine:
    """An engine that connects when it is first used.

    Each of its calls has a timeout if the driver supports one.
    """
    engine = create_engine(
        database_url(settings),
        connect_args=_driver_options(settings),
        hide_parameters=True,
        isolation_level="AUTOCOMMIT",
        max_overflow=0,
        pool_pre_ping=True,
        pool_reset_on_return=None,
        pool_size=_AT_ONCE,
        pool_timeout=settings.db_timeout,
    )
    if settings.db_type == "sqlite":
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA journal_mode = WAL"))
    return engine


def make_tables(settings: Settings) -> tuple[list[str], str]:
    """Makes missing tables; gives their names and the database's URL.

    Raises:
        DatabaseError: the database cannot be reached, or does not allow it.
    """
    tables = Tables(settings)
    url = database_url(settings).render_as_string(hide_password=True)
    engine = _open_engine(settings)
    try:
        present = set(inspect(engine).get_table_names(schema=tables.metadata.schema))
        tables.metadata.create_all(engine, checkfirst=True)
    except SQLAlchemyError as error:
        raise DatabaseError(f"the tables cannot be made in {url}: {_described(error)[0]}") from None
    finally:
        engine.dispose()
    return [table.name for table in (tables.model, tables.record, tables.alias) if table.name not in present], url


class Database:
    """Reads and writes the platform's tables.

    Used on one event loop; `problems` says what is wrong with it now.

    Raises:
        DatabaseError: from every method, within `MLPKIT_DB_TIMEOUT`; what exactly was wrong is in the log, once.
    """

    def __init__(self, settings: Settings) -> None:
        self._engine = _open_engine(settings)
        self._closed = False
        self._tables = Tables(settings)
        self._url = database_url(settings).render_as_string(hide_password=True)
        self._timeout = settings.db_timeout
        self._limiter = anyio.CapacityLimiter(_AT_ONCE)
        self._problems: dict[str, _Problem] = {}
        self._has_aliases = False

    def close(self) -> None:
        """Closes the connections, each when no call uses it."""
        self._closed = True
        self._engine.dispose()

    def problems(self) -> list[str]:
        """What failed when it was last tried; names no host."""
        return sorted({problem.shown for problem in self._problems.values()})

    async def status(self, model_id: str) -> str:
        """The state of a model's training, as the table has it.

        `completed`, `error`, `training`, or `unknown` if there is no row.
        """

        def ask(connection: Connection) -> str:
            statuses = [row.status for row in self._rows(connection, model_id) if row.status]
            return _WORDS.get(statuses[0], "training") if statuses else "unknown"

        return await self._call("read the status of a training", ask)

    async def changes(self, algorithms: Iterable[str]) -> dict[str, Change]:
        """When the models of each algorithm changed.

        An algorithm without a record is missing.
        """

        def ask(connection: Connection) -> dict[str, Change]:
            found: dict[str, Change] = {}
            for name, instant, count in connection.execute(self._tables.changes(algorithms)):
                found[name] = (*found.get(name, ()), (instant, count))
            return found

        return await self._call("read what has changed", ask)

    async def wanted(self, algorithms: Iterable[str]) -> list[WantedModel]:
        """The rows of these algorithms' models that should be loaded."""

        def ask(connection: Connection) -> list[WantedModel]:
            return [WantedModel(*row) for row in connection.execute(self._tables.wanted(algorithms))]

        return await self._call("read which models are to be loaded", ask)

    async def foreign(self, algorithms: Iterable[str]) -> dict[str | None, int]:
        """How many models other algorithms should load, by algorithm."""

        def ask(connection: Connection) -> dict[str | None, int]:
            rows = connection.execute(self._tables.foreign(algorithms))
            return {row[0]: row[1] for row in rows}

        return await self._call("read which models are to be loaded", ask)

    async def end_training(self, model_id: str, word: Literal["inactive", "error"]) -> bool:
        """Replaces `training` with how the training ended.

        False if there is no row yet.

        The platform makes the row after `train` was answered, so a short training can end before its row is there.
        """

        def tell(connection: Connection) -> bool:
            statuses = [row.status for row in self._rows(connection, model_id) if row.status]
            if "training" in statuses:
                connection.execute(self._tables.end_training(model_id, word))
            return bool(statuses)

        return await self._call("write how a training ended", tell)

    async def begin_training(self, model_id: str, algorithm: str) -> None:
        """Makes the row of a training if it is missing."""

        def tell(connection: Connection) -> None:
            if not self._rows(connection, model_id):
                with contextlib.suppress(IntegrityError):
                    connection.execute(self._tables.add_model(model_id, algorithm, status="training", loaded=0))

        await self._call("write that a training began", tell)

    async def want(self, model_id: str, algorithm: str, path: str | None) -> None:
        """Tells all replicas to load a model.

        Nothing is written if the table says so already.
        """

        def tell(connection: Connection) -> None:
            desired = (1, algorithm, path)
            if any((row.loaded, row.algorithm, row.path) == desired for row in self._rows(connection, model_id)):
                return
            if not connection.execute(self._tables.want(model_id, algorithm, path)).rowcount:
                try:
                    connection.execute(
                        self._tables.add_model(model_id, algorithm, status="active", loaded=1, path=path)
                    )
                except IntegrityError:  # Another replica has just added it.
                    connection.execute(self._tables.want(model_id, algorithm, path))
            self._note_change(connection, algorithm)

        await self._call("write that a model is to be loaded", tell)

    async def unwant(self, model_id: str) -> None:
        """Tells all replicas not to load a model.

        Nothing is written if the table says so already.
        """

        def tell(connection: Connection) -> None:
            algorithms = {row.algorithm for row in self._rows(connection, model_id) if row.loaded == 1}
            if algorithms:
                connection.execute(self._tables.unwant(model_id))
            for algorithm in algorithms - {None}:
                self._note_change(connection, algorithm)

        await self._call("write that a model is not to be loaded", tell)

    async def aliases(self, algorithms: Iterable[str]) -> list[Alias] | None:
        """The aliases of these algorithms; None without a table of aliases."""

        def ask(connection: Connection) -> list[Alias] | None:
            if not self._finds_aliases(connection):
                return None
            rows = [Alias(*row) for row in connection.execute(self._tables.aliases(algorithms))]
            # To a database, algorithms that differ only in case may be equal.
            return [row for row in rows if row.algorithm in algorithms]

        return await self._call("read the aliases", ask)

    async def move_alias(self, algorithm: str, alias: str, model_id: str) -> None:
        """Tells all replicas to which model an alias leads."""

        def tell(connection: Connection) -> None:
            self._need_aliases(connection)
            move = self._tables.move_alias(algorithm, alias, model_id)
            if not connection.execute(move).rowcount:
                try:
                    connection.execute(self._tables.add_alias(algorithm, alias, model_id))
                except IntegrityError:  # Another replica has just added it.
                    connection.execute(move)

        await self._call("write an alias", tell)

    async def remove_alias(self, algorithm: str, alias: str) -> None:
        """Tells all replicas that an alias is gone."""

        def tell(connection: Connection) -> None:
            self._need_aliases(connection)
            connection.execute(self._tables.remove_alias(algorithm, alias))

        await self._call("remove an alias", tell)

    def _finds_aliases(self, connection: Connection) -> bool:
        """Whether there is a table of aliases.

        Databases of earlier versions have none.
        """
        if not self._has_aliases:
            table = self._tables.alias
            self._has_aliases = inspect(connection).has_table(table.name, schema=table.schema)
        return self._has_aliases

    def _need_aliases(self, connection: Connection) -> None:
        if not self._finds_aliases(connection):
            name = self._tables.alias.name
            raise DatabaseError(f"the database has no table {name}: `mlpkit db init` makes it")

    def _rows(self, connection: Connection, model_id: str) -> list[Row[Any]]:
        """The rows of exactly this id.

        To a database, ids that differ only in case may be equal.
        """
        return [row for row in connection.execute(self._tables.rows_of(model_id)) if row.model_id == model_id]

    def _note_change(self, connection: Connection, algorithm: str) -> None:
        if not connection.execute(self._tables.note_change(algorithm)).rowcount:
            connection.execute(self._tables.add_record(algorithm))

    async def _call(self, what: str, statements: Callable[[Connection], T]) -> T:
        """Runs `statements` in a thread, on a connection that works."""
        try:
            with anyio.fail_after(self._timeout):
                answer = await self._in_thread(statements)
        except TimeoutError:
            raise self._failed(what, f"there was no answer within {self._timeout:g} s", unreachable=True) from None
        except (SQLAlchemyError, UnicodeError, OSError) as error:
            raise self._failed(what, *_described(error)) from None
        self._worked(what)
        return answer

    async def _in_thread(self, statements: Callable[[Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        call = object()
        answer: asyncio.Future[T] = loop.create_future()

        def deliver(result: T | None, error: BaseException | None) -> None:
            self._limiter.release_on_behalf_of(call)
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            result = None
            failure = None
            try:
                with self._engine.connect() as connection:
                    try:
                        result = statements(connection)
                    finally:
                        if self._closed:
                            connection.invalidate()
            except BaseException as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # The loop may be closed: then nothing waits for the answer.
                loop.call_soon_threadsafe(deliver, result, failure)

        await self._limiter.acquire_on_behalf_of(call)
        threading.Thread(target=run, name="mlpkit-database", daemon=True).start()
        return await answer

    def _failed(self, what: str, why: str, unreachable: bool) -> DatabaseError:
        shown = f"the platform's database could not {what}; the log of the service says why"
        before = self._problems.get(what)
        if before is None or before.why != why:
            logger.error("the database {} could not {}: {}", self._url, what, why)
        self._problems[what] = _Problem(why, shown, unreachable)
        return DatabaseError(shown)

    def _worked(self, what: str) -> None:
        """Forgets this call's problem, and that the database was unreachable."""
        over = [name for name, problem in self._problems.items() if problem.unreachable or name == what]
        for name in over:
            del self._problems[name]
        if over and not self._problems:
            logger.info("the database {} can be used again", self._url)


@dataclass(frozen=True)
class _Problem:
    why: str
    shown: str
    unreachable: bool


def _described(error: Exception) -> tuple[str, bool]:
    """The driver's own message, and whether the database was unreachable.

    The message does not contain the statement and its values.
    """
    if isinstance(error, PoolTimeout):
        return "all connections are in use", True
    if isinstance(error, DBAPIError):
        # The error has a statement only if there was a connection to send it on.
        return " ".join(str(error.orig).split()), error.connection_invalidated or error.statement is None
    return str(error), False


def _driver_options(settings: Settings) -> dict[str, Any]:
    limit = settings.db_timeout
    whole = max(1, math.ceil(limit))
    if settings.db_type == "mysql":
        return {"connect_timeout": whole, "read_timeout": whole, "write_timeout": whole}
    if settings.db_type == "postgresql":
        keepalives = {"keepalives_idle": whole, "keepalives_interval": whole, "keepalives_count": 1}
        return {
            "connect_timeout": max(2, whole),
            "tcp_user_timeout": int(limit * 1000),
            "prepare_threshold": None,
            **keepalives,
        }
    if settings.db_type == "mssql":
        return {"timeout": whole, "login_timeout": whole}
    return {"timeout": limit}
