"""The built site: two languages, a search of its own for each, nothing from other hosts, any sub-path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest

import mlpkit
from tests.docs.pages import DOCS, english_pages, translation
from tests.web.browser import Browser, opened

# Whoever asks first builds the site: 10 s of processor time, or minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)

LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
"""Elements that a browser loads by itself, and the attribute with the address."""


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


def html_pages(site: Path) -> list[Path]:
    return sorted(site.rglob("index.html"))


def built(site: Path, page: Path, language: str = "") -> Path:
    """The file of an English page, or of what Chinese readers get for it."""
    name = str(page.relative_to(DOCS)).removesuffix(".md")
    return site / language / name.removesuffix("index") / "index.html"


def index_of(site: Path, language: str = "") -> list[dict[str, Any]]:
    return list(json.loads((site / language / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"])


def test_every_page_is_there_in_both_languages(site: Path) -> None:
    for page in english_pages():
        for language in ("", "zh"):
            assert built(site, page, language).exists(), (page, language)


def test_pages_say_their_language(site: Path) -> None:
    for page in english_pages():
        assert '<html lang="en"' in built(site, page).read_text(encoding="utf-8")
        text = built(site, page, "zh").read_text(encoding="utf-8")
        assert '<html lang="zh"' in text
        assert ('<div lang="en">' in text) == (not translation(page).exists()), page


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    for page in html_pages(site):
        for tag, attributes in Elements(page).found:
            place = attributes.get(LOADED.get(tag, ""), "")
            assert not re.match(r"(\w+:)?//", place) or attributes.get("rel") == "canonical", (page, tag, place)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_no_address_begins_at_the_root_of_the_host(site: Path) -> None:
    for page in html_pages(site):
        for tag, attributes in Elements(page).found:
            for name in ("href", "src"):
                assert not attributes.get(name, "").startswith("/"), (page, tag, attributes)


def test_language_switch_leads_to_the_same_page(site: Path) -> None:
    for page in english_pages():
        for here, there, language in (("", "zh", "zh"), ("zh", "", "en")):
            file = built(site, page, here)
            own = f"http://host/docs/{file.parent.relative_to(site).as_posix()}/".replace("/./", "/")
            links = [
                attributes["href"]
                for tag, attributes in Elements(file).found
                if tag == "a" and attributes.get("hreflang") == language
            ]
            other = built(site, page, there).parent.relative_to(site).as_posix()
            for link in links:
                assert urlsplit(urljoin(own, link)).path.rstrip("/") == f"/docs/{other}".rstrip("/.")
            assert links


def test_no_page_makes_the_browser_ask_for_files_that_are_not_there(site: Path) -> None:
    for page in html_pages(site):
        for tag, attributes in Elements(page).found:
            # Material asks for a sitemap at each of them.
            assert tag != "link" or attributes.get("rel") != "alternate", page


def test_version_is_shown(site: Path) -> None:
    assert f"mlpkit {mlpkit.__version__}" in (site / "index.html").read_text(encoding="utf-8")


def test_pages_without_a_repository_have_no_edit_link(site: Path) -> None:
    for page in html_pages(site):
        assert "md-content__button" not in page.read_text(encoding="utf-8"), page


def test_each_language_is_searched_by_itself(site: Path) -> None:
    assert not [entry for entry in index_of(site) if entry["location"].startswith("zh/")]
    assert not [entry for entry in index_of(site, "zh") if entry["location"].startswith("zh/")]
    assert len(index_of(site, "zh")) >= len(english_pages())


def test_chinese_text_is_cut_into_words(site: Path) -> None:
    text = "\n".join(entry["title"] + entry["text"] for entry in index_of(site, "zh"))
    for word in ("副本", "检查点", "超参数", "训练", "工作进程"):
        assert f"\u200b{word}\u200b" in text


def test_pictures_are_small_and_complete_in_themselves() -> None:
    for picture in [*(DOCS / "assets").glob("*.svg"), *(DOCS / "assets").glob("*.webp")]:
        most = 60_000 if picture.suffix == ".svg" else 100_000
        assert picture.stat().st_size < most, picture
        if picture.suffix == ".svg":
            assert not re.search(r"(href|src|url)[=(]\W*https?:", picture.read_text(encoding="utf-8")), picture


def test_pictures_are_on_a_page_and_say_what_they_show() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in english_pages())
    for picture in [*(DOCS / "assets").glob("*.svg"), *(DOCS / "assets").glob("*.webp")]:
        if ".zh." not in picture.name:
            assert re.search(rf"!\[[^]]{{30,}}\]\([^)]*assets/{re.escape(picture.name)}\)", text), picture


def test_drawings_have_each_text_in_both_languages(site: Path) -> None:
    for page in ("design/index.html", "zh/design/index.html"):
        text = (site / page).read_text(encoding="utf-8")
        assert text.count('<figure class="drawing" role="img"') == 3
        assert "训练队列" in text
        assert "training queue" in text


@pytest.fixture(scope="module")
def browser(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened(address, tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "words", "place"),
    [
        ("zh/", "副本", "/docs/zh/guide/replicas/"),
        ("zh/", "超参数", "/docs/zh/"),
        ("zh/", "AlgorithmBase", "/docs/zh/migration/"),
        ("", "dict_location", "/docs/"),
        ("", "cancel", "/docs/guide/training/"),
    ],
)
def test_search_finds_pages_of_its_language(browser: Browser, start: str, words: str, place: str) -> None:
    browser.open(start)
    browser.run("document.querySelector('[data-md-toggle=search]').click()")
    browser.find("input.md-search__input").send_keys(words)
    links = "[...document.querySelectorAll('.md-search-result__link')].map(each => new URL(each.href).pathname)"
    browser.wait_until(f"{links}.length > 0")
    found = browser.run(links)
    assert any(link.startswith(place) for link in found), found
    assert all(link.startswith("/docs/zh/") == (start == "zh/") for link in found), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("批处理", "/docs/zh/guide/models/"),
        ("副本 数据库", "/docs/zh/guide/replicas/"),
        ("模型加载失败", "/docs/zh/troubleshooting/"),
        ("断点续训", "/docs/zh/guide/checkpoints/"),
    ],
)
def test_search_in_chinese_finds_the_page_about_all_words_first(browser: Browser, words: str, place: str) -> None:
    browser.open("zh/")
    browser.run("document.querySelector('[data-md-toggle=search]').click()")
    browser.find("input.md-search__input").send_keys(words)
    first = "document.querySelector('.md-search-result__link')"
    browser.wait_until(f"{first} !== null && new URL({first}.href).pathname.startsWith('{place}')")


@pytest.mark.slow
@pytest.mark.parametrize("language", ["", "zh"])
def test_code_fits_at_1280_and_pages_at_390_pixels(browser: Browser, site: Path, language: str) -> None:
    problems = []
    for page in english_pages():
        place = built(site, page, language).parent.relative_to(site).as_posix() + "/"
        browser.open(place)
        wide = browser.run(
            "[...document.querySelectorAll('pre > code')].filter(each => each.offsetParent"
            " && each.scrollWidth > each.clientWidth + 1).map(each => each.innerText.slice(0, 80))"
        )
        if wide and page.name != "benchmarks.md":
            problems.append(f"{place} at 1280: {wide}")
        browser.open(place, width=390)
        if browser.is_too_wide():
            problems.append(f"{place} at 390 must be scrolled sideways")
    assert not problems, "\n".join(problems)


def test_a_page_that_names_another_host_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text('<script src="https://cdn.example/x.js"></script>')
    with pytest.raises(AssertionError, match=r"cdn\.example"):
        test_nothing_is_loaded_from_other_hosts(tmp_path)
    page.write_text('<a href="/guide/">x</a>')
    with pytest.raises(AssertionError, match="guide"):
        test_no_address_begins_at_the_root_of_the_host(tmp_path)
