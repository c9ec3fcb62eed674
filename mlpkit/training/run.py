"""One training in this process: check, call `train`, evaluate, store the model.

The process of a job does this (`process.py`), and so does the command line, in the foreground.
"""

from __future__ import annotations

import errno
import inspect
import math
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mlpkit import __version__
from mlpkit.algorithm import Algorithm
from mlpkit.app import App
from mlpkit.errors import (
    ArgumentError,
    BelowGate,
    EvaluationFailed,
    MlpkitError,
    ModelChanged,
    NotInRequest,
    ObjectNotFound,
    StorageError,
    TrainingStopped,
    UserCodeError,
)
from mlpkit.formats import EvaluationReport, Gate, kind_of
from mlpkit.handler_log import Log
from mlpkit.injection import Plan, ProcessScope, ending_forked_copies
from mlpkit.log import logger, printable
from mlpkit.settings import Settings
from mlpkit.storage import (
    Manifest,
    ModelDir,
    Storage,
    begin_model,
    checked_path,
    checkpoint_place,
    decode_json,
    delete_checkpoint,
    discard_model,
    location,
    open_storage,
    save_model,
    settings_for,
)
from mlpkit.training.checkpoint import Checkpoint, open_checkpoint_of_job, resumed_model
from mlpkit.training.data import (
    TrainData,
    data_path,
    location_of_test_rows,
    min_f1,
    path_beside,
    pretrained_path,
    takes,
)
from mlpkit.training.evaluation import REPORT, Evaluation, ModelUnderTest, with_time_limit
from mlpkit.training.job import Job, JobOutcome, TrainJob, train_job
from mlpkit.training.progress import Progress

_LONGEST_MESSAGE = 2000
_LONG_REQUEST = 1 << 20
_MOST_VALUES = 200_000
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
"""Seconds between two tries to store a model."""
_WELL_KNOWN = frozenset(
    ("joblib", "lightgbm", "numpy", "scikit-learn", "tensorflow", "torch", "transformers", "xgboost")
)


def run_train(
    app: App,
    job: Job,
    settings: Settings,
    folder: Path,
    progress: Progress,
    data_names: Mapping[str, str] | None = None,
    *,
    on_trained: Callable[[Manifest, bool], None] | None = None,
    trained: Manifest | None = None,
    evaluation_problem: str = "",
) -> JobOutcome:
    """Runs the job here and now; never raises.

    Args:
        folder: must be empty; it is the handler's `out`.
        data_names: what messages call a location of the data bucket, if not by its key.
        on_trained: called when the handler has made a model, and again when that is evaluated: with its manifest, and
            whether it is still to be evaluated. If it is given, storing is tried again for `MLPKIT_STORE_RETRY`.
        trained: the manifest of the model that an earlier run has left in `folder`; `train` is not called then.
        evaluation_problem: why that model cannot be evaluated.
    """

    def train() -> None:
        algorithm = algorithm_of(app, job)
        with closing(Services(algorithm, job, settings, folder, progress, data_names)) as services:
            if not stores_model(algorithm):
                _train(app, services)
                services.end_checkpoint()
                return
            storage: Storage = services.service(Storage)
            path = destination(job, settings)
            if trained is None:
                with progress.stage("check store"):
                    begin_model(storage, path)
            with _discarded_if_it_fails(storage, path):
                manifest = trained or _train(app, services)
                is_tested = has_test_rows(algorithm, job, settings)
                if on_trained is not None:
                    on_trained(manifest, is_tested)
                if is_tested:
                    manifest = _evaluated(app, services, manifest, evaluation_problem)
                    if on_trained is not None:
                        on_trained(manifest, False)
                retry = settings.store_retry if on_trained is not None else 0.0
                _store(storage, folder, path, manifest, progress, retry)
            services.end_checkpoint()
            _check_gate(manifest)

    return _outcome_of(train, folder)


def store_trained(
    job: Job,
    settings: Settings,
    folder: Path,
    manifest: Manifest,
    progress: Progress,
    *,
    keep_checkpoint: bool,
) -> JobOutcome:
    """Stores the model that an earlier run has left; never raises."""

    def store() -> None:
        evaluation = {"evaluation": manifest.evaluation} if manifest.evaluation else {}
        progress.update(**{**manifest.metrics, **evaluation})
        path = destination(job, settings)
        with closing(open_storage(settings_for(settings, job.extend))) as storage:
            with _discarded_if_it_fails(storage, path):
                _store(storage, folder, path, manifest, progress, settings.store_retry)
            if not keep_checkpoint:
                _end_checkpoint(storage, checkpoint_place(settings, job.model_id))
        _check_gate(manifest)

    return _outcome_of(store, folder)


def _outcome_of(work: Callable[[], None], folder: Path) -> JobOutcome:
    try:
        work()
    except TrainingStopped as error:
        return JobOutcome("error", str(error), stopped=True)
    except UserCodeError as error:
        if isinstance(error.__cause__, TrainingStopped):
            return JobOutcome("error", str(error.__cause__), stopped=True)
        text = f"{error}{_of_full_disk(error.__cause__, folder)}"
        return JobOutcome("error", _sentence(error.kind, text), error.trace)
    except MlpkitError as error:
        return JobOutcome("error", _cut(str(error)))
    except BaseException as error:
        text = f"{error}{_of_full_disk(error, folder)}"
        return JobOutcome("error", _sentence(type(error).__name__, text), traceback.format_exc())
    return JobOutcome("completed")


def _of_full_disk(error: BaseException | None, folder: Path) -> str:
    """What the disk of the job has left, if one was full.

    The job may run on any node, and the error often names no file.
    """
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    left = shutil.disk_usage(folder).free / 2**20
    return f": the disk of {folder} on {os.uname().nodename} has {left:,.1f} MiB left"


def check_job(algorithm: Algorithm, job: Job, settings: Settings) -> None:
    """Refuses a job that could only fail.

    `train`, the data or a place for the model is missing, or a field does not fit. If the fields have very many values,
    only the job itself decodes them: here that would hold up all requests.

    Raises:
        ArgumentError: names the field and the place in it.
    """
    plan = algorithm.plan("train")
    if plan is None:
        raise ArgumentError(f"algorithm [{algorithm.name}] cannot be trained: its script has no @app.train")
    if not _is_long(job):
        _decode_all(plan, job)
    if takes(plan, TrainData):
        bucket = settings.data_bucket
        if data_path(job, bucket) is None and takes(plan, TrainData, required=True):
            raise NotInRequest(
                f"[data] has no location: algorithm {algorithm.name!r} trains on a file of the data bucket"
            )
        path_beside(job, "dict_location", bucket)
        path_beside(job, "extra_location", bucket)
        pretrained_path(job)
    needed = min_f1(job, algorithm.train_options)
    if needed is not None:
        if not algorithm.has_f1:
            raise ArgumentError(f"[extend] min_f1 needs an F1, which kind {algorithm.kind!r} does not have")
        if not has_test_rows(algorithm, job, settings):
            raise ArgumentError(
                f"min_f1={needed:g} needs test rows: name them in data.test_location, or use @app.train(test=0.1)"
            )
    location_of_test_rows(job, settings.data_bucket)
    if takes(plan, ModelDir):
        destination(job, settings)
    if takes(plan, Checkpoint):
        checkpoint_place(settings, job.model_id)
        resumed_model(job)
    elif resumed_model(job) is not None:
        raise ArgumentError(
            f"[extend.resume_from] algorithm {algorithm.name!r} cannot continue a training: its train has no Checkpoint"
        )
    settings_for(settings, job.extend)


def destination(job: Job, settings: Settings) -> str:
    """Where the model of the job is stored, as `bucket/prefix`.

    Raises:
        ArgumentError: its `model_path` or its id cannot be a path.
    """
    if job.model_path:
        return location(job.model_path, "model_path")
    path = f"{settings.model_bucket}/{job.model_id}"
    checked_path(path)
    return path


class Services:
    """The services that one run gives to `train`, made on first use."""

    def __init__(
        self,
        algorithm: Algorithm,
        job: Job,
        settings: Settings,
        folder: Path,
        progress: Progress,
        data_names: Mapping[str, str] | None = None,
    ) -> None:
        self.algorithm = algorithm
        self.job = job
        self.settings = settings
        self.folder = folder
        self.progress = progress
        self._made: dict[type, Any] = {}
        self._checkpoint_folder = folder.with_name(f"{folder.name}.checkpoint")
        self._makers: dict[type, Callable[[], object]] = {
            Storage: lambda: open_storage(settings_for(settings, job.extend)),
            ModelDir: lambda: ModelDir(folder, job.model_id),
            Log: lambda: Log(job.log_uuid),
            Progress: lambda: progress,
            Checkpoint: self._open_checkpoint,
            TrainJob: lambda: train_job(job),
            TrainData: lambda: TrainData(
                job,
                algorithm.kind,
                self.service(Storage),
                settings.data_bucket,
                data_names,
                algorithm.train_options,
            ),
        }

    def service(self, wanted: type) -> Any:
        """The service of this type.

        Raises:
            NotInRequest: the request does not have what it needs.
        """
        if wanted not in self._made:
            self._made[wanted] = self._makers[wanted]()
        return self._made[wanted]

    def _open_checkpoint(self) -> Checkpoint:
        storage = self.service(Storage)
        with self.progress.stage("look for a checkpoint"):
            return open_checkpoint_of_job(
                self.job, self.settings, storage, self._checkpoint_folder, self.progress, self._data_etag()
            )

    def end_checkpoint(self) -> None:
        """Removes the checkpoint of a completed job, unless it is kept."""
        if takes_checkpoint(self.algorithm) and not self.algorithm.train_options.keep_checkpoint:
            _end_checkpoint(self.service(Storage), checkpoint_place(self.settings, self.job.model_id))

    def _data_etag(self) -> str | None:
        data = self._made.get(TrainData)
        return data.etag if data is not None else None

    def manifest(self, versions: dict[str, str]) -> Manifest:
        """The manifest of the model that the handler has made."""
        job = self.job
        parameters = msgspec.json.decode(job.parameters)
        return Manifest(
            algorithm=self.algorithm.name,
            kind=self.algorithm.kind,
            model_id=job.model_id,
            parameters=parameters if isinstance(parameters, dict) else {},
            data_etag=self._data_etag(),
            created=time.time(),
            versions=versions,
            metrics=self.progress.metrics,
        )

    def close(self) -> None:
        """Closes the store, and removes the local copy of the checkpoint."""
        shutil.rmtree(self._checkpoint_folder, ignore_errors=True)
        if Storage in self._made:
            self._made[Storage].close()


def algorithm_of(app: App, job: Job) -> Algorithm:
    """The algorithm that the job is for.

    Raises:
        MlpkitError: the app does not have it, or it has no `train`.
    """
    algorithm = app.build().get(job.algorithm)
    if algorithm is None or algorithm.plan("train") is None:
        raise MlpkitError(f"algorithm {job.algorithm!r} has no train function")
    return algorithm


def stores_model(algorithm: Algorithm) -> bool:
    """Whether jobs of the algorithm store a model: `train` takes a `ModelDir`."""
    plan = algorithm.plan("train")
    return plan is not None and takes(plan, ModelDir)


def takes_checkpoint(algorithm: Algorithm) -> bool:
    """Whether jobs of the algorithm may save a checkpoint."""
    plan = algorithm.plan("train")
    return plan is not None and takes(plan, Checkpoint)


def _end_checkpoint(storage: Storage, place: str) -> None:
    try:
        delete_checkpoint(storage, place)
    except StorageError as error:
        logger.warning(
            "the checkpoint of a completed training stays in the store until its model is deleted: {}", error
        )


@contextmanager
def _discarded_if_it_fails(storage: Storage, path: str) -> Iterator[None]:
    """Removes what the block has stored of a model, if it fails."""
    try:
        yield
    except BaseException:
        try:
            discard_model(storage, path)
        except StorageError as error:
            logger.warning("parts of the model may be left in the store: {}", error)
        raise


def _train(app: App, services: Services) -> Manifest:
    """Checks the data, calls the handler, and gives the model's manifest."""
    algorithm = services.algorithm
    progress = services.progress
    job = services.job
    plan = algorithm.plan("train")
    assert plan is not None
    if takes(plan, TrainData) and data_path(services.job, services.settings.data_bucket) is not None:
        with progress.stage("check data"):
            data: TrainData = services.service(TrainData)
            # Now, because the store may be out of reach when the manifest is made.
            _ = data.etag
            if kind_of(algorithm.kind).checked:
                progress.note_rows(data.check())
    scope = ProcessScope(services.service, app.overrides())
    try:
        with ending_forked_copies():
            result = plan(job.fields(), services.service, scope)
    finally:
        scope.close()
    if progress.stop_reason == "drain" and progress.stop_seen:
        # It may have returned early because the service stops. Half of a training must not become a model.
        raise TrainingStopped("train returned because the service stops")
    if _is_false(result):
        raise MlpkitError("train returned False")
    return services.manifest(versions_of(plan.function))


def has_test_rows(algorithm: Algorithm, job: Job, settings: Settings) -> bool:
    """Whether the job's model is evaluated."""
    if not stores_model(algorithm) or data_path(job, settings.data_bucket) is None:
        return False
    return algorithm.train_options.test is not None or location_of_test_rows(job, settings.data_bucket) is not None


def _evaluated(app: App, services: Services, manifest: Manifest, problem: str) -> Manifest:
    """The manifest with the evaluation, whose report is in the folder.

    If the evaluation fails, the report says why.
    """
    folder = services.folder
    progress = services.progress
    data: TrainData = services.service(TrainData)
    check = data.test_report
    known: dict[str, Any] = {
        "model_id": manifest.model_id,
        "algorithm": manifest.algorithm,
        "kind": manifest.kind,
        "created": time.time(),
        "source": data.test_source,
        "seed": data.test_seed,
        "in_both": 0 if data.test_seed is not None else None if check is None else check.codes.get("in-both", 0),
    }

    def evaluate(over: threading.Event) -> EvaluationReport:
        if problem:
            raise EvaluationFailed(problem)
        if not services.algorithm.is_measured:
            raise EvaluationFailed(f"kind {manifest.kind!r} does not say which answers are right: add @app.evaluate")
        fields = {**services.job.fields(), "model_path": services.job.model_path or None}
        files = ModelDir(folder, manifest.model_id, manifest)

        def service(wanted: type) -> Any:
            return files if wanted is ModelDir else services.service(wanted)

        def rows() -> Iterator[tuple[int, Any]]:
            total = None if check is None else check.rows
            end = math.inf
            for numbered in progress.track(data.numbered_test_rows(), total=total):
                if over.is_set():
                    raise EvaluationFailed("the evaluation is not needed any more")
                if progress.stop_reason == "cancel":
                    # The grace must leave time to store the model.
                    end = min(end, time.monotonic() + services.settings.shutdown_grace / 2)
                    if time.monotonic() >= end:
                        raise EvaluationFailed("a soft cancel ended the evaluation")
                yield numbered

        with ending_forked_copies(), ModelUnderTest(app, services.algorithm, service, fields) as model:
            evaluation = Evaluation(model)
            metrics = evaluation.run(rows())
            return evaluation.report(**known, metrics=metrics)

    with progress.stage("evaluate"):
        try:
            report = with_time_limit(evaluate, services.settings.evaluate_timeout)
        except MlpkitError as error:
            report = EvaluationReport(**known, error=_cut(str(error)))
            logger.warning("the model is not evaluated: {}", f"{error}\n{getattr(error, 'trace', '')}".rstrip())
        except Exception as error:
            report = EvaluationReport(**known, error=f"internal error: {error!r}")
            logger.exception("the model is not evaluated")
    report = msgspec.structs.replace(report, unknown_labels=data.unknown_labels)
    needed = min_f1(services.job, services.algorithm.train_options)
    below_gate = ""
    if needed is not None:
        f1 = report.f1 if report.f1 is not None else report.metrics.get("f1")
        report = msgspec.structs.replace(report, gate=Gate(needed, f1, f1 is not None and f1 >= needed))
        if f1 is None:
            below_gate = f"there is no F1, and min_f1={needed:g} is needed: {report.error or 'evaluate returned no f1'}"
        elif f1 < needed:
            average = f"{report.average} " if report.average else ""
            below_gate = f"the model has {average}F1 {f1:.4f} on {report.rows:,} test rows, below min_f1={needed:g}"
    _write_report(folder, report)
    progress.update(evaluation=report.summary())
    return msgspec.structs.replace(
        manifest, created=time.time(), evaluation=report.summary(), below_gate=_cut(below_gate)
    )


def read_evaluation(job: Job, settings: Settings) -> bytes:
    """The stored report of a job's evaluation, as JSON.

    Raises:
        ObjectNotFound: the model was deleted, or the file is the author's.
        StorageError: the store cannot be used.
    """
    with closing(open_storage(settings_for(settings, job.extend))) as storage:
        path = f"{destination(job, settings)}/{REPORT}"
        file = storage.fetch(path)
        try:
            if report_in(file) is None:
                raise ObjectNotFound(f"the evaluation of job [{job.model_id}] is not stored: train has written {path}")
            return file.read_bytes()
        finally:
            storage.release(file)


def report_in(file: Path) -> EvaluationReport | None:
    """The report in a file `evaluation.json`.

    None if there is no such file, or if it is one of the author's.
    """
    try:
        found = decode_json(file.read_bytes(), EvaluationReport)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return found if found.model_id else None


def _write_report(folder: Path, report: EvaluationReport) -> None:
    file = folder / REPORT
    try:
        if not file.exists() or report_in(file) is not None:
            file.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        else:
            logger.warning("the report of the evaluation is not stored: train has written its own {}", REPORT)
    except OSError as error:
        logger.warning("the report of the evaluation cannot be written: {}", error)


def _check_gate(manifest: Manifest) -> None:
    """Raises BelowGate if the stored model does not reach its F1."""
    if manifest.below_gate:
        raise BelowGate(f"{manifest.below_gate}; the model and its {REPORT} are kept")


def _store(storage: Storage, folder: Path, path: str, manifest: Manifest, progress: Progress, retry: float) -> None:
    """Stores the model.

    If the store fails, it tries again until `retry` seconds after the training.
    """
    pause = _FIRST_PAUSE
    with progress.stage("storing"):
        while True:
            try:
                return save_model(storage, folder, path, manifest)
            except ModelChanged:
                raise  # the same would happen again
            except FileNotFoundError as error:
                # `train` has removed its folder, or left a pipe or a broken link in it.
                raise MlpkitError(f"the model cannot be stored: {error}") from error
            except StorageError as error:
                left = manifest.created + retry - time.time()
                if left <= 0:
                    raise
                pause = min(pause, left)
                logger.warning("the model could not be stored: {}; the next try is in {:.0f} s", error, pause)
                progress.update(message=f"the model could not be stored, the next try is in {pause:.0f} s: {error}")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _is_false(result: object) -> bool:
    """Whether it is False, or numpy's: `return accuracy > 0.5` gives that."""
    numpys = type(result).__module__ == "numpy" and type(result).__name__ in ("bool", "bool_")
    return result is False or (numpys and not result)


def _is_long(job: Job) -> bool:
    fields = (job.data, job.parameters, job.extend)
    return sum(map(len, fields)) > _LONG_REQUEST and sum(text.count(",") for text in fields) > _MOST_VALUES


def _decode_all(plan: Plan, job: Job) -> None:
    plan.decode(job.fields())
    for dependency in plan.dependencies:
        _decode_all(dependency.plan, job)


def versions_of(function: Callable[..., Any]) -> dict[str, str]:
    """The versions of Python, mlpkit and the packages of the function's module."""
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
