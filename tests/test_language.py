"""Names and language of the package: one meaning per name, short first lines, no word that a reader must look up."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.words import unwanted

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mlpkit"
MODULES_AT_THE_ROOT = 10
WORDS_OF_A_FIRST_LINE = 12


def sources() -> Iterator[tuple[Path, str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        yield path.relative_to(ROOT), text, ast.parse(text)


def test_no_class_name_occurs_twice() -> None:
    places = defaultdict(list)
    for path, _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_first_line_of_a_docstring_is_short() -> None:
    long = []
    for path, _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = (ast.get_docstring(node) or "").partition("\n")[0]
                if len(first.split()) > WORDS_OF_A_FIRST_LINE:
                    long.append(f"{path}:{getattr(node, 'lineno', 1)}: {first}")
    assert not long, "\n".join(long)


def test_unwanted_words_are_not_used() -> None:
    found = [f"{path}:{line}" for path, text, _ in sources() for line in unwanted(text)]
    assert not found, "\n".join(found)


def test_loop_variables_are_named_after_the_thing() -> None:
    found = []
    for path, _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
                names = {name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)}
                if "each" in names:
                    found.append(f"{path}:{node.target.lineno}")
    assert not found, "\n".join(found)


def test_few_modules_stand_at_the_root() -> None:
    modules = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(modules) <= MODULES_AT_THE_ROOT, modules
