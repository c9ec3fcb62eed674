"""What the documentation shows is what the code does."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mlpkit
from mlpkit.formats.kind import BrokenRow
from mlpkit.settings import described
from tests.servers import LONG

ROOT = Path(__file__).parents[2]
SNIPPETS = ROOT / "docs" / "snippets"
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}.*?\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run(command: list[str], folder: Path) -> str:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"PATH": path, "COLUMNS": "120"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LONG, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_readme_shows_the_example_as_it_is(page: str) -> None:
    (script,) = blocks(ROOT / page, "python")
    assert script.strip() in (ROOT / "examples" / "sentiment.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "label"), [("quickstart.md", "sport"), ("quickstart.zh.md", "体育")])
def test_quickstart_makes_data_trains_and_predicts_in_the_foreground(page: str, label: str, tmp_path: Path) -> None:
    shutil.copy(SNIPPETS / "topics.py", tmp_path)
    make_data, foreground = blocks(ROOT / "docs" / page, "sh")[1:3]
    printed = run(["bash", "-euo", "pipefail", "-c", make_data + foreground], tmp_path)
    best = json.loads(printed.splitlines()[-1])[0]
    assert best["label"] == label
    assert best["score"] > 80


def test_tests_in_the_guide_pass(tmp_path: Path) -> None:
    for name in ("topics.py", "test_functions.py", "test_service.py"):
        shutil.copy(SNIPPETS / name, tmp_path)
    make_data = blocks(ROOT / "docs" / "quickstart.md", "sh")[1]
    run(["bash", "-euo", "pipefail", "-c", make_data], tmp_path)
    assert "2 passed" in run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."], tmp_path)


def test_home_page_shows_what_its_script_answers(tmp_path: Path) -> None:
    page = ROOT / "docs" / "index.md"
    shown = json.loads(blocks(page, "json")[0])["data"]["predictions"]
    assert all(text in page.read_text() for text in ('"parameter": {"C": 10}', '{"sentence": "the team saved a goal"}'))
    shutil.copy(SNIPPETS / "home.py", tmp_path / "topics.py")
    make_data = blocks(ROOT / "docs" / "quickstart.md", "sh")[1]
    ask = """
MODEL=$(mlpkit train topics.py --data topics.tsv --parameters '{"C": 10}')
mlpkit predict topics.py --model "$MODEL" --features '{"sentence": "the team saved a goal"}'
"""
    printed = run(["bash", "-euo", "pipefail", "-c", make_data + ask], tmp_path)
    answer = json.loads(printed.splitlines()[-1])
    assert [{**label, "score": round(label["score"], 1)} for label in answer] == shown


def test_snippets_of_the_guide_run(tmp_path: Path) -> None:
    run([sys.executable, str(SNIPPETS / "spans.py")], tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_name_only_settings_that_exist(page: Path) -> None:
    others = {"MLPKIT_TEST_S3", "MLPKIT_TEST_DATA", "MLPKIT_S3_IMAGE", "MLPKIT_S3_PORT", "MLPKIT_NER_PORT"}
    known = {each.metadata["env"] for each in described()} | others
    named = set(re.findall(r"\bMLPKIT_[A-Z0-9_]*[A-Z0-9]\b", page.read_text(encoding="utf-8")))
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_pages_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def new_file(path: str) -> str:
    """The file that a diff of the page on extending adds."""
    for diff in blocks(ROOT / "docs" / "guide" / "extending.md", "diff"):
        added = diff.partition(f"+++ b/{path}\n")[2].partition("\n--- a/")[0]
        if added:
            return "\n".join(line[1:] for line in added.splitlines() if line.startswith("+"))
    raise AssertionError(f"no diff adds {path}")


def test_files_of_the_page_on_extending_work_as_printed() -> None:
    kind: dict[str, Any] = {"__name__": "similarity"}
    exec(compile(new_file("mlpkit/formats/similarity.py"), "similarity.py", "exec"), kind)
    row = kind["KIND"].read("a sentence\tanother one\t0.5")
    assert (row.first, row.similarity) == ("a sentence", 0.5)
    assert kind["KIND"].write(row) == "a sentence\tanother one\t0.5"
    for broken in ("7", "much", "nan"):
        with pytest.raises(BrokenRow, match="a number from 0 to 1"):
            kind["KIND"].read(f"a sentence\tanother one\t{broken}")
    route: dict[str, Any] = {"__name__": "versions"}
    exec(compile(new_file("mlpkit/web/versions.py"), "versions.py", "exec"), route)
    assert mlpkit.__version__ in asyncio.run(route["version"](None)).body.decode()
    exec(compile(new_file("mlpkit/storage/webdav.py"), "webdav.py", "exec"), {"__name__": "webdav"})
