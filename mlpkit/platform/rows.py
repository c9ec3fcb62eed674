"""The platform's rows, checked; each problem is logged once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from mlpkit.log import logger
from mlpkit.platform.database import WantedModel
from mlpkit.training import LONGEST_ID

_MOST_LOGGED = 20


@dataclass(frozen=True)
class CheckedModel:
    """A model to load, of an algorithm of this service."""

    algorithm: str
    model_id: str
    path: str | None


class RowProblems:
    """What is wrong with the rows, by algorithm.

    A problem is logged when it is new.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[str]] = {}
        self._foreign: set[str | None] = set()

    def listed(self) -> list[str]:
        """The present problems, at most `_MOST_LOGGED` of each algorithm."""
        return [problem for problems in self._rows.values() for problem in problems[:_MOST_LOGGED]]

    def update(self, algorithm: str, rows: Iterable[str]) -> None:
        """Replaces what was wrong with the rows of an algorithm."""
        before = set(self._rows.get(algorithm, ()))
        now = list(dict.fromkeys(rows))
        new = [problem for problem in now if problem not in before]
        for problem in new[:_MOST_LOGGED]:
            logger.warning("{}", problem)
        if len(new) > _MOST_LOGGED:
            logger.warning("{} more rows of algorithm [{}] cannot be used", len(new) - _MOST_LOGGED, algorithm)
        self._rows[algorithm] = now

    def update_foreign(
        self, counts: Mapping[str | None, int], rows: Iterable[WantedModel], algorithms: Collection[str]
    ) -> None:
        """Notes models whose algorithm is not here, or is missing."""
        # A database that ignores case finds rows whose algorithm is written differently.
        found = {*counts, *(row.algorithm for row in rows if row.algorithm not in algorithms)}
        for algorithm in sorted(found - self._foreign, key=str):
            if algorithm:
                logger.info(
                    "the database wants models of algorithm {!r}, which this service has not: they are for another",
                    algorithm,
                )
            else:
                logger.warning("the database wants models that have no algorithm: nobody can load them")
        self._foreign = found


def checked(
    rows: Iterable[WantedModel], algorithms: Iterable[str], row_problems: RowProblems
) -> dict[str, CheckedModel]:
    """The models of these algorithms, by id.

    If two rows have the same id, the first one counts.
    """
    found: dict[str, CheckedModel] = {}
    wrong: dict[str, list[str]] = {name: [] for name in algorithms}
    for row in rows:
        if row.algorithm is None or row.algorithm not in wrong:
            continue
        problem = _problem(row, found)
        if problem:
            wrong[row.algorithm].append(f"a row of algorithm [{row.algorithm}] cannot be used: {problem}")
        else:
            model_id = str(row.model_id)
            found[model_id] = CheckedModel(row.algorithm, model_id, row.path)
    for algorithm, problems in wrong.items():
        row_problems.update(algorithm, problems)
    return found


def _problem(row: WantedModel, found: Mapping[str, CheckedModel]) -> str:
    if not row.model_id:
        return "it has no model id"
    if len(row.model_id) > LONGEST_ID:
        shown = repr(row.model_id[:LONGEST_ID])
        return f"the model id {shown}... has {len(row.model_id)} characters, {LONGEST_ID} are allowed"
    if (other := found.get(row.model_id)) is not None:
        return (
            f"model {row.model_id!r} has another row, which counts (algorithm [{other.algorithm}], path {other.path!r})"
        )
    return ""
