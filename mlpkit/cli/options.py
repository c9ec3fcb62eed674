"""Arguments and options that several commands share, and how their texts become values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from mlpkit.algorithm import KINDS
from mlpkit.errors import ArgumentError, did_you_mean

Target = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="The app: `module:app`, `file.py:app`, or `file.py` where it has one app."),
]
AlgorithmName = Annotated[
    str | None,
    typer.Option("--algorithm", "-a", help="Which algorithm, where the app has several.", show_default=False),
]
Url = Annotated[str, typer.Option("--url", help="Address of the running service.")]
Prefix = Annotated[
    str,
    typer.Option("--prefix", help="Its path prefix.", envvar="ML_PLATFORM_CLIENT_API_PREFIX"),
]
Token = Annotated[
    str | None,
    typer.Option("--token", help="Its bearer token.", envvar="MLPKIT_TOKEN", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def check_kind(kind: str) -> None:
    """Nothing, for a kind of the platform.

    Raises:
        ArgumentError: there is no such kind; names those that there are.
    """
    if kind not in KINDS:
        raise ArgumentError(f"no kind {kind!r}{did_you_mean(kind, KINDS)}; kinds: {', '.join(KINDS)}")


def json_value(text: str, option: str) -> bytes:
    """The JSON of an option: the text itself, or with `@name` the content of a file.

    Raises:
        ArgumentError: no such file, or it is no JSON.
    """
    try:
        content = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()
        msgspec.json.decode(content)
    except OSError as error:
        raise ArgumentError(f"{option}: {text[1:]} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ArgumentError(f"{option} {text!r} is no JSON: {error}") from None
    return content
