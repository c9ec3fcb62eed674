"""Fakes of what handlers are given: real classes, without a service."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from mlpkit.algorithm import TrainOptions
from mlpkit.client import LocalFiles
from mlpkit.errors import ArgumentError
from mlpkit.formats import read_numbered_rows, read_rows, write_rows
from mlpkit.handler_log import Log
from mlpkit.settings import Settings
from mlpkit.storage import CheckpointManifest, Manifest, ModelDir, Storage, open_storage
from mlpkit.training import Checkpoint, Progress, Snapshot, TrainData, TrainJob


def fake_storage(folder: Path, *buckets: str) -> Storage:
    """A store in a folder, which also holds its cache.

    `buckets` are further buckets; those for data and models always exist.
    """
    for bucket in buckets:
        (folder / "storage" / bucket).mkdir(parents=True, exist_ok=True)
    return open_storage(Settings(home=folder))


def fake_model_dir(folder: Path, model_id: str = "model", manifest: Manifest | None = None) -> ModelDir:
    """A `ModelDir` that `train` writes or `load` reads.

    The folder is made if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return ModelDir(folder, model_id, manifest)


def fake_train_job(
    *,
    model_id: str = "model",
    algorithm: str = "algorithm",
    data: object = None,
    parameters: object = None,
    extend: object = None,
    uuid: str | None = None,
) -> TrainJob:
    """A job as `train` handlers see it; missing objects are empty."""
    return TrainJob(model_id, algorithm, "", data or {}, parameters or {}, extend or {}, uuid, 1, time.time())


class FakeTrainData(TrainData):
    """Training data from rows, or from a file.

    Args:
        rows: what `rows()` gives, such as `[ClassificationRow("a fine day", "good")]`; or the path of a file.
        kind: the kind of the algorithm: of the file's rows, or of the file that `path` writes the rows to.
        folder: where `path` and `check` may write; only needed if a handler or a test uses them.
        test_rows: what `test_rows()` gives: rows, or the path of a file.
        dictionary: the file that `dictionary()` gives.
        extra: the file that `extra()` gives.
        pretrained: the file or folder that `pretrained()` gives.
    """

    def __init__(
        self,
        rows: Iterable[Any] | Path,
        *,
        kind: str = "text_classification",
        folder: Path | None = None,
        test_rows: Iterable[Any] | Path = (),
        dictionary: Path | None = None,
        extra: Path | None = None,
        pretrained: Path | None = None,
    ) -> None:
        given = test_rows if isinstance(test_rows, Path) else None
        LocalFiles(None, dictionary, extra, pretrained, given).check()
        self.kind = kind
        self.location = "data.tsv"
        self._folder = folder
        self._file = rows if isinstance(rows, Path) else None
        self._rows: Sequence[Any] = [] if isinstance(rows, Path) else list(rows)
        self._given_test_file = given
        self._test_rows: Sequence[Any] = [] if isinstance(test_rows, Path) else list(test_rows)
        # What the properties of TrainData read.
        self._bucket = ""
        self._name = self.location
        self._names = {}
        self._options = TrainOptions()
        self._test_path = "test.tsv" if given is not None or self._test_rows else None
        self.test_report = None
        self._dictionary = dictionary
        self._extra = extra
        self._pretrained = pretrained

    @cached_property
    def path(self) -> Path:
        """The file, or the rows written to one."""
        return self._file or self._written(self.location, self._rows)

    @cached_property
    def etag(self) -> str:
        """Always the same."""
        return "fake"

    def rows(self) -> Iterator[Any]:
        """The rows."""
        return iter(self._rows) if self._file is None else read_rows(self._file, self.kind)

    def numbered_test_rows(self) -> Iterator[tuple[int, Any]]:
        """The test rows with their lines, from 1; `test_rows()` gives them without."""
        if self._given_test_file is None:
            return iter(enumerate(self._test_rows, 1))
        return read_numbered_rows(self._given_test_file, self.kind)

    @cached_property
    def _test_file(self) -> Path | None:
        if self._given_test_file is not None or not self._test_rows:
            return self._given_test_file
        return self._written("test.tsv", self._test_rows)

    def _written(self, name: str, rows: Sequence[Any]) -> Path:
        """A file with the rows."""
        if self._folder is None:
            raise ArgumentError("FakeTrainData needs folder= for data.path and data.check()")
        file = self._folder / name
        write_rows(file, self.kind, rows)
        return file

    def dictionary(self) -> Path | None:
        """The file that was given as `dictionary`, or None."""
        return self._dictionary

    def extra(self) -> Path | None:
        """The file that was given as `extra`, or None."""
        return self._extra

    def pretrained(self) -> Path | None:
        """The file or folder that was given as `pretrained`, or None."""
        return self._pretrained


class FakeCheckpoint(Checkpoint):
    """A `Checkpoint` in a folder; `saves` counts the calls that saved.

    Give the same folder to a second one, and `train` continues. Each `save` counts as one that is due.

    Args:
        folder: it is made if it does not exist.
        stop_at: the number of the save that raises `TrainingStopped`, as when the service stops.
        progress: the `Progress` of the same `train`, so that `progress.stopping` is true then.
    """

    def __init__(self, folder: Path, *, stop_at: int | None = None, progress: Progress | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        has_files = any(folder.iterdir())
        manifest = CheckpointManifest(algorithm="algorithm", model_id="model", request="fake") if has_files else None
        self.saves = 0
        self._stop_at = stop_at
        super().__init__(folder, manifest, upload=self._count, progress=progress or RecordedProgress(), period=0)

    def _count(self, fraction: float | None) -> None:
        self.saves += 1
        if self.saves == self._stop_at:
            self._progress.stop_reason = "cancel"


class RecordedProgress(Progress):
    """A `Progress` that remembers what it was told.

    `stages` has names in the order in which they began, `metrics` the last values, `snapshots` all states.
    """

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.snapshots: list[Snapshot] = []
        super().__init__(self.snapshots.append)

    @contextmanager
    def stage(self, name: str) -> Iterator[Any]:
        """Does what `Progress` does, and remembers it."""
        self.stages.append(name)
        with super().stage(name) as current:
            yield current


class RecordedLog(Log):
    """A `Log` that remembers pairs of level and text, and writes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def _write(
        self, level: str, message: str, args: tuple[object, ...], exception: BaseException | None = None
    ) -> None:
        # As loguru does it: a message without arguments is not a format string.
        self.lines.append((level.lower(), message.format(*args) if args else message))
