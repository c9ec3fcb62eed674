"""The page on troubleshooting leads from what a user sees to what to do."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from docs import messages
from mlpkit import errors
from tests.docs.pages import DOCS

PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
CLASSES = [name for name, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__]


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "MlpkitError"])
def test_every_error_is_explained_by_a_symptom(name: str) -> None:
    assert f"`{name}`" in PAGE


def test_quoted_messages_exist() -> None:
    known = " ".join(message.text for *_, places in messages.SUBJECTS for message in messages.messages_of(*places))
    source = "\n".join(file.read_text(encoding="utf-8") for file in messages.PACKAGE.rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    unknown = []
    for table in re.findall(r"\| the message contains .*?\n\n", PAGE, re.DOTALL):
        for row in table.splitlines()[2:]:
            for quoted in re.findall(r"`([^`]+)`", row.split(" | ")[0].partition("Python's own")[0]):
                parts = [part.strip(" :[]") for part in re.split(r"…|\[0\]|\b\d+\b", quoted)]
                longest = max(parts, key=len)
                if longest not in known and longest not in joined:
                    unknown.append(quoted)
    assert not unknown


def test_every_message_of_the_package_is_in_the_list() -> None:
    listed = messages.on_page_markdown(messages.MARK, SimpleNamespace(file=SimpleNamespace(src_uri="page.md")))
    assert messages.MARK in PAGE
    assert listed.count("\n| <code>") > 300
    for text in (
        "the training queue is full",
        "is it running, and is the port right",
        "<START:...>",
        "not a safe path",
    ):
        assert messages.escaped(text) in listed


def test_every_module_that_raises_belongs_to_a_section() -> None:
    places = [place for *_, found in messages.SUBJECTS for place in found]
    for file in sorted(Path(messages.PACKAGE).rglob("*.py")):
        part = file.relative_to(messages.PACKAGE).parts[0]
        if part not in places:
            assert not list(messages.messages_in(file)), f"{part} raises errors: add it to SUBJECTS"
