"""Tables of the reference pages, made from the code that they describe."""

from __future__ import annotations

import inspect
import io
import re
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

from mlpkit import App, errors
from mlpkit.cli import commands
from mlpkit.errors import MlpkitError
from mlpkit.log import LogOutput
from mlpkit.service import Service
from mlpkit.settings import IGNORED, Settings, described
from mlpkit.web.page import PAGE_FILES
from mlpkit.web.routes import RouteSpec

_PREFIX = "/p/"
_app = App("sentiment")


@_app.load
def _load() -> None: ...


@_app.predict
def _predict(features: dict[str, str]) -> None: ...


@dataclass(frozen=True)
class ServedRoute:
    """A route, and whether it is below the prefix, at the root, or both."""

    spec: RouteSpec
    below_prefix: bool
    at_root: bool

    @property
    def path(self) -> str:
        return "/" + self.spec.path.replace(":path}", "}")

    @property
    def name(self) -> str:
        """The route as the pages write it: `GET /jobs`."""
        return f"{self.spec.method} {self.path}"


@cache
def _service() -> Service:
    """A service with all routes and metrics. It is never opened, so nothing is started."""
    settings = Settings(home=Path(tempfile.gettempdir(), "mlpkit-references"), api_prefix=_PREFIX)
    return Service(_app, settings, LogOutput(io.StringIO()), target="sentiment:app")


@cache
def routes() -> tuple[ServedRoute, ...]:
    """All routes of a service, without the files of its page."""
    places: dict[tuple[str, str], set[bool]] = {}
    specs: dict[tuple[str, str], RouteSpec] = {}
    for route in _service().web.router.routes:
        spec: RouteSpec = route.endpoint.spec  # type: ignore[attr-defined]
        if spec.path in PAGE_FILES:
            continue
        key = (spec.method, spec.path)
        specs[key] = spec
        places.setdefault(key, set()).add(route.path.startswith(_PREFIX))  # type: ignore[attr-defined]
    return tuple(ServedRoute(spec, True in places[key], False in places[key]) for key, spec in specs.items())


@cache
def metrics() -> tuple[Any, ...]:
    """The families of metrics, as prometheus_client has them."""
    (spec,) = (route.spec for route in routes() if route.path == "/metrics")
    route = spec.function.__self__  # type: ignore[attr-defined]
    return tuple(route.read({}).collect())


def error_classes() -> list[type[BaseException]]:
    """All errors that mlpkit raises, in the order of the module."""
    return [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, BaseException) and each.__module__ == errors.__name__
    ]


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """Each command with its whole name, such as `mlpkit data check`."""
    for name, command in commands.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"mlpkit {name} {inner}", each) for inner, each in command.commands.items())
        else:
            yield f"mlpkit {name}", command


def settings_table() -> str:
    rows = [(f"`{each.metadata['env']}`", _default(each), each.metadata["doc"]) for each in described()]
    return _table(("variable", "default", "what it says"), rows)


def ignored_settings_table() -> str:
    rows = [(f"`{name}`", reason) for name, reason in IGNORED.items()]
    return _table(("variable", "why it has no effect"), rows)


def routes_table(page: str) -> str:
    """All routes; each leads to the heading of the page that names it."""
    headings = re.findall(r"^##+ +(.*?)(?: *\{ *#([\w-]+) *\})?$", page, re.MULTILINE)
    rows = []
    for route in routes():
        summary = (inspect.getdoc(route.spec.function) or "").partition("\n")[0]
        place = "both" if route.below_prefix and route.at_root else "prefix" if route.below_prefix else "root"
        anchors = [anchor or _slug(title) for title, anchor in headings if f"`{route.name}`" in title]
        name = f"`{route.name}`"
        rows.append((f"[{name}](#{anchors[0]})" if anchors else name, place, summary))
    return _table(("route", "at", "what it does"), rows)


def metrics_table() -> str:
    rows = []
    for family in metrics():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in family._labelnames)
        rows.append((f"`{name}`", family.type, labels, family.documentation))
    return _table(("metric", "type", "labels", "what it says"), rows)


def errors_table() -> str:
    """The errors with their words and codes; each leads to its description below the table."""
    rows = []
    for each in error_classes():
        name = f"[`{each.__name__}`](#mlpkit.errors.{each.__name__})"
        words = (f"`{each.status}`", str(each.http_status)) if issubclass(each, MlpkitError) else ("", "")
        rows.append((name, *words, (inspect.getdoc(each) or "").partition("\n")[0]))
    return _table(("error", "`status`", "HTTP", "when"), rows)


def commands_reference() -> str:
    """One section for each command: its usage, its options, examples."""
    parts = []
    for name, command in all_commands():
        context = click.Context(command, info_name=name)
        paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
        examples = [each for each in paragraphs if each.startswith("\b")]
        metavars = {each.make_metavar(context).strip("[]") for each in command.params}
        parts.append(f"## `{name}` {{ #{name.replace(' ', '-')} }}")
        parts += [_prose(each, metavars) for each in paragraphs if each not in examples]
        parts.append(f"```sh\n{' '.join([name, *command.collect_usage_pieces(context)])}\n```")
        if options := [_option(each, context) for each in command.params if isinstance(each, click.Option)]:
            parts.append(_table(("option", "default", "what it does"), options))
        for example in examples:
            title, _, lines = example.removeprefix("\b\n").partition("\n")
            parts.append(f"{title}\n\n```sh\n{textwrap.dedent(lines)}\n```")
    return "\n\n".join(parts)


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    names = ", ".join(f"`{name}`" for name in sorted((*option.opts, *option.secondary_opts), key=len))
    value = "" if option.is_flag else f" `{option.make_metavar(context)}`"
    default = ""
    if isinstance(option.show_default, str):
        default = option.show_default
    elif not option.is_flag and isinstance(option.default, (str, int, float)):
        default = f"`{option.default}`" if option.default != "" else ""
    environment = f" Also `{option.envvar}`." if option.envvar else ""
    return names + value, default, _code(option.help or "", set()) + environment


def _prose(paragraph: str, metavars: set[str]) -> str:
    return _code(" ".join(paragraph.split()), metavars)


def _code(text: str, metavars: set[str]) -> str:
    """Help as Markdown: options, settings, and the names of arguments become code."""
    found = re.compile(
        r"(?<![`\w-])(--[a-z-]+|@\w+\.\w+|[A-Z]+_[A-Z_]+\*?|[A-Z]{3,}|\w+[.:]\w+(?:[.:]\w+)*|\w+\(\))(?![`\w(])"
    )
    return found.sub(
        lambda match: (
            f"`{match[0]}`" if not match[0].isupper() or "_" in match[0] or match[0] in metavars else match[0]
        ),
        text,
    )


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


def _slug(title: str) -> str:
    from markdown.extensions.toc import slugify

    return str(slugify(title.replace("`", ""), "-"))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
