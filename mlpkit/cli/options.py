"""Arguments and options that several commands share, and what their texts mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from mlpkit.errors import ArgumentError, did_you_mean
from mlpkit.formats import kind_names

FILE = click.Path(path_type=Path)
"""The type of an option that names a file or folder."""

target = click.argument("target", metavar="TARGET")
"""The app; click shows no help of arguments, so the docstrings of the commands explain it."""

algorithm_name = click.option("--algorithm", "-a", metavar="NAME", help="Which algorithm, if the app has several.")
url = click.option("--url", default="http://127.0.0.1:8000", metavar="URL", help="Address of the running service.")
prefix = click.option(
    "--prefix",
    default="/",
    metavar="PATH",
    envvar="ML_PLATFORM_CLIENT_API_PREFIX",
    show_envvar=True,
    help="Its path prefix.",
)
token = click.option("--token", metavar="TOKEN", envvar="MLPKIT_TOKEN", show_envvar=True, help="Its bearer token.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def training_files(command: Callable[..., None]) -> Callable[..., None]:
    """The options `--data`, `--dictionary`, `--extra` and `--pretrained`, which name local files."""
    for name, metavar, text in (
        ("--pretrained", "PATH", "A pretrained model, file or folder: parameter.pretrain_model."),
        ("--extra", "FILE", "An extra file: extend.extra_location."),
        ("--dictionary", "FILE", "A dictionary: extend.dict_location."),
        ("--data", "FILE", "Training data: data.location."),
    ):
        command = click.option(name, type=FILE, metavar=metavar, help=f"{text} Uploaded to the data bucket.")(command)
    return command


def check_kind(kind: str) -> None:
    """Checks that the kind exists.

    Raises:
        ArgumentError: the kind does not exist; the message names all kinds.
    """
    kinds = kind_names()
    if kind not in kinds:
        raise ArgumentError(f"no kind {kind!r}{did_you_mean(kind, kinds)}; kinds: {', '.join(kinds)}")


def json_value(text: str, option: str) -> bytes:
    """The JSON of an option.

    It is the text itself, or the content of a file if the text is `@name`.

    Raises:
        ArgumentError: the file cannot be read, or the text is not valid JSON.
    """
    try:
        content = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()
        msgspec.json.decode(content)
    except OSError as error:
        raise ArgumentError(f"{option}: {text[1:]} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ArgumentError(f"{option} {text!r} is not valid JSON: {error}") from None
    return content
