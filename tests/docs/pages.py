"""Pages of the documentation, taken apart: prose, code blocks, headings and their anchors."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown.extensions.toc import slugify, unique

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SNIPPETS = DOCS / "snippets"

# MkDocs puts the folder of its hooks on the path too.
sys.path.insert(0, str(DOCS))
references: Any = importlib.import_module("references")
sys.path.remove(str(DOCS))

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>.*)$")
_SNIPPET = re.compile(r'^ *--8<-- "(?P<path>[^":]+)(?::(?P<first>\d*))?(?::(?P<last>\d*))?"$')
_HEADING = re.compile(r"^(?P<level>#{1,6}) +(?P<title>.*?)(?: *\{ *#(?P<anchor>[\w-]+) *\})? *#*$")


@dataclass(frozen=True)
class CodeBlock:
    """A fenced code block of a page."""

    language: str
    title: str
    lines: tuple[str, ...]
    number: int
    """The line of the page that it begins at."""

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)


@dataclass(frozen=True)
class Section:
    """A heading and the prose below it, without code blocks."""

    anchor: str
    title: str
    prose: str


@dataclass(frozen=True)
class DocPage:
    """A page as its readers see it: sections of prose, and code."""

    path: Path
    sections: tuple[Section, ...]
    code: tuple[CodeBlock, ...]

    @property
    def name(self) -> str:
        return str(self.path.relative_to(DOCS if self.path.is_relative_to(DOCS) else ROOT))

    @property
    def prose(self) -> str:
        return "\n".join(f"{section.title}\n{section.prose}" for section in self.sections)

    @property
    def anchors(self) -> list[str]:
        """The anchors of all headings but the first, which is the title of the page."""
        return [section.anchor for section in self.sections if section.anchor][1:]


def all_pages() -> list[Path]:
    """Every page that readers see: of the site in both languages, and at the root of the repository."""
    return sorted([*ROOT.glob("*.md"), *english_pages(), *chinese_pages()])


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def english_pages() -> list[Path]:
    return sorted(
        path for path in DOCS.rglob("*.md") if not path.name.endswith(".zh.md") and not path.is_relative_to(SNIPPETS)
    )


def chinese_pages() -> list[Path]:
    return sorted(DOCS.rglob("*.zh.md"))


def translation(page: Path) -> Path:
    return page.with_suffix(".zh.md")


def read(path: Path) -> DocPage:
    """The page at a path; a block that does not end is an error."""
    sections: list[Section] = []
    code: list[CodeBlock] = []
    used: set[str] = set()
    anchor = title = ""
    prose: list[str] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines and lines[0] == "---":
        end = lines.index("---", 1)
        lines[: end + 1] = [""] * (end + 1)
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if fence := _FENCE.match(line):
            begin = number
            closing = fence["indent"] + fence["fence"]
            while lines[number].rstrip() != closing:
                number += 1
            info = fence["info"].strip()
            named = re.search(r'title="([^"]*)"', info)
            inner = tuple(
                shown for each in lines[begin:number] for shown in _with_snippet(each.removeprefix(fence["indent"]))
            )
            code.append(CodeBlock(re.split(r"[ {]", info)[0], named[1] if named else "", inner, begin))
            number += 1
        elif heading := _HEADING.match(line):
            sections.append(Section(anchor, title, "\n".join(prose)))
            title = heading["title"]
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", title)
            anchor = heading["anchor"] or slugify(plain, "-")
            anchor = unique(anchor, used)
            prose = []
        else:
            prose.append(line)
    sections.append(Section(anchor, title, "\n".join(prose)))
    return DocPage(path, tuple(sections), tuple(code))


def _with_snippet(line: str) -> list[str]:
    """The line, or the lines of the file that it includes."""
    snippet = _SNIPPET.match(line)
    if snippet is None:
        return [line]
    lines = (ROOT / snippet["path"]).read_text(encoding="utf-8").splitlines()
    return lines[int(snippet["first"] or 1) - 1 : int(snippet["last"]) if snippet["last"] else None]


def code_spans(prose: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`\n]+)`", prose)


def without_code_spans(prose: str) -> str:
    """The prose without what stands in backticks, and without addresses of links and comments."""
    return re.sub(r"`[^`\n]+`|\]\([^)]*\)|<!--.*?-->|\{[^}\n]*\}", " ", prose, flags=re.DOTALL)
