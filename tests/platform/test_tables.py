"""Statements and addresses for servers that are not at hand here, as text: SQL Server above all."""

from __future__ import annotations

import pytest
from sqlalchemy import URL
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.schema import CreateTable

from mlpkit.errors import SettingsError
from mlpkit.platform.database import Tables, database_url
from mlpkit.settings import Settings, load_settings

SECRET = "p@ss/w:rd#%?&='\" 密码"
DIALECTS: list[Dialect] = [URL.create(name).get_dialect()() for name in ("mssql", "mysql", "postgresql", "sqlite")]
SQL_SERVER = DIALECTS[0]


def compiled(statement: object, dialect: Dialect) -> str:
    text = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
    return " ".join(str(text).split())


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
def test_every_statement_compiles_with_bound_values(dialect: Dialect) -> None:
    tables = Tables(Settings())
    statements = [
        tables.rows_of("m'"),
        tables.changes(["a'", "b"]),
        tables.wanted(["a'"]),
        tables.foreign(["a'"]),
        tables.end_training("m'", "inactive"),
        tables.add_model("m'", "a", status="active", loaded=1),
        tables.want("m'", "a", None),
        tables.unwant("m'"),
        tables.note_change("a'"),
        tables.add_record("a'"),
    ]

    for each in statements:
        assert "m'" not in compiled(each, dialect)
        assert "a'" not in compiled(each, dialect)


def test_sql_server_reads_from_its_schema() -> None:
    tables = Tables(Settings(db_type="mssql"))

    assert compiled(tables.rows_of("m"), SQL_SERVER) == (
        "SELECT ml_platform.model.model_id, ml_platform.model.status, ml_platform.model.loaded, "
        "ml_platform.model.algorithm, ml_platform.model.path FROM ml_platform.model "
        "WHERE ml_platform.model.model_id = :model_id_1"
    )
    assert compiled(tables.note_change("a"), SQL_SERVER).startswith("UPDATE ml_platform.load_record SET")
    assert "CURRENT_TIMESTAMP" in compiled(tables.note_change("a"), SQL_SERVER)
    assert "CREATE TABLE ml_platform.model" in compiled(CreateTable(tables.model), SQL_SERVER)


def test_a_schema_is_used_where_the_server_has_some() -> None:
    assert Tables(Settings(db_type="mssql", db_schema="mlp")).model.schema == "mlp"
    assert Tables(Settings(db_type="postgresql", db_schema="mlp")).model.schema == "mlp"
    assert Tables(Settings(db_type="postgresql")).model.schema is None
    assert Tables(Settings(db_type="mysql", db_schema="mlp")).model.schema is None


@pytest.mark.parametrize(
    ("kind", "driver", "port"),
    [
        ("mysql", "mysql+pymysql", 3306),
        ("MariaDB", "mysql+pymysql", 3306),
        ("pg", "postgresql+psycopg", 5432),
        ("postgres", "postgresql+psycopg", 5432),
        ("postgresql", "postgresql+psycopg", 5432),
        ("mssql", "mssql+pymssql", 1433),
        ("sqlserver", "mssql+pymssql", 1433),
    ],
)
def test_a_password_may_have_any_character(kind: str, driver: str, port: int) -> None:
    settings = load_settings({"MLP_CLIENT_DB_TYPE": kind, "DB_HOST": "db.example", "DB_PASS": SECRET}, None)
    url = database_url(settings)

    assert (url.drivername, url.host, url.port, url.password) == (driver, "db.example", port, SECRET)
    assert SECRET not in str(url)
    assert SECRET not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("MLP_CLIENT_DB_TYPE", "oracle", "one of mysql, mariadb, pg"),
        ("MLP_CLIENT_MODE", "swarm", "one of standalone, cluster"),
        ("DB_PORT", "0", "a port from 1 to 65535"),
        ("DB_PORT", "123456", "a port from 1 to 65535"),
        ("MLPKIT_DB_NAMES", "model.pth=x", "did you mean 'model.path'?"),
        ("MLPKIT_DB_NAMES", "model", "names such as"),
        ("MLPKIT_CHECK_PERIOD", "0", "a time from 0.1s to 1h"),
        ("MLPKIT_SYNC", "lead", "needs MLP_CLIENT_MODE=cluster"),
    ],
)
def test_a_setting_that_cannot_be_used_is_told(name: str, value: str, told: str) -> None:
    with pytest.raises(SettingsError, match="(?s)" + told.replace("?", r"\?")):
        load_settings({name: value}, None)


def test_the_mode_is_standalone_unless_it_is_set() -> None:
    assert load_settings({"CHECKER_START": "true", "DB_HOST": "db.example"}, None).mode == "standalone"
