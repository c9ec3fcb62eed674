"""Kinds of algorithms: their answers and their training data.

Types are built as Python is used to (half-open spans) and written as the platform reads them (`end_pos` is the last
character, scores are 0 to 100). A name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpkit import lazy_names

if TYPE_CHECKING:
    from mlpkit.formats.answer import check_answer as check_answer
    from mlpkit.formats.answer import plain as plain
    from mlpkit.formats.answer import to_json as to_json
    from mlpkit.formats.classification import ClassificationRow as ClassificationRow
    from mlpkit.formats.classification import Info as Info
    from mlpkit.formats.classification import Label as Label
    from mlpkit.formats.classification import from_probabilities as from_probabilities
    from mlpkit.formats.classification import from_probability as from_probability
    from mlpkit.formats.classification import limited as limited
    from mlpkit.formats.cluster import Cluster as Cluster
    from mlpkit.formats.cluster import ClusterRow as ClusterRow
    from mlpkit.formats.convert import Converted as Converted
    from mlpkit.formats.convert import convert_file as convert_file
    from mlpkit.formats.convert import from_bio as from_bio
    from mlpkit.formats.convert import from_bmes as from_bmes
    from mlpkit.formats.convert import to_bio as to_bio
    from mlpkit.formats.convert import to_bmes as to_bmes
    from mlpkit.formats.custom import CustomRow as CustomRow
    from mlpkit.formats.evaluation import Durations as Durations
    from mlpkit.formats.evaluation import EvaluationReport as EvaluationReport
    from mlpkit.formats.evaluation import FailedRows as FailedRows
    from mlpkit.formats.evaluation import Gate as Gate
    from mlpkit.formats.evaluation import Measure as Measure
    from mlpkit.formats.generation import Generated as Generated
    from mlpkit.formats.generation import GenerationRow as GenerationRow
    from mlpkit.formats.kind import KINDS as KINDS
    from mlpkit.formats.kind import BrokenRow as BrokenRow
    from mlpkit.formats.kind import Doubt as Doubt
    from mlpkit.formats.kind import Facts as Facts
    from mlpkit.formats.kind import Kind as Kind
    from mlpkit.formats.kind import Row as Row
    from mlpkit.formats.kind import kind_names as kind_names
    from mlpkit.formats.kind import kind_of as kind_of
    from mlpkit.formats.kind import register_kind as register_kind
    from mlpkit.formats.relation import Argument as Argument
    from mlpkit.formats.relation import Mention as Mention
    from mlpkit.formats.relation import Predicate as Predicate
    from mlpkit.formats.relation import Relation as Relation
    from mlpkit.formats.relation import RelationRow as RelationRow
    from mlpkit.formats.report import DataReport as DataReport
    from mlpkit.formats.report import Finding as Finding
    from mlpkit.formats.report import LabelCount as LabelCount
    from mlpkit.formats.report import Report as Report
    from mlpkit.formats.report import check_rows as check_rows
    from mlpkit.formats.report import check_test_rows as check_test_rows
    from mlpkit.formats.rows import held_out as held_out
    from mlpkit.formats.rows import read_numbered_rows as read_numbered_rows
    from mlpkit.formats.rows import read_rows as read_rows
    from mlpkit.formats.rows import write_rows as write_rows
    from mlpkit.formats.sequence_labeling import Entities as Entities
    from mlpkit.formats.sequence_labeling import Entity as Entity
    from mlpkit.formats.sequence_labeling import SequenceRow as SequenceRow
    from mlpkit.formats.sequence_labeling import Span as Span
    from mlpkit.formats.sequence_labeling import from_markup as from_markup
    from mlpkit.formats.sequence_labeling import to_markup as to_markup
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "mlpkit.formats.answer": "check_answer plain to_json",
            "mlpkit.formats.classification": "ClassificationRow Info Label from_probabilities from_probability limited",
            "mlpkit.formats.cluster": "Cluster ClusterRow",
            "mlpkit.formats.convert": "Converted convert_file from_bio from_bmes to_bio to_bmes",
            "mlpkit.formats.custom": "CustomRow",
            "mlpkit.formats.evaluation": "Durations EvaluationReport FailedRows Gate Measure",
            "mlpkit.formats.generation": "Generated GenerationRow",
            "mlpkit.formats.kind": "KINDS BrokenRow Doubt Facts Kind Row kind_names kind_of register_kind",
            "mlpkit.formats.relation": "Argument Mention Predicate Relation RelationRow",
            "mlpkit.formats.report": "DataReport Finding LabelCount Report check_rows check_test_rows",
            "mlpkit.formats.rows": "held_out read_numbered_rows read_rows write_rows",
            "mlpkit.formats.sequence_labeling": "Entities Entity SequenceRow Span from_markup to_markup",
        },
    )
