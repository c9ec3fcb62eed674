"""The how-to pages show code that runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mlpkit.algorithm import Algorithm
from tests.docs.pages import DOCS, CodeBlock, read

ROWS = "the team won\tsport\nour team saved a goal\tsport\nthe bank lends\tmoney\nrates of the bank rise\tmoney\n"


def code(page: Path, language: str) -> list[CodeBlock]:
    return [block for block in read(page).code if block.language == language]


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
