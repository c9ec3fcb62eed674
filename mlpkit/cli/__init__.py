"""The command line; `main` runs it.

Commands import what they need when they are called, so that `run` starts quickly.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from mlpkit.cli.check import check
from mlpkit.cli.data import data
from mlpkit.cli.evaluate import compare, evaluate
from mlpkit.cli.foreground import predict, train
from mlpkit.cli.new import new
from mlpkit.cli.options import quiet_destructors
from mlpkit.cli.remote import alias, cancel, jobs, load, logs, models, stack, status, unload
from mlpkit.cli.run import run
from mlpkit.errors import ArgumentError, DeclarationError, MlpkitError, SettingsError
from mlpkit.settings import load_settings


class _InOrder(click.Group):
    """Lists its commands in the order that a new user needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.command()
def version() -> None:
    """Print the versions of mlpkit, Python and the packages below it.

    \b
    Example:
      mlpkit version
    """
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    from mlpkit import __version__

    print(f"mlpkit {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for package in ("starlette", "uvicorn", "anyio", "minio", "msgspec", "loguru"):
        try:
            print(f"  {package} {installed(package)}")
        except PackageNotFoundError:
            print(f"  {package} is not installed")


@click.group(no_args_is_help=True)
def db() -> None:
    """Prepare the database that replicas share."""


@db.command("init")
def init_db() -> None:
    """Make the tables that replicas share, if they are missing.

    The database itself must exist.

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

    made, place = make_tables(settings)
    print(f"made in {place}: {', '.join(made)}" if made else f"{place} has the tables already")


commands = _InOrder(
    help="One script of plain functions becomes a production ML algorithm service.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
)
for command in (
    *(run, new, train, predict, evaluate, compare, check),
    *(jobs, status, logs, stack, cancel, models, load, unload, alias),
    *(version, data, db),
):
    commands.add_command(command)


def main() -> NoReturn:
    """Runs the command of `sys.argv` and exits.

    The exit code is 0 if all is well, 1 if the work failed, 2 if the command or the script is wrong, 130 after Ctrl-C.
    """
    try:
        # Not standalone: click would make 1 of Ctrl-C.
        sys.exit(commands.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MlpkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, (DeclarationError, SettingsError, ArgumentError)) else 1)
    except BrokenPipeError:
        # The reader, such as `head`, has enough. Python must not try to write the rest at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        quiet_destructors()
        sys.exit(130)
