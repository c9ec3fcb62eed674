"""One training run in this process: checks the data, calls the algorithm's `train`, stores what it made.

The child process of a job does this (`local.py`), and so does the command line, in the foreground.
"""

from __future__ import annotations

import inspect
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from mlpkit import __version__
from mlpkit.algorithm import Algorithm
from mlpkit.app import App
from mlpkit.errors import MlpkitError, NotInRequest, UserCodeError
from mlpkit.formats import kind_of
from mlpkit.injection import Plan, ProcessScope
from mlpkit.log import printable
from mlpkit.services import Log
from mlpkit.settings import Settings
from mlpkit.storage import Manifest, ModelDir, Storage, checked_path, open_storage, save_model, settings_for
from mlpkit.training.data import TrainData, location_of, takes
from mlpkit.training.job import Job, TrainJob, train_job
from mlpkit.training.progress import Progress

_LONGEST_MESSAGE = 2000
_WELL_KNOWN = frozenset(
    ("joblib", "lightgbm", "numpy", "scikit-learn", "tensorflow", "torch", "transformers", "xgboost")
)


@dataclass(frozen=True)
class JobOutcome:
    """How a training ended. `message` is for people; `trace` is the user's traceback, for the log only.

    `lost`: its process was killed for no fault of its own, so it may run again.
    """

    state: Literal["completed", "error"]
    message: str = ""
    trace: str = ""
    lost: bool = False


def run_train(
    app: App, job: Job, settings: Settings, folder: Path, progress: Progress, data_name: str | None = None
) -> JobOutcome:
    """Runs the job here and now; never raises.

    `folder` must be empty: the handler's `out` is made in it. `data_name` is what messages call the data file, where
    that is not its location.
    """
    try:
        _train(app, job, settings, folder, progress, data_name)
    except UserCodeError as error:
        return JobOutcome("error", _sentence(error.kind, str(error)), error.trace)
    except MlpkitError as error:
        return JobOutcome("error", _cut(str(error)))
    except BaseException as error:
        return JobOutcome("error", _sentence(type(error).__name__, str(error)), traceback.format_exc())
    return JobOutcome("completed")


def check_job(algorithm: Algorithm, job: Job, settings: Settings) -> None:
    """Refuses a job that could only fail: a field that does not fit, no data, no place for the model, no store.

    Raises:
        ArgumentError: names the field and the place in it.
    """
    plan = algorithm.plan("train")
    if plan is None:
        return
    _decode_all(plan, job)
    if takes(plan, TrainData) and location_of(job) is None and takes(plan, TrainData, required=True):
        raise NotInRequest(f"[data] has no location: algorithm {algorithm.name!r} trains on a file of the data bucket")
    if takes(plan, ModelDir):
        checked_path(destination(job, settings))
    settings_for(settings, job.extend)


def destination(job: Job, settings: Settings) -> str:
    """Where the model of the job is stored, as `bucket/prefix`."""
    return job.model_path or f"{settings.model_bucket}/{job.model_id}"


class Workshop:
    """What one run hands to the handler: the services of the `train` hook, each made when it is first asked for."""

    def __init__(
        self,
        algorithm: Algorithm,
        job: Job,
        settings: Settings,
        folder: Path,
        progress: Progress,
        data_name: str | None = None,
    ) -> None:
        self._algorithm, self._job, self._settings, self._progress = algorithm, job, settings, progress
        self._folder = folder
        self._made: dict[type, Any] = {}
        self._makers: dict[type, Callable[[], object]] = {
            Storage: lambda: open_storage(settings_for(settings, job.extend)),
            ModelDir: lambda: ModelDir(folder, job.model_id),
            Log: lambda: Log(job.log_uuid),
            Progress: lambda: progress,
            TrainJob: lambda: train_job(job),
            TrainData: lambda: TrainData(job, algorithm.kind, self.service(Storage), settings.data_bucket, data_name),
        }

    def service(self, wanted: type) -> Any:
        """The service of this type.

        Raises:
            NotInRequest: the request does not have what it needs.
        """
        if wanted not in self._made:
            self._made[wanted] = self._makers[wanted]()
        return self._made[wanted]

    def store_model(self, versions: dict[str, str]) -> None:
        """Uploads what the handler left in its `out`, all or nothing; nothing happens where it took no `out`.

        Raises:
            StorageError: the upload failed.
        """
        if ModelDir not in self._made:
            return
        job, data = self._job, self._made.get(TrainData)
        parameters = msgspec.json.decode(job.parameters)
        manifest = Manifest(
            algorithm=self._algorithm.name,
            kind=self._algorithm.kind,
            model_id=job.model_id,
            parameters=parameters if isinstance(parameters, dict) else {},
            data_etag=data.etag if data is not None else None,
            created=time.time(),
            versions=versions,
            metrics=self._progress.metrics,
        )
        save_model(self.service(Storage), self._folder, destination(job, self._settings), manifest)

    def close(self) -> None:
        """Lets go of the store."""
        if Storage in self._made:
            self._made[Storage].close()


def _train(app: App, job: Job, settings: Settings, folder: Path, progress: Progress, data_name: str | None) -> None:
    algorithm = app.build().get(job.algorithm)
    plan = algorithm.plan("train") if algorithm is not None else None
    if algorithm is None or plan is None:
        raise MlpkitError(f"algorithm {job.algorithm!r} has no train function")
    workshop = Workshop(algorithm, job, settings, folder, progress, data_name)
    try:
        if takes(plan, TrainData) and kind_of(algorithm.kind).checked and location_of(job) is not None:
            with progress.stage("check data"):
                workshop.service(TrainData).check()
        scope = ProcessScope(workshop.service, app.overrides())
        try:
            result = plan(job.fields(), workshop.service, scope)
        finally:
            scope.close()
        if result is False:
            raise MlpkitError("train returned False")
        with progress.stage("store model"):
            workshop.store_model(versions_of(plan.function))
    finally:
        workshop.close()


def _decode_all(plan: Plan, job: Job) -> None:
    plan.decode(job.fields())
    for each in plan.dependencies:
        _decode_all(each.plan, job)


def versions_of(function: Callable[..., Any]) -> dict[str, str]:
    """The versions of Python, mlpkit and the packages that the function's module uses, by their names on the index."""
    from importlib import metadata  # a tenth of the time of a start, and needed at the end of a job

    versions = {"python": ".".join(map(str, sys.version_info[:3])), "mlpkit": __version__}
    loaded = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
    used = {_package_of(value) for value in getattr(inspect.getmodule(function), "__dict__", {}).values()}
    for package, distributions in metadata.packages_distributions().items():
        for name in distributions:
            if package in loaded and (package in used or name.lower() in _WELL_KNOWN):
                versions[name] = metadata.version(name)
    return versions


def _package_of(value: object) -> str:
    name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", "")
    return name.partition(".")[0] if isinstance(name, str) else ""


def _sentence(kind: str, text: str) -> str:
    return _cut(text if text.startswith(kind) else f"{kind}: {text}" if text else kind)


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "…"
