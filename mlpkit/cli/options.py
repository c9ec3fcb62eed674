"""What several commands share: arguments, options, and what their texts mean."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from mlpkit import start_folder
from mlpkit.errors import ArgumentError, did_you_mean
from mlpkit.formats import kind_names
from mlpkit.settings import Settings

FILE = click.Path(path_type=Path)
"""The type of an option that names a file or folder."""

target = click.argument("target", metavar="TARGET")
"""The app; click shows no help of arguments, so the docstrings of the commands explain it."""

algorithm_name = click.option("--algorithm", "-a", metavar="NAME", help="Which algorithm, if the app has several.")
_url = click.option("--url", default="http://127.0.0.1:8000", metavar="URL", help="Address of the running service.")
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


def of_service(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the client of `--url`, `--prefix` and `--token`."""

    @_url
    @prefix
    @token
    @functools.wraps(command)
    def run(url: str, prefix: str, token: str | None, **arguments: Any) -> None:
        from mlpkit.client import Client

        with Client(url, prefix, token) as client:
            command(client=client, **arguments)

    return run


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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArgumentError(f"{option} {text!r} is not valid JSON: {error}") from None
    return content


@contextlib.contextmanager
def placed_model(model: str, settings: Settings) -> Iterator[tuple[str, str | None]]:
    """The id and the path of a model in the store.

    A folder from another place is put into the store until the block ends.
    """
    from mlpkit.storage import folder_of, open_storage

    if not model.strip():
        raise ArgumentError("the model is empty: give its folder or its id; has the training failed that prints it?")
    folder = Path(start_folder, model)
    store = folder_of(settings)
    if not folder.exists():
        yield (model, None) if "/" not in model else (model.rstrip("/").rpartition("/")[2], model)
    elif not folder.is_dir():
        raise ArgumentError(f"--model: {model} is a file; the folder of a model is needed")
    elif store is not None and folder.is_relative_to(store):
        yield folder.name, folder.relative_to(store).as_posix()
    else:
        path = f"{settings.model_bucket}/foreground/{secrets.token_hex(16)}"
        with contextlib.closing(open_storage(settings)) as storage:
            storage.save_dir(folder, path)
            try:
                yield folder.name, path
            finally:
                storage.delete(path + "/", recursive=True)


def quiet_destructors() -> None:
    """Prints no errors of `__del__` any more, as Ctrl-C ends the process.

    A constructor that Ctrl-C has ended leaves half an object, and its `__del__` may fail: tqdm's does.
    """
    sys.unraisablehook = lambda unraisable: None


@contextlib.contextmanager
def script_prints_to_stderr() -> Iterator[None]:
    """Sends what the script prints to stderr, unless stdout is a terminal.

    So `MODEL=$(mlpkit train ...)` gets nothing but the result; a terminal shows both anyway.
    """
    if os.isatty(1):
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    # The descriptor itself: C code and grandchildren write there too.
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
