"""The command line: `main` runs it. Commands import what they need when they are called: `run` starts at once."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from mlpkit.cli.check import check
from mlpkit.cli.data import data
from mlpkit.cli.db import db
from mlpkit.cli.new import new
from mlpkit.cli.predict import predict
from mlpkit.cli.remote import jobs, models
from mlpkit.cli.run import run
from mlpkit.cli.train import train
from mlpkit.cli.version import version
from mlpkit.errors import ArgumentError, DeclarationError, MlpkitError, SettingsError

commands = typer.Typer(
    help="One script of plain functions becomes a production ML algorithm service.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (run, new, train, predict, check, jobs, models, version):
    commands.command()(command)
commands.add_typer(data, name="data")
commands.add_typer(db, name="db")


def main() -> NoReturn:
    """Runs the command of `sys.argv` and exits: 0 all well, 1 the work failed, 2 the command or script is wrong."""
    try:
        commands()
    except MlpkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, (DeclarationError, SettingsError, ArgumentError)) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
