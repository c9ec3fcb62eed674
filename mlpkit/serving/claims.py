"""Who needs a model to stay: aliases, the platform's table, `preload`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from mlpkit.errors import ArgumentError, ModelInUse
from mlpkit.serving.model import LoadedModelRecord


class Claims:
    """The claims on models, by those who make them."""

    def __init__(self, preloaded: Iterable[str]) -> None:
        self.named: dict[str, LoadedModelRecord] = {}
        """The models that aliases lead to, by the alias's name; `Aliases` changes it."""
        self.in_table: frozenset[str] = frozenset()
        """The models that the platform's table names; `Checker` changes it."""
        self._coming: dict[str, str] = {}
        """The models that aliases are about to lead to, by the alias's name."""
        self._preloaded = frozenset(preloaded)

    @contextlib.contextmanager
    def kept(self, model_id: str, alias: str) -> Iterator[None]:
        """Keeps a model from being unloaded while an alias moves to it."""
        self._coming[alias] = model_id
        try:
            yield
        finally:
            del self._coming[alias]

    def alias_of(self, model_id: str) -> str | None:
        """An alias that leads to the model, or is about to."""
        leading = (name for name, record in self.named.items() if record.model_id == model_id)
        coming = (name for name, kept in self._coming.items() if kept == model_id)
        return next(leading, None) or next(coming, None)

    def aliases_of(self, model_id: str) -> list[str]:
        """All aliases that lead to the model."""
        return sorted(name for name, record in self.named.items() if record.model_id == model_id)

    def keeps(self, model_id: str) -> bool:
        """Whether the model must stay even if memory is short."""
        return model_id in self.in_table or model_id in self._preloaded or self.alias_of(model_id) is not None

    def check_model_id(self, model_id: str) -> None:
        """Checks that this is not the name of an alias.

        Raises:
            ArgumentError: it is.
        """
        if model_id in self.named or model_id in self._coming:
            raise ArgumentError(f"[{model_id}] is an alias, not the id of a model: /alias and /unalias change it")

    def check_unloadable(self, model_id: str) -> None:
        """Checks that the model may be unloaded.

        Raises:
            ModelInUse: an alias leads to it, or is about to.
            ArgumentError: the id is the name of an alias.
        """
        self.check_model_id(model_id)
        if (alias := self.alias_of(model_id)) is not None:
            raise ModelInUse(model_id, alias)
