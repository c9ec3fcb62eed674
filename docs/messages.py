"""Puts every message of mlpkit's errors into the pages that have the line `<!-- messages -->`.

The messages are read from the code, so the list is always true; `…` stands for what differs from case to case.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpkit import errors

MARK = "<!-- messages -->"
PACKAGE = Path(errors.__file__).parent
SUBJECTS = (
    ("Your script", "脚本", ("injection", "algorithm.py", "app.py", "script.py")),
    ("Settings and start", "设置与启动", ("settings", "service.py", "processes")),
    ("Requests", "请求", ("web", "errors.py")),
    ("Trainings", "训练", ("training",)),
    ("Data and answers", "数据与预测结果", ("formats",)),
    ("Models and predictions", "模型与预测", ("serving",)),
    ("Storage", "存储", ("storage",)),
    ("Database and replicas", "数据库与副本", ("platform",)),
    ("Client, command line and tests", "客户端、命令行与测试", ("client", "local", "cli", "check", "testing")),
)
"""The sections of the list: their titles in English and Chinese, and the modules whose messages they have."""
_LISTS_OF_MISTAKES = ("injection", "algorithm.py", "app.py", "settings")
"""Modules that collect the texts of several mistakes before they raise one error."""
_KILLED = {"training": "TrainFailed", "serving": "WorkerLost"}
"""Folders that say why they kill a process, and the error in which that text arrives."""
_ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)}
_FEWEST_LETTERS = 8
_SPECIAL = re.compile(r"[`*_\[\]|<>{}&\\#~^=$]")


@dataclass(frozen=True, order=True)
class Message:
    """A text of an error, and the name of its class."""

    text: str
    error: str


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces the mark, if the page has it, by the list."""
    if MARK not in markdown:
        return markdown
    is_chinese = page.file.src_uri.endswith(".zh.md")
    return markdown.replace(MARK, "\n".join(_section(*subject, is_chinese) for subject in SUBJECTS))


def messages_of(*places: str) -> list[Message]:
    """The messages of these modules and folders of mlpkit, in order."""
    files = [file for place in places for file in sorted((PACKAGE / place).rglob("*.py")) or [PACKAGE / place]]
    return sorted({message for file in files for message in messages_in(file)})


def messages_in(file: Path) -> Iterator[Message]:
    """The messages of one file of mlpkit."""
    place = file.relative_to(PACKAGE).parts[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and place == "errors.py":
            yield from (Message(text, node.name) for text in _texts_of_init(node))
        elif isinstance(node, ast.Call) and node.args and (name := _error_of(node, place)):
            text = _text(node.args[-1] if name == "DataError" else node.args[0])
            if text:
                yield Message(text, name)
        elif place in _LISTS_OF_MISTAKES and isinstance(node, ast.Call | ast.List | ast.Return):
            name = "SettingsError" if place == "settings" else "DeclarationError"
            yield from (Message(text, name) for text in _texts_of_mistakes(node))


def escaped(text: str) -> str:
    """The text as HTML in which nothing is Markdown."""
    return _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", text)


def _section(english: str, chinese: str, places: tuple[str, ...], is_chinese: bool) -> str:
    head = "| 错误信息 | 错误类 |" if is_chinese else "| message | error |"
    rows = [f"| <code>{escaped(each.text)}</code> | `{each.error}` |" for each in messages_of(*places)]
    return "\n".join((f"### {chinese if is_chinese else english}\n", head, "| --- | --- |", *rows, ""))


def _error_of(call: ast.Call, place: str) -> str:
    """The class of the error that a call makes; empty if it makes none."""
    name = ast.unparse(call.func).rpartition(".")[2]
    if name == "BrokenRow":
        return "DataError"
    if name == "kill" and place in _KILLED:
        return _KILLED[place]
    return name if name in _ERRORS else ""


def _texts_of_init(node: ast.ClassDef) -> Iterator[str]:
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__" and call.args:
            yield from filter(None, [_text(call.args[0])])


def _texts_of_mistakes(node: ast.Call | ast.List | ast.Return) -> Iterator[str]:
    if isinstance(node, ast.Call):
        is_collected = isinstance(node.func, ast.Attribute) and node.func.attr == "append"
        found: list[ast.expr] = node.args if is_collected else []
    elif isinstance(node, ast.List):
        found = node.elts
    else:
        found = [node.value] if isinstance(node.value, ast.JoinedStr) else []
    for each in found:
        text = _text(each) if isinstance(each, ast.JoinedStr | ast.Constant) else ""
        if text.count(" ") > 3:
            yield text


def _text(node: ast.expr) -> str:
    """The literal text of an expression, with `…` for what is not literal; empty if that is almost all."""
    text = re.sub(r"(\s*…)+", lambda match: " …" if match[0][0].isspace() else "…", " ".join(_pieces(node).split()))
    text = text.strip()
    return text if len(re.sub(r"[^A-Za-z]", "", text)) >= _FEWEST_LETTERS else ""


def _pieces(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "…"
    if isinstance(node, ast.JoinedStr):
        return "".join(_pieces(value) if isinstance(value, ast.Constant) else "…" for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _pieces(node.left) + _pieces(node.right)
    return "…"
