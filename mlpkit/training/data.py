"""What a job trains on: the `TrainData` service.

It also checks the data before the handler runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from mlpkit.algorithm import TrainOptions
from mlpkit.errors import ArgumentError, NotInRequest
from mlpkit.formats import DataReport, check_rows, check_test_rows, held_out, kind_of, read_numbered_rows, read_rows
from mlpkit.injection import Plan, service
from mlpkit.log import logger
from mlpkit.storage import Storage, location
from mlpkit.training.job import Job

_SHOWN_WARNINGS = 20
_MOST_LABELS = 10_000
"""With more labels it is not known which ones only test rows have."""
_READ = ("location", "test_location", "min_f1", "dict_location", "extra_location", "pretrain_model")
_fields = msgspec.json.Decoder(msgspec.defstruct("FieldsRead", [(name, msgspec.Raw, None) for name in _READ])).decode
"""Reads only these fields: others can be millions."""


@service("train")
class TrainData:
    """The training data of a job.

    A file is fetched from the store when you first ask for it; it is cached and read-only. `location` is the file's
    key in the data bucket. `names` is what messages call a location, if not by its key.

    Raises:
        NotInRequest: the request has no `data.location`.
    """

    def __init__(
        self,
        job: Job,
        kind: str,
        storage: Storage,
        data_bucket: str,
        names: Mapping[str, str] | None = None,
        options: TrainOptions | None = None,
    ) -> None:
        path = data_path(job, data_bucket)
        if path is None:
            raise NotInRequest("[data] has no location: this algorithm trains on a file of the data bucket")
        self.location: str = path.removeprefix(f"{data_bucket}/")
        self.kind = kind
        self._path = path
        self._job = job
        self._storage = storage
        self._bucket = data_bucket
        self._names = names or {}
        self._name = self._names.get(self.location, self.location)
        self._options = options or TrainOptions()
        self._test_path = location_of_test_rows(job, data_bucket)
        self.test_report: DataReport | None = None
        """What the check found in the file of the test rows; None without a check or such a file."""
        self.unknown_labels: dict[str, int] | None = None
        """Labels of test rows that no training row has, with their counts; None as long as that is not known."""

    @cached_property
    def path(self) -> Path:
        """The data file on this machine.

        Raises:
            StorageError: it could not be fetched.
        """
        return self._storage.fetch(self._path)

    @cached_property
    def etag(self) -> str:
        """The store's etag of the file; it changes with the content."""
        return self._storage.stat(self._path).etag

    def rows(self) -> Iterator[Any]:
        """The rows, typed as the algorithm's kind has them.

        Those that `@app.train(test=...)` holds out for the evaluation are left out.

        Raises:
            DataError: a broken row, with its line and column.
        """
        if not self._held_out:
            return iter(read_rows(self.path, self.kind, name=self._name))
        return (row for _, row in self._rows_of_file(are_held_out=False))

    def test_rows(self) -> Iterator[Any]:
        """The rows that the model is tested with after the training.

        They are those of `data.test_location`, or else the share of `@app.train(test=...)`. There are none without
        both.

        Raises:
            DataError: a broken row, with its line and column.
        """
        return (row for _, row in self.numbered_test_rows())

    def numbered_test_rows(self) -> Iterator[tuple[int, Any]]:
        """The test rows with their lines, from 1."""
        if self._test_file is not None:
            return read_numbered_rows(self._test_file, self.kind, name=self._test_name)
        if not self._held_out:
            return iter(())
        return self._rows_of_file(are_held_out=True)

    @property
    def test_source(self) -> str:
        """Where the test rows come from, in words; empty without test rows."""
        if self._test_path is not None:
            return f"data.test_location: {self._test_name}"
        return "" if self._options.test is None else f"test={self._options.test:g}"

    @property
    def test_seed(self) -> int | None:
        """The seed of the share that is held out; None without one."""
        return self._options.test_seed if self._test_path is None and self._options.test is not None else None

    @cached_property
    def _test_file(self) -> Path | None:
        """The local file of the test rows, if they have one."""
        return None if self._test_path is None else self._storage.fetch(self._test_path)

    @property
    def _test_name(self) -> str:
        name = (self._test_path or "").removeprefix(f"{self._bucket}/")
        return self._names.get(name, name)

    @cached_property
    def _held_out(self) -> frozenset[int]:
        if self._test_path is not None or self._options.test is None:
            return frozenset()
        return held_out(self.path, self.kind, self._options.test, self._options.test_seed, name=self._name)

    def _rows_of_file(self, *, are_held_out: bool) -> Iterator[tuple[int, Any]]:
        facts_of = kind_of(self.kind).facts
        learnt: set[str] = set()
        asked: Counter[str] = Counter()
        for line, row in read_numbered_rows(self.path, self.kind, name=self._name):
            facts = facts_of(row)
            is_held_out = hash(facts.sentence) in self._held_out
            if facts.positive and len(learnt) < _MOST_LABELS:
                (asked if is_held_out else learnt).update(facts.labels)
            if is_held_out is are_held_out:
                yield line, row
        if len(learnt) < _MOST_LABELS:
            self.unknown_labels = {label: count for label, count in asked.items() if label not in learnt}

    def dictionary(self) -> Path | None:
        """The file that `extend.dict_location` names, or None without it."""
        return self._beside("dict_location")

    def extra(self) -> Path | None:
        """The file that `extend.extra_location` names, or None without it."""
        return self._beside("extra_location")

    def pretrained(self) -> Path | None:
        """The file or folder that `parameter.pretrain_model` names with its bucket, or None."""
        path = pretrained_path(self._job)
        if path is None:
            return None
        return self._storage.fetch(path) if self._storage.exists(path) else self._storage.fetch_dir(path)

    def check(self) -> int:
        """Reads all rows once, logs the first warnings, and counts the rows.

        Raises:
            DataError: the file cannot be trained on; says where and why.
        """
        report = check_rows(self.path, self.kind, name=self._name)
        _tell(report)
        if self._test_file is not None:
            self.test_report = check_test_rows(self._test_file, self.kind, self.path, name=self._test_name)
            self.unknown_labels = self.test_report.unknown_labels
            _tell(self.test_report)
        return report.rows

    def _beside(self, name: Literal["dict_location", "extra_location"]) -> Path | None:
        path = path_beside(self._job, name, self._bucket)
        return None if path is None else self._storage.fetch(path)


def _tell(report: DataReport) -> None:
    """Logs the first warnings; raises DataError if there are errors."""
    warnings = [finding for finding in report.findings if finding.severity == "warning"]
    for finding in warnings[:_SHOWN_WARNINGS]:
        place = "" if finding.line is None else f", line {finding.line}"
        logger.warning("{}{}: {}", report.name, place, finding.message)
    if report.warnings > _SHOWN_WARNINGS:
        logger.warning("{}: {:,} more warnings", report.name, report.warnings - _SHOWN_WARNINGS)
    report.raise_if_fatal()


def data_path(job: Job, bucket: str) -> str | None:
    """The `bucket/key` of the job's `data.location`, or None if it has none.

    Raises:
        ArgumentError: it cannot be a path; so do the other functions here.
    """
    text = _text(job.data, "location")
    return None if text is None else location(text, "data.location", bucket=bucket)


def data_location(job: Job) -> str:
    """The job's `data.location` as it was sent; empty if it has none."""
    found = _value(job.data, "location")
    return found if isinstance(found, str) else ""


def location_of_test_rows(job: Job, bucket: str) -> str | None:
    """The `bucket/key` of the job's `data.test_location`, or None if it has none."""
    text = _text(job.data, "test_location")
    return None if text is None else location(text, "data.test_location", bucket=bucket)


def min_f1(job: Job, options: TrainOptions) -> float | None:
    """The F1 that the job's model must reach, or None.

    It is `extend.min_f1`, or else the decorator's.

    Raises:
        ArgumentError: it is not a number above 0 and at most 1.
    """
    value = _value(job.extend, "min_f1")
    if value is None:
        return options.min_f1
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ArgumentError(f"[extend] min_f1 must be a number above 0 and at most 1, not {value!r:.80}")
    return float(value)


def path_beside(job: Job, name: Literal["dict_location", "extra_location"], bucket: str) -> str | None:
    """The `bucket/key` of a further data file, or None without it."""
    text = _text(job.extend, name)
    return None if text is None else location(text, f"extend.{name}", bucket=bucket)


def pretrained_path(job: Job) -> str | None:
    """The `bucket/key` of the pretrained model, or None without it."""
    text = _text(job.parameters, "pretrain_model")
    return None if text is None else location(text, "parameter.pretrain_model")


def takes(plan: Plan, wanted: type, *, required: bool = False) -> bool:
    """Whether a handler or one of its dependencies takes this service.

    With `required`, only services that may not be None count.
    """
    own = any(taken.type is wanted and not (required and taken.optional) for taken in plan.services)
    return own or any(takes(dependency.plan, wanted, required=required) for dependency in plan.dependencies)


def _value(json: str, name: str) -> Any:
    found = getattr(_fields(json), name) if json.startswith("{") else None
    return None if found is None else msgspec.json.decode(found)


def _text(json: str, name: str) -> str | None:
    value = _value(json, name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ArgumentError(f"[{name}] must be a string")
    return value
