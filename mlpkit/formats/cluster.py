"""`text_cluster`: groups of sentences; rows of one sentence.

Source of the answer: the self-check of ml-platform-client (`PROTOCOL.md`, section 7). The platform's page shows no
training data for this kind: mlpkit takes one sentence a line.
"""

from __future__ import annotations

import msgspec

from mlpkit.formats.kind import SENTENCE_HEADERS, Facts, Kind, Row, join, split
from mlpkit.formats.score import Score


class Cluster(msgspec.Struct, frozen=True):
    """A named group of sentences with its score, 0 to 100."""

    cluster_name: str
    cluster: list[str]
    score: float = 100.0


class ClusterAnswer(msgspec.Struct):
    """What is checked of a cluster in an answer."""

    cluster_name: str
    cluster: list[str]
    score: Score


class ClusterRow(Row, frozen=True):
    """A sentence to be grouped."""

    sentence: str


def _facts(row: ClusterRow) -> Facts:
    return Facts(row.sentence, "")


KIND = Kind(
    name="text_cluster",
    row=ClusterRow,
    columns="sentence",
    read=lambda line: ClusterRow(split(line, 1, ("sentence",))[0]),
    write=lambda row: join(row.sentence),
    facts=_facts,
    headers=SENTENCE_HEADERS,
    answer=list[ClusterAnswer],
)
