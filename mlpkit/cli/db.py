"""`mlpkit db init`: the tables of the replicas, for those who have no platform that made them."""

from __future__ import annotations

import click

from mlpkit.errors import SettingsError
from mlpkit.settings import load_settings


@click.group(no_args_is_help=True)
def db() -> None:
    """Prepare the database that replicas share."""


@db.command("init")
def init_db() -> None:
    """Make the tables that replicas share, where they are missing. The database itself must be there.

    The settings say where: DB_HOST, DB_PORT, DB_USER, DB_PASS, ML_CLIENT_MLP_DB_NAME, MLP_CLIENT_DB_TYPE.

    \b
    Example:
      DB_PASS=... mlpkit db init
    """
    settings = load_settings()
    try:
        from mlpkit.platform.database import make_tables
    except ModuleNotFoundError as error:
        raise SettingsError(f"the package {error.name} is needed: pip install 'mlpkit[sql]'") from error

    made, where = make_tables(settings)
    print(f"made in {where}: {', '.join(made)}" if made else f"{where} has the tables already")
