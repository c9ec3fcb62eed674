"""Kinds of algorithms: their answers and their training data.

Types are built as Python is used to (half-open spans) and written as the platform reads them (`end_pos` is the last
character, scores are 0 to 100). A name is imported when it is first used.
"""

from __future__ import annotations

from mlpkit import LazyImports
from mlpkit.formats.kind import KINDS, BrokenRow, Doubt, Facts, Kind, Row, kind_names, kind_of, register_kind

with LazyImports(__name__):
    from mlpkit.formats.answer import check_answer, plain, to_json
    from mlpkit.formats.classification import (
        ClassificationRow,
        Info,
        Label,
        from_probabilities,
        from_probability,
        limited,
    )
    from mlpkit.formats.cluster import Cluster, ClusterRow
    from mlpkit.formats.convert import Converted, convert_file, from_bio, from_bmes, to_bio, to_bmes
    from mlpkit.formats.custom import CustomRow
    from mlpkit.formats.evaluation import Durations, EvaluationReport, FailedRows, Gate, Measure
    from mlpkit.formats.generation import Generated, GenerationRow
    from mlpkit.formats.relation import Argument, Mention, Predicate, Relation, RelationRow
    from mlpkit.formats.report import DataReport, Finding, LabelCount, Report, check_rows, check_test_rows
    from mlpkit.formats.rows import held_out, read_numbered_rows, read_rows, write_rows
    from mlpkit.formats.sequence_labeling import Entities, Entity, SequenceRow, Span, from_markup, to_markup

__all__ = [
    "KINDS",
    "Argument",
    "BrokenRow",
    "ClassificationRow",
    "Cluster",
    "ClusterRow",
    "Converted",
    "CustomRow",
    "DataReport",
    "Doubt",
    "Durations",
    "Entities",
    "Entity",
    "EvaluationReport",
    "Facts",
    "FailedRows",
    "Finding",
    "Gate",
    "Generated",
    "GenerationRow",
    "Info",
    "Kind",
    "Label",
    "LabelCount",
    "Measure",
    "Mention",
    "Predicate",
    "Relation",
    "RelationRow",
    "Report",
    "Row",
    "SequenceRow",
    "Span",
    "check_answer",
    "check_rows",
    "check_test_rows",
    "convert_file",
    "from_bio",
    "from_bmes",
    "from_markup",
    "from_probabilities",
    "from_probability",
    "held_out",
    "kind_names",
    "kind_of",
    "limited",
    "plain",
    "read_numbered_rows",
    "read_rows",
    "register_kind",
    "to_bio",
    "to_bmes",
    "to_json",
    "to_markup",
    "write_rows",
]
