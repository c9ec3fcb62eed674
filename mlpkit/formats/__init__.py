"""Kinds of algorithms: their answers and their training data. The front door of this folder.

Types are constructed as Python is used to (half-open spans) and written as the platform reads them (`end_pos` is the
last character, scores are 0 to 100).
"""

from mlpkit.formats.answer import check_answer, limited
from mlpkit.formats.classification import ClassificationRow, Info, Label
from mlpkit.formats.cluster import Cluster, ClusterRow
from mlpkit.formats.generation import Generated, GenerationRow
from mlpkit.formats.json import plain, to_json
from mlpkit.formats.relation import Argument, Mention, Predicate, Relation, RelationRow
from mlpkit.formats.report import Finding, LabelCount, Report, check_rows
from mlpkit.formats.rows import CustomRow, Row, read_rows, write_rows
from mlpkit.formats.score import from_probabilities, from_probability
from mlpkit.formats.sequence_labeling import Entities, Entity, SequenceRow, Span, from_markup, to_markup
from mlpkit.formats.tags import from_bio, from_bmes, to_bio, to_bmes

__all__ = [
    "Argument",
    "ClassificationRow",
    "Cluster",
    "ClusterRow",
    "CustomRow",
    "Entities",
    "Entity",
    "Finding",
    "Generated",
    "GenerationRow",
    "Info",
    "Label",
    "LabelCount",
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
    "from_bio",
    "from_bmes",
    "from_markup",
    "from_probabilities",
    "from_probability",
    "limited",
    "plain",
    "read_rows",
    "to_bio",
    "to_bmes",
    "to_json",
    "to_markup",
    "write_rows",
]
