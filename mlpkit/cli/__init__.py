"""The command line: `main` runs it. Commands import what they need when they are called: `run` starts at once."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

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
from mlpkit.nursery import at_the_foot


class _InOrder(click.Group):
    """Lists its commands as they were added: what a newcomer needs comes first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


commands = _InOrder(
    help="One script of plain functions becomes a production ML algorithm service.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
)
for command in (run, new, train, predict, check, jobs, models, version, data, db):
    commands.add_command(command)


def main() -> NoReturn:
    """Runs the command of `sys.argv` and exits: 0 all well, 1 the work failed, 2 the command or script is wrong."""
    at_the_foot(_run_command)


def _run_command() -> NoReturn:
    try:
        # Not standalone: click would make 1 of Ctrl-C.
        sys.exit(commands.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MlpkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, (DeclarationError, SettingsError, ArgumentError)) else 1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
