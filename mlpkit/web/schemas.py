"""JSON schemas of the types that authors annotate: of `parameters`, `features`, `params`, `data` and `extend`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from mlpkit.algorithm import Algorithm

Schema = dict[str, Any]

_PLACE = "#/components/schemas/"
_FIELDS = (
    ("train", "data"),
    ("train", "parameters"),
    ("train", "extend"),
    ("predict", "features"),
    ("predict", "params"),
)


class AuthorTypes:
    """The schemas of all algorithms' types; `components` holds those that the others refer to."""

    def __init__(self, algorithms: Mapping[str, Algorithm]) -> None:
        self._foreign: dict[str, Schema] = {}
        types = {
            (name, hook, field): annotation
            for name, algorithm in algorithms.items()
            for hook, field in _FIELDS
            if (annotation := _annotation(algorithm, hook, field)) is not None and self._can_be_told(annotation)
        }
        schemas, components = msgspec.json.schema_components(
            types.values(), schema_hook=self._schema_of_foreign, ref_template=_PLACE + "{name}"
        )
        self._schemas = dict(zip(types, schemas, strict=True))
        self.components: dict[str, Schema] = {**components, **self._foreign}

    def of(self, algorithm: str, hook: str, field: str) -> Schema:
        """The schema of one field: any object where the author says nothing about it."""
        return self._schemas.get((algorithm, hook, field)) or {"type": "object"}

    def _can_be_told(self, annotation: Any) -> bool:
        try:
            msgspec.json.schema_components([annotation], schema_hook=self._schema_of_foreign)
        except (TypeError, NotImplementedError):
            return False
        return True

    def _schema_of_foreign(self, cls: type) -> Schema:
        """The schema of a pydantic model, whose own definitions join the components."""
        tell = getattr(cls, "model_json_schema", None)
        if tell is None:
            raise NotImplementedError
        schema: Schema = tell(ref_template=_PLACE + "{model}")
        self._foreign.update(schema.pop("$defs", {}))
        return schema


def _annotation(algorithm: Algorithm, hook: str, field: str) -> Any:
    plan = algorithm.plan(hook)
    annotation = plan.field_type(field) if plan is not None else None
    return None if annotation is Any else annotation
