"""The platform's two tables and mlpkit's own, and every statement for them.

Source: `tests/wire/PROTOCOL.md`, section 5. The platform owns `model` and `load_record`; `mlpkit db init` makes them
for those who have none, and mlpkit's own table `model_alias`. Only SQL that MySQL, MariaDB, PostgreSQL, SQL Server and
SQLite all know is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    DateTime,
    MetaData,
    Select,
    SmallInteger,
    String,
    Table,
    delete,
    func,
    insert,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.sql.dml import Delete, Insert, Update
from sqlalchemy.types import NullType

from mlpkit.settings import DATABASE_NAMES, Settings

_DEFAULT_SCHEMA = {"mssql": "ml_platform"}
_MOST_INSTANTS = 1000
"""How many instants are compared: an instant in the future must not hide the changes of other rows."""
_WITH_SCHEMA = ("mssql", "postgresql")


class Tables:
    """The tables, under their names in this database.

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
