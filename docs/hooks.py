"""Hooks of MkDocs: references are made from the code, and each language gets its own search."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import references
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.pages import Page

import mlpkit

_ZH = "zh/"
_BREAKS = re.compile(r"(?<=\w[_./=:,])(?=\w)|(?<=[a-z])(?=[A-Z][a-z])")
"""Where a long name may be broken: after its separators, and before the words of a class name."""
_CUT = re.compile(r"for\(let (\w)=(\w)\+1;\1<=?(\w)\.length;\1\+\+\)\3\.slice\(\2,\1\)in")
"""Where Material's search script looks for words in a Chinese query; changed already (`<=`) for the second language."""
_NOT_TRANSLATED = "本页暂无中文版，以下为英文原文。"

_MADE: dict[str, Callable[[str], str]] = {
    "<!-- table: settings -->": lambda page: references.settings_table(),
    "<!-- table: ignored settings -->": lambda page: references.ignored_settings_table(),
    "<!-- table: routes -->": references.routes_table,
    "<!-- table: metrics -->": lambda page: references.metrics_table(),
    "<!-- table: errors -->": lambda page: references.errors_table(),
    "<!-- sections: commands -->": lambda page: references.commands_reference(),
}


def on_startup(**_: Any) -> None:
    """Silences jieba, which cuts Chinese text into words for the search: it tells how long it took to start."""
    logging.getLogger("jieba").setLevel(logging.WARNING)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Shows the version in the footer, and a link to the source of a page only if there is a repository."""
    if not config.repo_url:
        config.edit_uri = None
    config.copyright = f"mlpkit {mlpkit.__version__}"
    return config


def on_pre_build(config: MkDocsConfig) -> None:
    """Forgets the names of the language that was built before: a name leads to the page of its own language."""
    config.plugins["autorefs"]._primary_url_map.clear()  # type: ignore[attr-defined]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the tables that are made from the code where a page asks for them."""
    for marker, made in _MADE.items():
        if marker in markdown:
            markdown = markdown.replace(marker, made(markdown))
    return markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Puts drawings into the page, and marks an English page below /zh/ as English."""
    html = re.sub(
        r'<p><img alt="([^"]*)" class="drawing" src="[^"]*?([\w-]+\.svg)" ?/?></p>', partial(_drawing, config), html
    )
    html = re.sub(r"<td[^>]*>.*?</td>", _breakable, html, flags=re.DOTALL)
    if page.url.startswith(_ZH) and not page.file.src_uri.endswith(".zh.md"):
        return f'<p class="not-translated">{_NOT_TRANSLATED}</p>\n<div lang="en">\n{html}\n</div>'
    return html


def _breakable(cell: re.Match[str]) -> str:
    """A cell of a table whose names may break between their parts, and whose sentences between their words."""
    return re.sub(r"<code>[^<]{12,}</code>", _breakable_code, cell[0])


def _breakable_code(code: re.Match[str]) -> str:
    if code[0].count(" ") >= 3:
        return code[0].replace("<code>", '<code class="sentence">')
    return _BREAKS.sub("<wbr>", code[0])


def _drawing(config: MkDocsConfig, image: re.Match[str]) -> str:
    """The drawing of `![text](assets/x.svg){ .drawing }`, with colours that follow the switch of light and dark."""
    svg = Path(config.docs_dir, "assets", image[2]).read_text(encoding="utf-8")
    return f'<figure class="drawing" role="img" aria-label="{image[1]}">\n{svg}</figure>'


@event_priority(0)  # after mkdocs-static-i18n, whose links begin with / if the site has no URL
def on_page_context(context: dict[str, Any], page: Page, config: MkDocsConfig, **_: Any) -> dict[str, Any]:
    """Lets the language switch lead to the same page, also below a sub-path."""
    url = page.url.removeprefix(_ZH)
    config.extra.alternate = [
        {"name": "English", "link": url or ".", "lang": "en"},
        {"name": "中文", "link": _ZH + url, "lang": "zh"},
    ]
    return context


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Makes Material's script use the addresses that each language has of its own.

    The search of a Chinese page reads the index below /zh/, where `base` leads then. Links with `rel="alternate"` go:
    the script takes each for the root of a site, asks for its sitemap, and leads clicks there.
    """
    output = re.sub(r'\s*<link rel="alternate"[^>]*hreflang[^>]*>', "", output)
    if page.url.startswith(_ZH):
        return re.sub(r'"base": ?"([^"]*)\.\."', lambda found: f'"base": "{found[1].rstrip("/") or "."}"', output)
    return output


@event_priority(-200)  # after mkdocs-static-i18n has joined the entries of both languages
def on_post_build(config: MkDocsConfig) -> None:
    """Splits the search index, so that a reader finds pages of one language only."""
    path = Path(config.site_dir, "search", "search_index.json")
    index = json.loads(path.read_text(encoding="utf-8"))
    chinese = [entry for entry in index["docs"] if entry["location"].startswith(_ZH)]
    english = [entry for entry in index["docs"] if not entry["location"].startswith(_ZH)]
    stripped = [entry | {"location": entry["location"].removeprefix(_ZH)} for entry in chinese]
    _write_index(path, index | {"docs": english}, ["en"])
    _write_index(Path(config.site_dir, _ZH, "search", "search_index.json"), index | {"docs": stripped}, ["en", "zh"])
    _read_queries_to_their_end(Path(config.site_dir))


def _write_index(path: Path, index: dict[str, Any], lang: list[str]) -> None:
    index["config"]["lang"] = lang
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(index, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def _read_queries_to_their_end(site: Path) -> None:
    """Lets the search find the last word of a Chinese query: Material's script stops one character before the end.

    It would look for 副 if the query is 副本, and for 取消 alone if it is 取消训练.
    """
    (script,) = site.glob("assets/javascripts/workers/search.*.min.js")
    whole = r"for(let \1=\2+1;\1<=\3.length;\1++)\3.slice(\2,\1)in"
    text, changes = _CUT.subn(whole, script.read_text(encoding="utf-8"))
    if not changes:
        raise PluginError("Material's search script has changed: try Chinese searches, then change docs/hooks.py")
    script.write_text(text, encoding="utf-8")
