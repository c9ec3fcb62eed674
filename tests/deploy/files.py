"""The files of examples/deploy, read."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"


class Instruction(NamedTuple):
    """A line of the Dockerfile, with the lines that continue it."""

    word: str
    rest: str


def dockerfile() -> list[Instruction]:
    """The instructions, without comments."""
    lines = (line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(None, 1)) for line in whole.splitlines() if line]


def last(word: str) -> str:
    """What the last such instruction says."""
    return [each.rest for each in dockerfile() if each.word == word][-1]


def command(word: str = "CMD") -> list[str]:
    """The arguments of CMD, ENTRYPOINT, or of the check in HEALTHCHECK."""
    return [str(each) for each in json.loads(last(word)[last(word).index("[") :])]


def image_environment() -> dict[str, str]:
    """What ENV sets."""
    found = (shlex.split(each.rest) for each in dockerfile() if each.word == "ENV")
    return dict(pair.split("=", 1) for pairs in found for pair in pairs)


def compose() -> Any:
    """compose.yaml, with its merge keys resolved."""
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def kustomization() -> Any:
    """The kustomization."""
    return yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())


def objects() -> list[dict[str, Any]]:
    """What the kustomization applies."""
    texts = ((KUBERNETES / name).read_text() for name in kustomization()["resources"])
    return [each for text in texts for each in yaml.safe_load_all(text)]


def pods() -> Iterator[dict[str, Any]]:
    """The specs of the pods."""
    for each in objects():
        if each["kind"] in ("Deployment", "StatefulSet"):
            yield each["spec"]["template"]["spec"]


def kubernetes_environment(container: dict[str, Any]) -> dict[str, str]:
    """What a container gets: the literals of the ConfigMap, example secrets, and its own."""
    (generator,) = kustomization()["configMapGenerator"]
    secrets = [line.rstrip("=") for line in (KUBERNETES / "secrets.env.example").read_text().split()]
    own = {each["name"]: each["value"] for each in container["env"]}
    return dict(pair.split("=", 1) for pair in generator["literals"]) | dict.fromkeys(secrets, "x") | own


def unit() -> dict[str, str]:
    """The settings of the systemd unit; of one that occurs twice, the last."""
    return dict(line.split("=", 1) for line in _unit_lines())


def unit_environment() -> dict[str, str]:
    """What the lines `Environment=` set."""
    found = [line.split("=", 1)[1] for line in _unit_lines() if line.startswith("Environment=")]
    return dict(pair.split("=", 1) for line in found for pair in line.split())


def _unit_lines() -> list[str]:
    return re.findall(r"^\w+=.*", (DEPLOY / "mlpkit.service").read_text(), re.MULTILINE)
