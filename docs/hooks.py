"""Hooks of MkDocs: the table of settings is made from the code, so that it cannot be wrong."""

from __future__ import annotations

from dataclasses import MISSING, Field
from typing import Any

from mlpkit.settings import IGNORED, described

_SETTINGS = "<!-- table: settings -->"
_IGNORED = "<!-- table: ignored settings -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the tables where a page asks for them."""
    if _SETTINGS in markdown:
        markdown = markdown.replace(_SETTINGS, _settings_table())
    if _IGNORED in markdown:
        markdown = markdown.replace(_IGNORED, _ignored_table())
    return markdown


def _settings_table() -> str:
    rows = [f"| `{each.metadata['env']}` | {_default(each)} | {each.metadata['doc']} |" for each in described()]
    return "\n".join(["| variable | default | what it says |", "| --- | --- | --- |", *rows])


def _ignored_table() -> str:
    rows = [f"| `{name}` | {reason} |" for name, reason in IGNORED.items()]
    return "\n".join(["| variable | why it has no effect |", "| --- | --- |", *rows])


def _default(setting: Field[Any]) -> str:
    shown = setting.metadata["shown"]
    if shown is None:
        value = None if setting.default is MISSING else setting.default
        if isinstance(value, bool):
            shown = "on" if value else "off"
        elif isinstance(value, float):
            shown = f"{value:g}"
        else:
            shown = str(value) if value not in (None, "", ()) else ""
    return f"`{shown}`" if shown and " " not in shown else shown or "none"
