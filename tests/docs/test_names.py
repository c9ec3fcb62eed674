"""What pages name exists: settings, routes, options, metrics, names of the package; each link leads somewhere."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import mlpkit.testing.plugin
from mlpkit import Algorithm, App
from mlpkit.algorithm import LoadOptions, PredictOptions, TrainOptions
from mlpkit.settings import IGNORED, described
from tests.docs.pages import DOCS, ROOT, all_pages, code_spans, page_id, read, references, without_code_spans
from tests.servers import LONG
from tests.words import unwanted

OTHER_VARIABLES = {
    "MLPKIT_NER_PORT",  # an example of what Kubernetes sets
    "MLPKIT_S3_IMAGE",
    "MLPKIT_S3_PORT",
    "MLPKIT_TEST_DATA",
    "MLPKIT_TEST_S3",
}
"""Names that look like settings of mlpkit and belong to tests or to other programs."""

FILES_AND_PROCESSES = {
    *("mlpkit.json", "mlpkit.index.json", "mlpkit.incomplete"),
    *("mlpkit.forksrv", "mlpkit.keeper", "mlpkit.serving", "mlpkit.training"),
}
"""Names that look like modules."""

OTHER_DECORATORS = {"get", "post"}
"""Of FastAPI, on the page for those who come from it."""

ADDED_BY_READERS = {"GET /version", "/version"}
"""Routes that a page shows how to add."""

OTHER_PATHS = re.compile(r"/(etc|var|tmp|proc|sys|dev|srv|opt|run|home|data|usr|app|mnt|cache|models?/\w|wheels)(/|$)")
"""Files and folders, which are written like routes."""

OTHER_OPTIONS = {
    *("--build-arg", "--rm", "--extra-index-url", "--find-links", "--strict", "--maxfail", "--port-forward"),
    "--gate",
    *(
        "--net",
        "--network",
        "--shm-size",
        "--gpus",
        "--memory",
        "--cpus",
        "--user",
        "--volume",
        "--durations",
        "--export",
    ),
}
"""Options of other programs that pages name without the program."""


def settings_that_do_not_exist(text: str) -> Iterator[str]:
    known = {each.metadata["env"] for each in described()} | IGNORED.keys() | OTHER_VARIABLES
    for name in re.findall(r"\b(?:MLP|MLPKIT|MINIO|ML_PLATFORM_CLIENT|ML_CLIENT|CHECKER)_[A-Z0-9_]*[A-Z0-9]\b", text):
        if name not in known:
            yield name


def routes_that_do_not_exist(text: str) -> Iterator[str]:
    served = {route.name for route in references.routes()} | ADDED_BY_READERS
    paths = {route.path for route in references.routes()} | ADDED_BY_READERS
    for method, path in re.findall(r"\b(GET|POST) (/[\w/{}.$-]*\w\}?)", text):
        if f"{method} {with_field(path)}" not in served:
            yield f"{method} {path}"
    for path in re.findall(r"`(/[a-z_]+(?:/[\w{}$]+)*)(?:\?[^`]*)?`", text):
        if with_field(path) not in paths and not OTHER_PATHS.match(path):
            yield path
    for path in re.findall(r"\bcurl [^\n]*(?:localhost|127\.0\.0\.1|\breplica)(?::\d+)?(/[\w/{}$.-]+)", text):
        if with_field(path) not in paths:
            yield path


def with_field(path: str) -> str:
    """The path with `{model_id}` or `{key}` for whatever stands at its place."""
    return re.sub(r"^/data/.+", "/data/{key}", re.sub(r"^/jobs/[^/]+", "/jobs/{model_id}", path))


def options_that_do_not_exist(text: str) -> Iterator[str]:
    known = {name: options_of(command) for name, command in references.all_commands()}
    joined = re.sub(r"\\\n\s*", " ", text)
    called = re.compile(r"(?<![\w/.'-])(?:python -m )?mlpkit ((?:(?:data|db) )?[a-z]+)\b([^\n;&|`)]*)")
    for command, rest in called.findall("\n".join(sh_lines(joined))):
        name = f"mlpkit {command}"
        if name not in known:
            yield name
            continue
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", re.sub(r"'[^']*'", "''", rest)):
            if option not in known[name]:
                yield f"{name} {option}"
    every = set().union(*known.values()) | OTHER_OPTIONS
    for option in re.findall(r"`(--[a-z][a-z-]*)[^`]*`", text):
        if option not in every:
            yield option


def sh_lines(text: str) -> Iterator[str]:
    """Lines of shell blocks, and code spans that begin with the command."""
    for block in re.findall(r"^ *```sh.*?\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        yield from (re.sub(r"(^|\s)#.*", "", line) for line in block.splitlines())
    for span in code_spans(text):
        if re.match(r"(python -m )?mlpkit [a-z]", span):
            yield span


def options_of(command: click.Command) -> set[str]:
    return {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help", "-h"}


def metrics_that_do_not_exist(text: str) -> Iterator[str]:
    known = {name for name in vars(mlpkit.testing.plugin) if name.startswith("mlpkit_")}
    for family in references.metrics():
        ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("", "_bucket", "_count", "_sum")}[family.type]
        known |= {family.name + end for end in ends}
    for name in re.findall(r"\bmlpkit_[a-z_]*[a-z]\b(?![(.=*])", text):
        if name not in known:
            yield name


def names_that_do_not_exist(text: str) -> Iterator[str]:
    """Dotted names of the package, and decorators with their options."""
    for name in re.findall(r"`(mlpkit(?:\.[A-Za-z_]\w*)+)[^`]*`", text):
        if name not in FILES_AND_PROCESSES and not exists(name):
            yield name
    for hook, inside in re.findall(
        r"@(?:app|ner|\w+)\.(\w+)(?:\(([^()]*(?:\([^()]*\)[^()]*)*)\))?", "\n".join(decorators(text))
    ):
        method = getattr(Algorithm, hook, None) or getattr(App, hook, None)
        if method is None and hook in OTHER_DECORATORS:
            continue
        if method is None:
            yield f"@app.{hook}"
            continue
        options = {"train": TrainOptions, "load": LoadOptions, "predict": PredictOptions}.get(hook, method)
        for option in re.findall(r"(?:^|,)\s*([a-z_]+)=", inside):
            if option not in inspect.signature(options).parameters:
                yield f"@app.{hook}({option}=)"


def decorators(text: str) -> Iterator[str]:
    yield from (span for span in code_spans(text) if span.startswith("@app."))
    for block in re.findall(r"^ *```python.*?\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        yield from (line for line in block.splitlines() if re.match(r"\s*@(app|ner)\.", line))


def exists(dotted: str) -> bool:
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(thing, attribute):
                return False
            thing = getattr(thing, attribute)
        return True
    return False


CHECKS: list[tuple[Callable[[str], Iterator[str]], str]] = [
    (settings_that_do_not_exist, "set `MLPKIT_HOMES`"),
    (routes_that_do_not_exist, "`POST /trane`"),
    (routes_that_do_not_exist, "ask `/jobs/{id}/logs`"),
    (routes_that_do_not_exist, "```sh\ncurl -s localhost:8000/state\n```"),
    (options_that_do_not_exist, "```sh\nmlpkit run x.py --workerz 3\n```"),
    (options_that_do_not_exist, "```sh\nID=$(mlpkit train x.py \\\n  --file x.tsv)\n```"),
    (options_that_do_not_exist, "`mlpkit serve`"),
    (options_that_do_not_exist, "with `--worker`"),
    (metrics_that_do_not_exist, "`mlpkit_job`"),
    (names_that_do_not_exist, "`mlpkit.testing.FakeData`"),
    (names_that_do_not_exist, "`@app.trian`"),
    (names_that_do_not_exist, "`@app.predict(batch=3)`"),
]


@pytest.mark.parametrize("page", all_pages(), ids=page_id)
def test_pages_name_only_what_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":
        return  # it also names what was there once
    found = [name for check in dict(CHECKS) for name in check(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("check", "text"), CHECKS)
def test_names_that_do_not_exist_are_noticed(check: Callable[[str], Iterator[str]], text: str) -> None:
    assert len(list(check(text))) == 1


@pytest.mark.parametrize("page", all_pages(), ids=page_id)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    prose = re.sub(r"`[^`\n]+`", "", read(page).prose)
    for link, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?[^)]*\)", prose):
        target = page.parent / link if link else page
        if page.is_relative_to(DOCS) and not target.exists() and page.name.endswith(".zh.md"):
            target = target.with_suffix(".zh.md")
        assert target.exists(), link
        if anchor and target.suffix == ".md" and "mlpkit" not in anchor:
            anchors = {section.anchor for section in read(target).sections} | set(
                re.findall(r'id="([^"]+)"', read(target).prose)
            )
            assert anchor in anchors, f"{link}#{anchor}"


@pytest.mark.parametrize("page", all_pages(), ids=page_id)
def test_pages_use_no_unwanted_words(page: Path) -> None:
    if page.name == "CONTRIBUTING.md":
        return  # it names them
    found = list(unwanted(without_code_spans(read(page).prose)))
    assert not found, "\n".join(found)


def test_spelling_is_right() -> None:
    command = [
        sys.executable,
        "-m",
        "codespell_lib",
        "mlpkit",
        "examples",
        "docs",
        *[each.name for each in ROOT.glob("*.md")],
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_misspelt_word_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("The servise is redy.\n")
    command = [sys.executable, "-m", "codespell_lib", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode > 0
    assert "servise" in done.stdout


def test_http_page_describes_every_route_with_its_fields() -> None:
    page = read(DOCS / "reference" / "http.md")
    for route in references.routes():
        sections = [section for section in page.sections if f"`{route.name}`" in section.title]
        assert len(sections) == 1, route.name
        named = code_spans(sections[0].prose)
        for field in route.spec.fields:
            assert field.name == "uuid" or any(field.name in span for span in named), f"{route.name}: {field.name}"
        for name in route.spec.query:
            assert any(name in span for span in named), f"{route.name}: ?{name}"


def design_names_that_do_not_exist(text: str) -> Iterator[str]:
    """Modules, `Class.method`s and `_private` functions of the page on design that the package lacks."""
    package = ROOT / "mlpkit"
    code = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    table = text.partition("\n## Layers\n")[2].partition("\n## ")[0]
    modules = {span for row in re.findall(r"^\|[^|]*\|([^|]*)\|", table, re.MULTILINE) for span in code_spans(row)}
    for span in code_spans(text):
        if re.fullmatch(r"[a-z_]+\.[a-z_]+", span) and (package / span.partition(".")[0]).is_dir():
            modules.add(span)
        elif re.fullmatch(r"([A-Z]\w+\.)?_?[a-z_]+", span) and not re.fullmatch("[a-z][a-z_]*", span):
            holder, _, function = span.rpartition(".")
            if f"def {function}(" not in code or (holder and f"class {holder}" not in code):
                yield span
    for module in modules:
        path = package.joinpath(*module.split("."))
        if not path.is_dir() and not path.with_suffix(".py").exists():
            yield module


@pytest.mark.parametrize("page", ["design.md", "design.zh.md"])
def test_the_page_on_design_names_what_the_code_has(page: str) -> None:
    assert list(design_names_that_do_not_exist((DOCS / page).read_text(encoding="utf-8"))) == []


def test_a_name_that_the_code_has_lost_is_noticed() -> None:
    table = "\n## Layers\n\n| layer | modules | what |\n| --- | --- | --- |\n| 1 | `services` | |\n\n## Next\n"
    text = f"{table}`serving.gone`, `_load_replica`, `Models.lode` and `serving.models`"
    assert set(design_names_that_do_not_exist(text)) == {"services", "serving.gone", "_load_replica", "Models.lode"}


def test_every_error_says_what_to_do() -> None:
    for error in references.error_classes():
        if error.__name__ not in ("MlpkitError", "TrainingStopped"):
            assert "\n\nWhat to do: " in (inspect.getdoc(error) or ""), error
