"""The how-to pages show code that runs, and files that their readers can use."""

from __future__ import annotations

import ast
import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlpkit.algorithm import Algorithm
from tests.docs.pages import DOCS, CodeBlock, read

PAGES = (*sorted((DOCS / "how-to").glob("*.md")), DOCS / "coming-from.md", DOCS / "troubleshooting.md")
WIDEST = 88
"""Characters of a line that a code block shows at 1280 pixels."""
ROWS = "the team won\tsport\nour team saved a goal\tsport\nthe bank lends\tmoney\nrates of the bank rise\tmoney\n"


def code(page: Path, language: str) -> list[CodeBlock]:
    return [block for block in read(page).code if block.language == language]


def english(page: Path) -> bool:
    return not page.name.endswith(".zh.md")


@pytest.mark.parametrize("page", [page for page in PAGES if english(page)], ids=lambda page: page.stem)
def test_code_can_be_read_and_fits_the_page(page: Path) -> None:
    for block in read(page).code:
        assert max(map(len, block.lines), default=0) <= WIDEST, f"{page.name}:{block.number}"
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            yaml.safe_load(block.text)
        elif block.language == "python" and "--8<--" not in block.text:
            ast.parse(block.text)


def test_notebook_trains_and_predicts_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLPKIT_HOME", str(tmp_path / "home"))
    (tmp_path / "topics.tsv").write_text(ROWS, encoding="utf-8")
    script, use, *_ = code(DOCS / "how-to" / "notebooks.md", "python")
    cells: dict[str, Any] = {"__name__": "notebook"}

    async def run() -> None:
        exec(compile(script.text, "cell", "exec"), cells)
        exec(compile(use.text.replace("local.predict", "answer = local.predict"), "cell", "exec"), cells)

    asyncio.run(run())
    assert cells["answer"][0]["label"] == "sport"
    cells["local"].close()


@pytest.mark.parametrize("page", ["metrics.md", "tracing.md"])
def test_scripts_of_how_to_pages_are_apps_without_mistakes(page: str) -> None:
    script = code(DOCS / "how-to" / page, "python")[0]
    names: dict[str, Any] = {"__name__": page.removesuffix(".md")}
    exec(compile(script.text, page, "exec"), names)
    algorithms: dict[str, Algorithm] = names["app"].build()
    assert len(algorithms) == 1
