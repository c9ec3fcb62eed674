"""`text_cluster`: groups of sentences; rows of a sentence, and perhaps a label.

Source of the answer: the self-check of ml-platform-client (`PROTOCOL.md`, section 7). The platform's page shows no
training data for this kind: mlpkit takes one sentence a line. A label after a tab is what an evaluation compares the
clusters with.
"""

from __future__ import annotations

import msgspec

from mlpkit.formats.evaluation import ClusterMeasure
from mlpkit.formats.kind import SENTENCE_HEADERS, Facts, Kind, Row, Score, join, split


class Cluster(msgspec.Struct, frozen=True):
    """A named group of sentences with its score, 0 to 100."""

    cluster_name: str
    cluster: list[str]
    score: float = 100.0


class _ClusterAnswer(msgspec.Struct):
    """What is checked of a cluster in an answer."""

    cluster_name: str
    cluster: list[str]
    score: Score


class ClusterRow(Row, frozen=True):
    """A sentence to be grouped; its label may be known."""

    sentence: str
    label: str = ""


def _read(line: str) -> ClusterRow:
    return ClusterRow(*split(line, 1, ("sentence", "label")))


def _write(row: ClusterRow) -> str:
    return join(row.sentence, row.label) if row.label else join(row.sentence)


def _facts(row: ClusterRow) -> Facts:
    return Facts(row.sentence, row.label, labels=(row.label,) if row.label else ())


KIND = Kind(
    name="text_cluster",
    row=ClusterRow,
    columns="sentence, label (may be missing)",
    read=_read,
    write=_write,
    facts=_facts,
    headers=SENTENCE_HEADERS | {"label", "labels", "cluster"},
    answer=list[_ClusterAnswer],
    measure=ClusterMeasure,
)
