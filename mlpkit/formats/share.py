"""A share of the training rows for tests: `@app.train(test=0.1)`.

The choice depends on the file, the share and the seed only. Every label gives its share of the rows that are examples
of it. All rows of one sentence are on the same side, so that no test sentence is learnt.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from mlpkit.formats.kind import Facts
from mlpkit.formats.kinds import kind_of
from mlpkit.formats.rows import read_rows


def held_out(path: Path, kind: str, share: float, seed: int, *, name: str | None = None) -> frozenset[int]:
    """The hashes of the sentences whose rows are test rows.

    They are only valid in this process and in processes that it forks. The file is read twice.

    Args:
        path: the training data.
        kind: the algorithm's kind.
        share: from 0 to 1.
        seed: another seed chooses other sentences.
        name: what messages call the file.

    Raises:
        DataError: a broken row.
    """
    facts_of = kind_of(kind).facts
    left: Counter[str] = Counter()
    for row in read_rows(path, kind, name=name):
        facts = facts_of(row)
        if facts.positive:
            left[_stratum(facts)] += 1
    needed = _allotted(left, share)
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    chosen: set[int] = set()
    for row in read_rows(path, kind, name=name):
        facts = facts_of(row)
        if not facts.positive:
            continue
        stratum = _stratum(facts)
        sentence = hash(facts.sentence)
        # Selection sampling (Knuth, volume 2, 3.4.2, algorithm S): exactly as many as needed, in one pass.
        lot = chance.random() * left[stratum]
        if sentence in chosen or lot < needed[stratum]:
            chosen.add(sentence)
            needed[stratum] -= 1
        left[stratum] -= 1
    return frozenset(chosen)


def _stratum(facts: Facts) -> str:
    return facts.labels[0] if facts.labels else ""


def _allotted(rows: Counter[str], share: float) -> dict[str, int]:
    """How many test rows come from each label.

    At least one row of each label stays for the training.
    """
    allotted: dict[str, int] = {}
    before = given = 0
    for label, count in sorted(rows.items()):
        before += count
        # Rounded as a sum, so that many small labels together give their share.
        allotted[label] = max(0, min(round(share * before) - given, count - 1))
        given += allotted[label]
    return allotted
