"""Both languages of the documentation say the same: same code, same anchors, and one Chinese word for one thing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, DocPage, chinese_pages, english_pages, read, translation, without_code_spans

ENGLISH_ONLY = {
    "reference/cli.md",  # made from the code, as all of these
    "reference/errors.md",
    "reference/metrics.md",
    "reference/python/",
}
"""Pages that are made from code and have no translation."""

NOT_YET: set[str] = set()
"""Pages, or folders, whose translation is missing or differs from the English page. This list only gets shorter."""

TERMS = {
    r"replicas?": "副本",
    r"workers?": "工作进程",
    r"jobs?": "任务",
    r"checkpoints?": "检查点",
    r"alias(es)?": "别名",
    r"cach(e|es|ed)": "缓存",
    r"buckets?": "桶",
    r"handlers?": "处理函数",
    r"hooks?": "钩子",
    r"decorators?": "装饰器",
    r"batch(es)?": "批",
    r"thresholds?": "阈值",
    r"hyperparameters?": "超参数",
    r"queues?": "队列|排队",
    r"evaluations?": "评估",
    r"gates?": "门槛",
    r"manifests?": "清单",
    r"event": "事件",
}
"""If a section of an English page has the word, the same section of the Chinese page has its translation."""

UNWANTED = {
    r"作业": "任务",
    r"复本|拷贝": "副本 for a replica, 复制 or 本地文件 for a copy",
    r"(本地|缓存|模型|文件|数据)的?副本": "副本 is a replica of the service; 本地文件, 模型实例 for other copies",
    r"别称|化名": "别名",
    r"检查站|存档点": "检查点",
    r"缺省": "默认",
    r"句柄|处理器函数|处理程序": "处理函数",
    r"修饰器|装饰符": "装饰器",
    r"挂钩": "钩子",
    r"超参(?!数)": "超参数",
    r"门限|临界值": "阈值",
    r"高速缓存|快取": "缓存",
    r"工作者|工人|工作线程进程|worker 进程": "工作进程",
    r"批量处理|批次处理": "批处理",
    r"评价": "评估",
    r"存储仓|储存": "存储",
    r"伺服器|服务端进程": "服务器",
    r"鲁棒": "稳健",
    r"测试行": "测试数据",
    r"(?<!返回)网页": "Web 界面 for the page at /",
    r"提问|请它回答": "请求预测: a model is not asked questions",
    r"死掉": "异常退出",
    r"移动(这个|一个)?别名|别名移动": "切换别名",
    r"最有把握": "置信度最高",
}
"""Chinese words that are not used, and what to write."""

HAN = re.compile(r"[\u3400-\u9fff]")


def is_on(names: set[str], page: Path) -> bool:
    """Whether a list has the page, or a folder of it."""
    name = str(page.relative_to(DOCS))
    return name in names or any(name.startswith(folder) for folder in names if folder.endswith("/"))


def differences(page: Path) -> list[str]:
    """What a translation lacks, or has otherwise than the English page."""
    if not translation(page).exists():
        return ["it has no translation"]
    english, chinese = read(page), read(translation(page))
    found = []
    if english.anchors != chinese.anchors:
        found.append(f"anchors: {english.anchors} in English, {chinese.anchors} in Chinese")
    shapes = [[(block.language, block.title, len(block.lines)) for block in each.code] for each in (english, chinese)]
    if shapes[0] != shapes[1]:
        found.append(f"code blocks: {shapes[0]} in English, {shapes[1]} in Chinese")
        return found
    for one, two in zip(english.code, chinese.code, strict=True):
        for number, (line, other) in enumerate(zip(one.lines, two.lines, strict=True), two.number + 1):
            if not says_the_same(line, other):
                found.append(f"line {number}: {line!r} in English, {other!r} in Chinese")
    return found


def says_the_same(line: str, other: str) -> bool:
    """Whether two lines of code differ only in comments and texts that are translated."""
    if line == other or line == other.replace("_zh.", "."):
        return True
    if not HAN.search(other):
        return False
    words = re.findall(r"[A-Za-z_][\w.]*", re.sub(r"(?<!\S)(#|//|--) .*", "", other))
    return all(word in line for word in words)


def prose_by_anchor(page: DocPage) -> dict[str, str]:
    first, *others = [section for section in page.sections if section.anchor]
    by_anchor = {section.anchor: f"{section.title}\n{section.prose}" for section in others}
    return {"": first.prose} | by_anchor


@pytest.mark.parametrize("page", english_pages(), ids=lambda path: str(path.relative_to(DOCS)))
def test_translation_has_the_code_and_the_anchors_of_the_english_page(page: Path) -> None:
    if is_on(ENGLISH_ONLY, page):
        assert not translation(page).exists(), "a page that is made from code has no translation"
    elif not is_on(NOT_YET, page):
        assert differences(page) == []


def test_list_of_missing_translations_names_only_what_is_missing() -> None:
    pages = [page for page in english_pages() if not is_on(ENGLISH_ONLY, page)]
    done = [name for name in NOT_YET if not any(is_on({name}, page) and differences(page) for page in pages)]
    assert done == [], "translated: take it off NOT_YET"


@pytest.mark.parametrize("page", chinese_pages(), ids=lambda path: str(path.relative_to(DOCS)))
def test_chinese_pages_use_the_words_of_the_list(page: Path) -> None:
    prose = without_code_spans(read(page).prose)
    found = [f"{match[0]} (write: {better})" for word, better in UNWANTED.items() for match in re.finditer(word, prose)]
    assert not found


@pytest.mark.parametrize("page", english_pages(), ids=lambda path: str(path.relative_to(DOCS)))
def test_sections_say_an_english_term_with_its_chinese_one(page: Path) -> None:
    if not translation(page).exists() or is_on(NOT_YET, page):
        return
    chinese = prose_by_anchor(read(translation(page)))
    found = []
    for anchor, text in prose_by_anchor(read(page)).items():
        if anchor not in chinese:
            continue  # the test of anchors tells
        for english, term in TERMS.items():
            spoken = re.search(rf"\b{english}\b", without_code_spans(text), re.IGNORECASE)
            if spoken and not re.search(term, chinese[anchor]):
                found.append(f"#{anchor}: {spoken[0]!r} without {term}")
        if "副本" in chinese[anchor] and "replica" not in text.lower():
            found.append(f"#{anchor}: 副本, but the English section has no replica")
    assert not found


def test_each_chinese_page_translates_an_english_one() -> None:
    english = {translation(page) for page in english_pages()}
    others = [str(page.relative_to(DOCS)) for page in chinese_pages() if page not in english]
    assert others == []
