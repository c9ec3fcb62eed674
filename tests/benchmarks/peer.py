"""A server that is measured: how it is installed, started and asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.workloads import FEATURES


@dataclass(frozen=True, eq=False)
class Start:
    """What a command line is made of. `folder` is empty and the server's own."""

    python: Path
    workload: str
    port: int
    workers: int
    folder: Path


def envelope(workload: str) -> object:
    """The body that mlpkit takes, and every peer that lets its user choose the shape."""
    return {"model_id": "m", "features": FEATURES[workload]}


@dataclass(frozen=True, eq=False)
class Peer:
    """A server under measurement. `settings` says in a sentence how it was set; `pip` holds the arguments of each
    `pip install`; `isolated`: models live outside the web process; `alone`: its idle processes use the CPU, so it is
    measured with nothing but the bare callable beside it; `variant_of`: the peer whose environment it shares."""

    name: str
    command: Callable[[Start], list[str]]
    settings: str
    pip: tuple[str, ...] = ()
    path: str = "/predict"
    body: Callable[[str], object] = envelope
    environment: Mapping[str, str] = field(default_factory=dict)
    workloads: tuple[str, ...] = ("W1", "W2", "W3", "W4", "W5")
    isolated: bool = False
    alone: bool = False
    variant_of: str = ""

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
