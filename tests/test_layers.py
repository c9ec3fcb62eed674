"""The architecture as a table, and that the code keeps to it.

A module imports from rows above its own, or from its own folder. A folder is a subsystem: others import it through its
front door (`mlpkit.storage`, never `mlpkit.storage.cache`).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import mlpkit

LAYERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # what everybody may use
    ("L0", ("errors",)),
    ("L0", ("settings", "log", "formats")),
    ("L0", ("metrics", "tracing")),
    # the author's script, and a child process
    ("L1", ("processes",)),
    ("L1", ("injection",)),
    ("L1", ("algorithm", "handler_log")),
    ("L1", ("app",)),
    ("L1", ("script",)),
    # files and models
    ("L2", ("storage",)),
    # work in processes
    ("L3", ("training", "serving")),
    # several replicas
    ("L4", ("platform",)),
    # HTTP
    ("L5", ("web",)),
    # the composition root
    ("L6", ("service",)),
    # what people start
    ("L7", ("client",)),
    ("L7", ("testing", "local")),
    ("L7", ("check",)),
    ("L7", ("cli",)),
    ("L7", ("__main__",)),
)

UPWARD = {
    ("app", "service"): "an App is an ASGI application and can run itself; imported when it does",
    ("app", "local"): "`app.local()` trains and predicts in a notebook; imported when it is called",
    (
        "serving",
        "training",
    ): "`serving.ray` brings workers to Ray nodes as jobs get there; imported for these",
}
"""The imports that go up all the same, and why."""

SIDE_DOORS = {
    "platform.cluster": "needs SQLAlchemy, which only cluster mode has",
    "platform.database": "`mlpkit db` makes the tables before any service runs",
    "client.bar": "draws with rich, which a program that only calls a service need not import",
    "serving.runtime": "`mlpkit predict` and `app.local()` hold a model in the process of their user",
    "serving.messages": "what that host understands",
    "training.raydriver": "how mlpkit speaks to Ray, for jobs and for models",
    "training.remote": "how the script gets to a Ray node, for jobs and for models",
}
"""The modules that are imported past the front door of their folder, and why."""

OWN_NAMES = tuple(f"mlpkit.{name}" for name in ("__version__", "lazy_names", "start_folder", "working_directory"))
"""What `mlpkit/__init__.py` itself defines: everybody may import it, as it leads to no other module."""

LONGEST_FILE = 700

HEAVY = (
    "asyncio",
    "click",
    "concurrent",
    "loguru",
    "minio",
    "multiprocessing",
    "numpy",
    "prometheus_client",
    "psutil",
    "pydantic",
    "rich",
    "sqlalchemy",
    "sqlite3",
    "starlette",
    # Python's own `uuid`, which msgspec imports, needs it before 3.11.
    *(["subprocess"] if sys.version_info >= (3, 11) else []),
    "uvicorn",
)
"""What `import mlpkit` must not import: it is done by every script, every test and every `--help`."""

CODE = ("pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "multiprocessing", "eval", "exec", "compile")
"""What runs what it reads, or lets others do so."""

PACKAGE = Path(mlpkit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROW = {name: row for row, (_, names) in enumerate(LAYERS) for name in names}


@dataclass(frozen=True)
class Import:
    """One import of a module of mlpkit, as it stands in a file."""

    file: Path
    line: int
    importer: tuple[str, ...]
    imported: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file.relative_to(PACKAGE.parent)}:{self.line} imports mlpkit.{'.'.join(self.imported)}"


def imports_of(file: Path) -> Iterator[Import]:
    importer = file.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            found = [each if is_module(each) else module for each in names if each not in OWN_NAMES]
        for each in found:
            root, *rest = each.split(".")
            if root == "mlpkit":
                yield Import(file, line_of(node), importer, tuple(rest))


def line_of(node: ast.AST) -> int:
    return getattr(node, "lineno", 0)


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


IMPORTS = [each for file in FILES for each in imports_of(file)]


def test_every_module_has_its_place_in_the_table() -> None:
    top = {file.relative_to(PACKAGE).with_suffix("").parts[0] for file in FILES} - {"__init__"}

    assert top <= set(ROW), f"modules without a layer: {sorted(top - set(ROW))}"


def test_a_module_imports_only_from_layers_below_its_own() -> None:
    wrong = []
    for each in IMPORTS:
        importer = each.importer[0]
        if importer == "__init__" or not each.imported:
            continue  # the package's own front door names everything, lazily; `from mlpkit import X` goes through it
        imported = each.imported[0]
        own_folder = imported == importer
        if not own_folder and ROW[imported] >= ROW[importer] and (importer, imported) not in UPWARD:
            wrong.append(str(each))

    assert not wrong, "\n".join(wrong)


def test_nobody_below_the_top_imports_through_the_packages_own_front_door() -> None:
    lowest_of_l7 = ROW["client"]
    wrong = [
        str(each)
        for each in IMPORTS
        if not each.imported and each.importer[0] != "__init__" and ROW[each.importer[0]] < lowest_of_l7
    ]

    assert not wrong, "\n".join(wrong)


def test_a_folder_is_imported_through_its_front_door() -> None:
    wrong = [str(each) for each in _past_the_front_door() if ".".join(each.imported) not in SIDE_DOORS]

    assert not wrong, "\n".join(wrong)


def test_the_exceptions_are_used() -> None:
    upward = {(each.importer[0], each.imported[0]) for each in IMPORTS if each.imported}

    assert set(UPWARD) <= upward
    assert set(SIDE_DOORS) == {".".join(each.imported) for each in _past_the_front_door()}


def _past_the_front_door() -> list[Import]:
    return [each for each in IMPORTS if len(each.imported) > 1 and each.imported[0] != each.importer[0]]


def test_nothing_that_comes_from_outside_can_become_code() -> None:
    found = [f"{file.name}:{line}: {name}" for file in FILES for line, name in names_used(file) if name in CODE]
    assert found == []


def names_used(file: Path) -> Iterator[tuple[int, str]]:
    """The modules that a file imports, and the built-in functions that it calls, with their lines."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names):
                yield from ((node.lineno, alias.name.partition(".")[0]) for alias in names)
            case ast.ImportFrom(module):
                yield node.lineno, (module or "").partition(".")[0]
            case ast.Call(ast.Name(name)):
                yield node.lineno, name


def test_no_file_is_too_long_to_be_read() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    long = [f"{file.relative_to(PACKAGE)}: {length} lines" for file, length in lengths.items() if length > LONGEST_FILE]

    assert not long, "\n".join(long)


@pytest.mark.parametrize("name", ["utils", "util", "common", "base", "helpers", "helper", "misc", "manager"])
def test_no_module_has_a_name_that_says_nothing(name: str) -> None:
    assert not [file for file in FILES if file.stem == name]


@pytest.mark.untraced
def test_importing_mlpkit_is_light() -> None:
    code = f"import sys; from mlpkit import App, Depends; print(*[name for name in {HEAVY!r} if name in sys.modules])"

    assert _python(code) == ""


@pytest.mark.untraced
def test_importing_progress_does_not_import_the_storage() -> None:
    assert _python("import sys; from mlpkit import App, Progress; print('mlpkit.storage' in sys.modules)") == "False"


def test_importing_mlpkit_is_quick() -> None:
    code = "import time; t = time.process_time(); {}; print(time.process_time() - t)"
    statements = ["from mlpkit import App, Depends", "import asyncio"]
    # In turns, so that what else the machine does meets both.
    rounds = [[float(_python(code.format(statement))) for statement in statements] for _ in range(8)]
    ours, asyncio = (min(times) for times in zip(*rounds, strict=True))

    # asyncio takes 60 ms of CPU on a quiet machine with 2 cores, and more on a busy one, as we do.
    assert ours < 1.7 * asyncio


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()
