"""The registry of kinds: a new one is one line in `_FILES`.

A kind's file is imported when the kind is first used, so that `import mlpkit` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mlpkit.errors import did_you_mean

if TYPE_CHECKING:
    from mlpkit.formats.kind import Kind

_FILES = {
    "text_classification": "classification",
    "text_sequence_labeling": "sequence_labeling",
    "text_cluster": "cluster",
    "text_generation": "generation",
    "relation_extraction": "relation",
    "text_custom": "custom",
}
_loaded: dict[str, Kind] = {}

KINDS = tuple(_FILES)
"""The names of the platform's kinds; `text_custom` prescribes nothing."""


def kind_names() -> tuple[str, ...]:
    """The names of all kinds: the platform's, then those that were registered."""
    return (*KINDS, *(name for name in _loaded if name not in _FILES))


def kind_of(name: str) -> Kind:
    """The kind with this name.

    Raises:
        ValueError: no kind has this name; names those that exist.
    """
    kind = _loaded.get(name)
    if kind is None:
        if name not in _FILES:
            known = kind_names()
            raise ValueError(f"no kind {name!r}{did_you_mean(str(name), known)}; kinds: {', '.join(known)}")
        kind = importlib.import_module(f"mlpkit.formats.{_FILES[name]}").KIND
        _loaded[name] = kind
    return kind


def register_kind(kind: Kind) -> None:
    """Adds a kind of your own.

    Call it when your script is imported, before `App(kind=...)`.

    Raises:
        ValueError: another kind has this name.
    """
    if kind.name in _FILES or _loaded.setdefault(kind.name, kind) is not kind:
        raise ValueError(f"there is already a kind {kind.name!r}")


def kinds_with(field: str) -> list[str]:
    """The names of the kinds whose rows have this field."""
    return [name for name in kind_names() if field in getattr(kind_of(name).row, "__struct_fields__", ())]
