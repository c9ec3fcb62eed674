"""`mlpkit new`: makes a project that works without changes."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import keyword
import re
import zipfile
from pathlib import Path
from string import Template

import click

from mlpkit.cli.options import FILE
from mlpkit.errors import ArgumentError, did_you_mean

_TEMPLATES = Path(__file__).with_name("template")
_KINDS = ("text_classification", "text_sequence_labeling")
_LONGEST_NAME = 32


@click.command()
@click.argument("name", metavar="NAME")
@click.option("--kind", "-k", default=_KINDS[0], metavar="KIND", help=f"Kind of the algorithm: {' or '.join(_KINDS)}.")
@click.option("--into", default=".", type=FILE, metavar="FOLDER", help="Folder in which the project's folder is made.")
def new(name: str, kind: str, into: Path) -> None:
    """Make a working project: script, data, test and Dockerfile.

    NAME is the name of the project and of its algorithm. The script works for languages with and without spaces
    between words. The folder wheels/ gets the mlpkit that you use now, so you can build the image without a package
    index that has mlpkit.

    \b
    Examples:
      mlpkit new mood && cd mood && mlpkit check mood.py --data data/train.tsv
      mlpkit new places --kind text_sequence_labeling
    """
    module = name.replace("-", "_").lower()
    if not re.fullmatch(r"[a-z]\w*", module, re.ASCII) or keyword.iskeyword(module) or len(name) > _LONGEST_NAME:
        raise ArgumentError(
            f"{name!r} is not a name for a project: use letters, digits, - and _, begin with a letter, "
            f"at most {_LONGEST_NAME} characters, and not a keyword of Python"
        )
    if kind not in _KINDS:
        raise ArgumentError(f"no template for kind {kind!r}{did_you_mean(kind, _KINDS)}; kinds: {', '.join(_KINDS)}")
    folder = into / name
    if folder.exists():
        raise ArgumentError(f"{folder} exists already")
    hidden = importlib.util.find_spec(module)
    if hidden is not None and hidden.origin:
        raise ArgumentError(f"{name!r} is not a name for a project: {module}.py would hide the module {module!r}")
    _write_project(folder, name, module, kind)
    print(f"made {folder}: try\n\n  cd {folder}")
    print(f"  mlpkit check {module}.py --data data/train.tsv\n  mlpkit run {module}.py")


def _write_project(folder: Path, name: str, module: str, kind: str) -> None:
    """Writes the project's files into a new folder."""
    from importlib.metadata import PackageNotFoundError, version

    from mlpkit import __version__

    files = {
        f"{kind}/script.py.txt": f"{module}.py",
        f"{kind}/test.py.txt": f"test_{module}.py",
        f"{kind}/train.tsv": "data/train.tsv",
        "Dockerfile.txt": "Dockerfile",
        "requirements.txt": "requirements.txt",
        "wheels.md.txt": "wheels/README.md",
    }
    try:
        required = version("mlpkit")
    except PackageNotFoundError:
        # Run from a folder on the path: there is nothing that a wheel could be made from.
        required = __version__
    for source, place in files.items():
        text = Template((_TEMPLATES / source).read_text(encoding="utf-8"))
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.substitute(name=name, module=module, version=required), encoding="utf-8")
    _write_wheel(folder / "wheels")


def _write_wheel(folder: Path) -> Path | None:
    """The running mlpkit as a wheel; None if it is not installed.

    Source of the format: the specification "Binary distribution format" of the Python Packaging User Guide.
    """
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        installed = distribution("mlpkit")
    except PackageNotFoundError:
        return None
    package = Path(__file__).parents[1]
    info = f"mlpkit-{installed.version}.dist-info"
    content = {
        f"mlpkit/{file.relative_to(package).as_posix()}": file.read_bytes()
        for file in sorted(package.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    for name in ("METADATA", "entry_points.txt", "licenses/LICENSE"):
        text = installed.read_text(name)
        if text is not None:
            content[f"{info}/{name}"] = text.encode()
    content[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: mlpkit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in content.items()]
    content[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()
    wheel = folder / f"mlpkit-{installed.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
