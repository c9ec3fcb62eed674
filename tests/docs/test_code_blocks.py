"""Every code block of the documentation is complete, can be parsed, and fits the screen; scripts are also built."""

from __future__ import annotations

import ast
import configparser
import json
import re
import subprocess
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import SNIPPETS, CodeBlock, all_pages, page_id, read, references
from tests.servers import LONG

WIDEST = 88
"""Columns that fit beside both menus at 1280 px; a Chinese character takes two."""

NO_OUTPUT = {"console", "text", "js", "promql", "sql", "xml"}
"""Languages whose blocks are not parsed."""

NOT_INSTALLED = {
    *("bentoml", "fastapi", "litserve", "ml_platform_client", "mlserver"),
    *("opentelemetry", "ray", "torch", "transformers"),
    *("my_model", "my_store"),
}
"""Packages that pages import and tests do without; `my_...` are the reader's own."""

BOX = re.compile(r"[\u2500-\u257f]")

Named = tuple[str, CodeBlock]


def blocks(*languages: str) -> list[Named]:
    return [(page_id(page), block) for page in all_pages() for block in read(page).code if block.language in languages]


def place(named: Named) -> str:
    return f"{named[0]}:{named[1].number}"


def width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def too_wide(block: CodeBlock) -> list[str]:
    return [line for line in block.lines if width(line) > WIDEST]


@pytest.mark.parametrize("page", all_pages(), ids=page_id)
def test_code_blocks_need_no_scroll_bar(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        return
    found = [f"line {block.number}: {line}" for block in read(page).code for line in too_wide(block)]
    assert not found, "\n".join(found)


def test_code_that_the_references_show_needs_no_scroll_bar() -> None:
    code = re.findall(r"^```sh\n(.*?)^```", references.commands_reference(), re.DOTALL | re.MULTILINE)
    assert len(code) > 20
    assert [line for block in code for line in block.splitlines() if width(line) > WIDEST] == []


def test_chinese_characters_count_as_two_columns() -> None:
    assert too_wide(CodeBlock("sh", "", ("训" * 45,), 1))
    assert not too_wide(CodeBlock("sh", "", ("训" * 44, "x" * 88), 1))


@pytest.mark.parametrize("page", all_pages(), ids=page_id)
def test_pictures_are_not_drawn_with_characters(page: Path) -> None:
    found = [line for block in read(page).code for line in block.lines if BOX.search(line) and block.language != "text"]
    assert not found
    assert not BOX.search(read(page).prose)


def parse_dockerfile(text: str) -> None:
    joined = re.sub(r"\\\n", " ", text)
    for line in joined.splitlines():
        assert re.match(
            r"\s*(#|$|(FROM|RUN|COPY|ENV|USER|WORKDIR|EXPOSE|CMD|ENTRYPOINT|VOLUME|ARG|HEALTHCHECK|STOPSIGNAL)\s)", line
        ), line


def parse_nginx(text: str) -> None:
    assert text.count("{") == text.count("}")
    for line in text.splitlines():
        assert re.search(r"^\s*$|[;{}]\s*(#.*)?$|^\s*#", line), line


def parse_diff(text: str) -> None:
    assert re.search(r"^--- .*\n\+\+\+ ", text, re.MULTILINE)
    for line in text.splitlines():
        assert re.match(r"[-+ @\\]|$|diff |new file|index ", line), line


def parse_json(text: str) -> None:
    """One value, or one a line; `…` stands for what is left out."""
    try:
        json.loads(text)
    except ValueError:
        for line in text.splitlines():
            json.loads(line)


def parse_ini(text: str) -> None:
    configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True).read_string(text)


def parse_shell(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0, done.stderr


def parse_toml(text: str) -> None:
    tomllib = pytest.importorskip("tomllib")
    tomllib.loads(text)


PARSERS: dict[str, Callable[[str], object]] = {
    "diff": parse_diff,
    "dockerfile": parse_dockerfile,
    "ini": parse_ini,
    "json": parse_json,
    "nginx": parse_nginx,
    "python": ast.parse,
    "sh": parse_shell,
    "toml": parse_toml,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
}


@pytest.mark.parametrize("page", all_pages(), ids=page_id)
def test_code_blocks_name_a_known_language(page: Path) -> None:
    found = [f"line {block.number}: {block.language!r}" for block in read(page).code]
    assert [each for each in found if each.partition(": ")[2].strip("'") not in PARSERS.keys() | NO_OUTPUT] == []


@pytest.mark.parametrize("named", blocks(*PARSERS), ids=place)
def test_code_blocks_can_be_parsed(named: Named) -> None:
    PARSERS[named[1].language](named[1].text)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "def train(:\n"),
        ("json", '{"status": }\n'),
        ("yaml", "a: [1\n"),
        ("sh", "if true; then\n"),
        ("ini", "no section\n"),
        ("nginx", "server {\n"),
        ("diff", "nothing\n"),
        ("dockerfile", "INSTALL mlpkit\n"),
    ],
)
def test_broken_code_blocks_are_noticed(language: str, text: str) -> None:
    with pytest.raises((AssertionError, ValueError, SyntaxError, yaml.YAMLError, configparser.Error)):
        PARSERS[language](text)


def undefined_names(sources: dict[str, str], folder: Path) -> dict[str, set[str]]:
    """The names in each source that are neither imported nor defined, as ruff finds them."""
    for name, text in sources.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "json", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LONG, check=False)
    found: dict[str, set[str]] = defaultdict(set)
    for problem in json.loads(done.stdout):
        found[Path(problem["filename"]).stem].add(problem["message"].split("`")[1])
    return found


def defined(text: str) -> set[str]:
    """What a block defines at its top, without what it imports."""
    names: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            names |= {
                name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            }
    return names


def fragments(python: list[Named], folder: Path) -> list[str]:
    """Blocks with a name that is neither theirs nor of a block above on the page; imports must be in the block."""
    undefined = undefined_names({f"block_{number}": block.text for number, (_, block) in enumerate(python)}, folder)
    above: dict[str, set[str]] = defaultdict(set)
    found = []
    for number, (page, block) in enumerate(python):
        if missing := undefined[f"block_{number}"] - above[page]:
            found.append(f"{page}:{block.number} uses {', '.join(sorted(missing))}")
        above[page] |= defined(block.text)
    return found


def test_python_blocks_import_and_define_what_they_use(tmp_path: Path) -> None:
    found = fragments(blocks("python"), tmp_path)
    assert not found, "\n".join(found)


def test_a_fragment_without_its_imports_is_noticed(tmp_path: Path) -> None:
    first = CodeBlock("python", "", ("import json", "app = 1"), 1)
    second = CodeBlock("python", "", ("json.dumps(app)",), 5)
    assert fragments([("a.md", first), ("a.md", second)], tmp_path) == ["a.md:5 uses json"]
    assert fragments([("a.md", first), ("b.md", second)], tmp_path) == ["b.md:5 uses app, json"]


DECLARE = """
import importlib.util, json, sys, types
from mlpkit import App

absent = set(sys.argv[2].split(","))
sys.path.insert(0, sys.argv[3])
pages = {}
for page, name, text in json.load(open(sys.argv[1], encoding="utf-8")):
    module = types.ModuleType(name)
    sys.modules[name] = module
    for key, value in pages.get(page, {}).items():
        # Another block may declare the same hook again, so it gets an app of its own.
        module.__dict__[key] = App(value.name, kind=value.kind) if isinstance(value, App) else value
    own = set(module.__dict__)
    try:
        exec(compile(text, name, "exec"), module.__dict__)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in absent:
            continue
        print(f"{name}: {error}")
        continue
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
        continue
    for key, value in module.__dict__.items():
        if isinstance(value, App) and key not in own and value.algorithms():
            try:
                value.build()
            except Exception as error:
                print(f"{name}:", " ".join(str(error).split()))
    pages.setdefault(page, {}).update({k: v for k, v in module.__dict__.items() if not k.startswith("__")})
"""


def only_declares(text: str) -> bool:
    """Whether running the block only imports, defines and decorates."""
    return all(
        isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        or (isinstance(node, ast.Assign) and re.search(r"App\(|\.algorithm\(", ast.unparse(node)))
        or (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in ast.parse(text).body
    )


def mistakes_of_scripts(python: list[Named], folder: Path) -> list[str]:
    """What is wrong with blocks that declare algorithms, or import from mlpkit, when Python runs them."""
    listed = [(page, f"{page}:{block.number}", block.text) for page, block in python if only_declares(block.text)]
    (folder / "blocks.json").write_text(json.dumps(listed), encoding="utf-8")
    command = [sys.executable, "-c", DECLARE, str(folder / "blocks.json"), ",".join(NOT_INSTALLED), str(SNIPPETS)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_scripts_of_the_pages_are_accepted(tmp_path: Path) -> None:
    # The tutorial's scripts import each other; test_tutorial.py runs them.
    python = [named for named in blocks("python") if "/tutorial/" not in named[0]]
    found = mistakes_of_scripts(python, tmp_path)
    assert not found, "\n".join(found)


def test_a_script_with_a_mistake_is_noticed(tmp_path: Path) -> None:
    script = ("from mlpkit import App", 'app = App("x")', "@app.predict", "def predict(modell): ...")
    (mistake, *_) = mistakes_of_scripts([("a.md", CodeBlock("python", "", script, 3))], tmp_path)
    assert "modell" in mistake
