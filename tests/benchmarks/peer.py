"""A server that is measured: how it is installed, started and asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.workloads import FEATURES, WORKLOADS


@dataclass(frozen=True, eq=False)
class Start:
    """What a command line is made of. `folder` is empty and the server's own."""

    python: Path
    workload: str
    port: int
    workers: int
    folder: Path


def envelope(workload: str, features: object) -> object:
    """The body that mlpkit takes, and every peer that lets its user choose the shape."""
    return {"model_id": "m", "features": features}


@dataclass(frozen=True, eq=False)
class Peer:
    """A server under measurement. `settings` says in a sentence how it was set, `settings_zh` says it in Chinese; `pip`
    holds the arguments of each `pip install`; `isolated`: models live outside the web process; `alone`: its idle
    processes use the CPU, so it is measured with nothing but the bare callable beside it; `variant_of`: the peer whose
    environment it shares."""

    name: str
    command: Callable[[Start], list[str]]
    settings: str
    settings_zh: str
    pip: tuple[str, ...] = ()
    path: str = "/predict"
    body: Callable[[str, object], object] = envelope
    environment: Mapping[str, str] = field(default_factory=dict)
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    isolated: bool = False
    alone: bool = False
    variant_of: str = ""

    def bodies(self, workload: str) -> list[str]:
        """The bodies of a workload's requests, as JSON."""
        return [
            json.dumps(self.body(workload, features), ensure_ascii=False, separators=(",", ":"))
            for features in FEATURES[workload]
        ]

    @property
    def folder(self) -> str:
        """Its name, as a folder."""
        return _as_folder(self.name)

    @property
    def environment_folder(self) -> str:
        """The folder of its environment, which variants of a peer share."""
        return _as_folder(self.variant_of or self.name)


def _as_folder(name: str) -> str:
    return name.lower().replace(" ", "-")
