"""What a job trains on: the `TrainData` service.

It also checks the data before the handler runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from mlpkit.errors import ArgumentError, NotInRequest
from mlpkit.formats import check_rows, read_rows
from mlpkit.injection import Plan, service
from mlpkit.log import logger
from mlpkit.storage import Storage, location
from mlpkit.training.job import Job

_SHOWN_WARNINGS = 20
_PATHS = ("location", "dict_location", "extra_location", "pretrain_model")
_fields = msgspec.json.Decoder(msgspec.defstruct("Paths", [(name, msgspec.Raw, None) for name in _PATHS])).decode
"""Reads only these fields: others can be millions."""


@service("train")
class TrainData:
    """The training data of a job.

    A file is fetched from the store when you first ask for it; it is cached and read-only. `location` is the file's
    key in the data bucket.

    Raises:
        NotInRequest: the request has no `data.location`.
    """

    def __init__(self, job: Job, kind: str, storage: Storage, data_bucket: str, name: str | None = None) -> None:
        path = data_path(job, data_bucket)
        if path is None:
            raise NotInRequest("[data] has no location: this algorithm trains on a file of the data bucket")
        self.location: str = path.removeprefix(f"{data_bucket}/")
        self.kind = kind
        self._path = path
        self._job = job
        self._storage = storage
        self._bucket = data_bucket
        self._name = name or self.location

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

        Raises:
            DataError: a broken row, with its line and column.
        """
        return iter(read_rows(self.path, self.kind, name=self._name))

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

    def check(self) -> None:
        """Reads all rows once, and logs the first warnings.

        Raises:
            DataError: the file cannot be trained on; says where and why.
        """
        report = check_rows(self.path, self.kind, name=self._name)
        warnings = [finding for finding in report.findings if finding.severity == "warning"]
        for finding in warnings[:_SHOWN_WARNINGS]:
            place = "" if finding.line is None else f", line {finding.line}"
            logger.warning("{}{}: {}", self._name, place, finding.message)
        if report.warnings > _SHOWN_WARNINGS:
            logger.warning("{}: {:,} more warnings", self._name, report.warnings - _SHOWN_WARNINGS)
        report.raise_if_fatal()

    def _beside(self, name: Literal["dict_location", "extra_location"]) -> Path | None:
        path = path_beside(self._job, name, self._bucket)
        return None if path is None else self._storage.fetch(path)


def data_path(job: Job, bucket: str) -> str | None:
    """The `bucket/key` of the job's `data.location`, or None if it has none.

    Raises:
        ArgumentError: it cannot be a path; so do the next two.
    """
    text = _text(job.data, "location")
    return None if text is None else location(text, "data.location", bucket=bucket)


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


def _text(json: str, name: str) -> str | None:
    found = getattr(_fields(json), name) if json.startswith("{") else None
    value = None if found is None else msgspec.json.decode(found)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ArgumentError(f"[{name}] must be a string")
    return value
