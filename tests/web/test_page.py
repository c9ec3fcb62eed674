"""The files of the page at `/`: small, open, without data, in two languages."""

from __future__ import annotations

import re
from pathlib import Path

from mlpkit.web.page import PAGE_FILES
from tests.wire.replayer import Service

FILES = Path(__file__).parent.parent.parent / "mlpkit" / "web" / "static"
LARGEST = 100_000
MEASURED = "macro micro missed invented wrong_type wrong_border"
"""Names of figures that evaluations have."""


def test_the_page_is_small_and_holds_no_data(strict: Service) -> None:
    assert sum(file.stat().st_size for file in FILES.iterdir()) < LARGEST
    assert {file.name for file in FILES.iterdir()} == {name for name, _ in PAGE_FILES.values()}
    for path in PAGE_FILES:
        answer = strict.get(f"/{path}")
        assert answer.status == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text), "nothing comes from other hosts"
        assert strict.get(f"/{path}", **{"If-None-Match": answer.headers["etag"]}).status == 304
    for path in ("summary", "algorithms", "charts", "workers"):
        assert strict.get(f"/{path}").status == 401


def test_every_text_is_there_in_both_languages() -> None:
    script = (FILES / "app.js").read_text(encoding="utf-8")
    _, found, rest = script.partition("const TEXT = new Map(`\n")
    assert found
    table, _, code = rest.partition("\n`")
    texts = [line.split("|") for line in table.splitlines()]
    assert all(len(text) == 3 and text[0] and text[2] for text in texts)
    assert not [key for key, english, _ in texts if english == key[0].upper() + key[1:]], "left out: key with a capital"
    keys = [key for key, _, _ in texts]
    assert len(keys) == len(set(keys)) > 200
    for key, english, chinese in texts:
        assert english or "{" not in chinese, key
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese)), key
    columns = re.findall(r"\b(?:table|part)\((?:\"\w+\", )?\"([^\"]+)\"", code)
    named = {column.lstrip("#:*") for line in columns for column in line.split()} - {"A", "B", "F1"}
    assert len(named) > 30
    named |= set(
        re.findall(r"\b(?:t|button|because|heading|card|list|titled|section|fact|field|choice|say)\(\"(\w{3,})\"", code)
    )
    assert named - {"bad", "warn"} <= set(keys)
    assert not [key for key in keys if not re.search(rf"\b{re.sub('(Ask|Help)$', '', key)}\b", code + MEASURED)]


def test_the_page_can_be_switched_off() -> None:
    service = Service("default", MLP_CLIENT_WORKER="1", MLPKIT_PAGE="off")
    try:
        assert service.get("/").json["message"].startswith("404 Not Found")
        assert service.get("/page/app.js").json["status"] == "fail"
        assert service.get("/summary").json["status"] == "success"
    finally:
        service.stop()
