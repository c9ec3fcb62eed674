"""`text_custom`: the kind that prescribes nothing."""

from __future__ import annotations

from mlpkit.formats.kind import Facts, Kind, Row, line_of


class CustomRow(Row, frozen=True):
    """The columns of a line, as they are."""

    columns: tuple[str, ...]


KIND = Kind(
    name="text_custom",
    row=CustomRow,
    columns="anything",
    read=lambda line: CustomRow(tuple(line.split("\t"))),
    write=lambda row: line_of(row.columns),
    facts=lambda row: Facts("\t".join(row.columns), ""),
    example={},
    may_differ=True,
    checked=False,
)
