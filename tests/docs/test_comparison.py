"""What the comparison says of speed and size is what the benchmarks have measured."""

from __future__ import annotations

import re

from tests.docs.pages import DOCS

BENCHMARKS = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
OTHERS = ("FastAPI", "LitServe", "BentoML", "MLServer")


def column(title: str, name: str) -> dict[str, float]:
    """A column of the first table below a heading: the figure of each server."""
    table = BENCHMARKS.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    head, _, *rows = [
        [cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    number = head.index(name)
    return {row[0]: float(row[number].strip("~")) for row in rows if re.match(r"[\d.~]+$", row[number])}


def test_mlpkit_is_ahead_of_the_four_with_many_connections() -> None:
    for case in ("W1@16", "W1@64", "W2@16", "W3@16", "W3@64", "W4@16", "W5@16"):
        figures = column("Throughput", case)
        assert all(figures["mlpkit"] > figures[name] for name in OTHERS), case


def test_servers_that_are_ahead_are_named() -> None:
    one, large = column("Throughput", "W1@1"), column("Throughput", "W5@16")
    assert one["Starlette"] > one["mlpkit"]
    assert min(large[name] for name in ("Starlette", "KServe", "MLServer in process")) > large["mlpkit"]


def test_size_is_as_the_comparison_says() -> None:
    title = "Start, memory, size"
    memory, installed = column(title, "memory MiB"), column(title, "installed MiB")
    packages = column(title, "distributions")
    assert memory["FastAPI"] < memory["mlpkit"]
    assert installed["FastAPI"] < installed["mlpkit"] < min(installed["BentoML"], installed["MLServer"]) / 2
    assert installed["LitServe"] < installed["mlpkit"]
    assert packages["mlpkit"] < min(packages["BentoML"], packages["MLServer"]) / 2
