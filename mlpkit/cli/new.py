"""`mlpkit new`: a project that works as it is."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

import click

from mlpkit.cli.options import FILE
from mlpkit.errors import ArgumentError

_TEMPLATE = Path(__file__).with_name("template")
_LONGEST_NAME = 32


@click.command()
@click.argument("name", metavar="NAME")
@click.option("--into", default=".", type=FILE, metavar="FOLDER", help="Folder in which the project's folder is made.")
def new(name: str, into: Path) -> None:
    """Make a working project: script, data, test and Dockerfile.

    NAME is the name of the project and of its algorithm.

    \b
    Example:
      mlpkit new mood && cd mood && mlpkit check mood.py --data data/train.tsv
    """
    module = name.replace("-", "_").lower()
    if not re.fullmatch(r"[a-z]\w*", module, re.ASCII) or keyword.iskeyword(module) or len(name) > _LONGEST_NAME:
        raise ArgumentError(
            f"{name!r} is no name for a project: letters, digits, - and _ are allowed, a letter comes first, "
            f"at most {_LONGEST_NAME} in all, no word of Python"
        )
    folder = into / name
    if folder.exists():
        raise ArgumentError(f"{folder} exists already")
    write_project(folder, name, module)
    print(f"made {folder}: try\n\n  cd {folder}")
    print(f"  mlpkit check {module}.py --data data/train.tsv\n  mlpkit run {module}.py")


def write_project(folder: Path, name: str, module: str) -> None:
    """Writes the project's files into a new folder."""
    from mlpkit import __version__

    places = {
        "script.py.txt": f"{module}.py",
        "test.py.txt": f"test_{module}.py",
        "train.tsv": "data/train.tsv",
        "Dockerfile.txt": "Dockerfile",
        "requirements.txt": "requirements.txt",
    }
    for source, place in places.items():
        text = Template((_TEMPLATE / source).read_text(encoding="utf-8"))
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.substitute(name=name, module=module, version=__version__), encoding="utf-8")
