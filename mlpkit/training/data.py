"""What a job trains on: the `TrainData` service, and the checks of the data before the handler runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from mlpkit.errors import ArgumentError, NotInRequest
from mlpkit.formats import check_rows, read_rows
from mlpkit.injection import Plan, service
from mlpkit.log import logger
from mlpkit.storage import Storage
from mlpkit.training.job import Job

_SHOWN_WARNINGS = 20


@service("train")
class TrainData:
    """The training data of a job, fetched from the store when it is asked for; files are cached and read-only.

    `location` is the file's key in the data bucket.

    Raises:
        NotInRequest: the request has no `data.location`.
    """

    def __init__(self, job: Job, kind: str, storage: Storage, data_bucket: str, name: str | None = None) -> None:
        location = location_of(job)
        if location is None:
            raise NotInRequest("[data] has no location: this algorithm trains on a file of the data bucket")
        self.location: str = location
        self.kind = kind
        self._job, self._storage, self._bucket = job, storage, data_bucket
        self._name = name or location

    @cached_property
    def path(self) -> Path:
        """The data file on this machine.

        Raises:
            StorageError: it could not be fetched.
        """
        return self._storage.fetch(f"{self._bucket}/{self.location}")

    @cached_property
    def etag(self) -> str:
        """What the store calls this content of the file; it changes with the content."""
        return self._storage.stat(f"{self._bucket}/{self.location}").etag

    def rows(self) -> Iterator[Any]:
        """The rows, typed as the algorithm's kind has them.

        Raises:
            DataError: a broken row, with its line and column.
        """
        return iter(read_rows(self.path, self.kind, name=self._name))

    def dictionary(self) -> Path | None:
        """The file that `extend.dict_location` names, or None where the request names none."""
        return self._beside("dict_location")

    def extra(self) -> Path | None:
        """The file that `extend.extra_location` names, or None where the request names none."""
        return self._beside("extra_location")

    def pretrained(self) -> Path | None:
        """The file or folder that `parameter.pretrain_model` names with its bucket, or None."""
        return pretrained(self._job, self._storage)

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

    def _beside(self, name: str) -> Path | None:
        location = _text(self._job.extend, name)
        return None if location is None else self._storage.fetch(f"{self._bucket}/{location}")


def pretrained(job: Job, storage: Storage) -> Path | None:
    """What the job's `parameter.pretrain_model` (`bucket/key` of a file, or of a folder) names, or None."""
    path = _text(job.parameters, "pretrain_model")
    if path is None:
        return None
    return storage.fetch(path) if storage.exists(path) else storage.fetch_dir(path)


def location_of(job: Job) -> str | None:
    """The job's `data.location`, or None where it has none."""
    return _text(job.data, "location")


def takes(plan: Plan, wanted: type, *, required: bool = False) -> bool:
    """Whether a handler or one of its dependencies takes this service (`required`: and cannot do without)."""
    own = any(each.type is wanted and not (required and each.optional) for each in plan.services)
    return own or any(takes(each.plan, wanted, required=required) for each in plan.dependencies)


def _text(json: str, name: str) -> str | None:
    found = msgspec.json.decode(json)
    value = found.get(name) if isinstance(found, Mapping) else None
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ArgumentError(f"[{name}] must be a string")
    return value
