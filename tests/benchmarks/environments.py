"""A virtual environment for each peer, in `.bench/`, made once: `pip` says what it took."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from tests.benchmarks.peer import Peer
from tests.benchmarks.server import Unavailable

CACHE = Path(".bench")
WORKLOADS_NEED = "scikit-learn"
INSTALL_SECONDS = 900.0


class Installed(msgspec.Struct, frozen=True):
    """What a peer and all that it needs take on disk, without the packages of the workloads."""

    pip: tuple[str, ...]
    mebibytes: float
    distributions: int


def environment(peer: Peer) -> tuple[Path, Installed]:
    """The Python of a peer's environment, made where it is missing or was made for other versions.

    Raises:
        Unavailable: `pip` cannot install it; says why.
    """
    folder = CACHE / peer.environment_folder
    python, note = folder / "bin" / "python", folder / "installed.json"
    if note.exists():
        installed = msgspec.json.decode(note.read_bytes(), type=Installed)
        if installed.pip == peer.pip:
            return python.absolute(), installed
    print(f"installing {peer.name} into {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    installed = install(folder, peer.pip)
    _pip(python, WORKLOADS_NEED)
    note.write_bytes(msgspec.json.encode(installed))
    return python.absolute(), installed


def install(folder: Path, pip: tuple[str, ...]) -> Installed:
    """Makes a virtual environment with nothing but what these arguments of `pip install` bring; its size.

    Raises:
        Unavailable: `pip` cannot install it; says why.
    """
    _run(sys.executable, "-m", "venv", str(folder))
    before = _size(folder)
    for arguments in pip:
        _pip(folder / "bin" / "python", *shlex.split(arguments))
    mebibytes = (_size(folder) - before) / 2**20
    distributions = len(list(folder.glob("lib/*/site-packages/*.dist-info"))) - 2
    return Installed(pip, mebibytes, distributions)


def _pip(python: Path, *arguments: str) -> None:
    _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    if done.returncode:
        raise Unavailable("\n".join((shlex.join(command), *done.stderr.strip().splitlines()[-3:])))


def _size(folder: Path) -> int:
    """Bytes of the files below a folder, without the bytecode that Python adds."""
    return sum(
        os.lstat(os.path.join(place, name)).st_size
        for place, _, names in os.walk(folder)
        for name in names
        if not name.endswith(".pyc")
    )
