"""`Checkpoint`: what a job saves for its next attempt.

Here is also which checkpoint a job begins with: its own, or that of the model which `extend.resume_from` names.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import msgspec

from mlpkit.errors import ArgumentError, IncompleteModel, StorageError, TrainingStopped
from mlpkit.injection import service
from mlpkit.log import logger
from mlpkit.settings import Settings
from mlpkit.storage import (
    CheckpointManifest,
    Storage,
    checked_key,
    checked_name,
    checkpoint_place,
    open_checkpoint,
    save_checkpoint,
)
from mlpkit.training.job import Job
from mlpkit.training.progress import Progress

_PAUSE_AFTER_FAILURE = 60.0
"""Seconds without another try, at least: a store that is silent holds up a save for minutes."""


@service("train")
class Checkpoint(os.PathLike[str]):
    """A folder whose content is kept when the job is interrupted.

    Write the state of your training into it and call `save`. The next attempt of the job finds the files of the last
    save here, also on another machine. `checkpoint / "state.npz"` is a path in it.

    Args:
        path: the folder, which is on this machine.
        manifest: what the folder's content is from.
        upload: stores the folder; gets how far the job is.
        progress: the job's progress, which knows if the job should stop.
        period: the time between two uploads, in seconds.

    Attributes:
        path: the folder.
        manifest: which training the content is from, with its parameters; None if the folder is empty.
    """

    def __init__(
        self,
        path: Path,
        manifest: CheckpointManifest | None,
        *,
        upload: Callable[[float | None], None],
        progress: Progress,
        period: float,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._upload = upload
        self._progress = progress
        self._period = period
        self._due = time.monotonic() + period
        self._process = os.getpid()

    @property
    def resumed(self) -> bool:
        """Whether the folder has the files of an earlier save."""
        return self.manifest is not None

    def save(self, *, now: bool = False) -> bool:
        """Uploads the folder if it is time; whether it did.

        All of it is uploaded, or nothing. It is time every `MLPKIT_CHECKPOINT_PERIOD`, with `now`, and if the job
        should stop. Between these times it costs nothing, so call it as often as your state is complete. Do not write
        into the folder meanwhile. If the store fails, the log says so and the training goes on.

        Raises:
            TrainingStopped: the job should stop, and the folder is uploaded. Let it pass.
            ArgumentError: the folder is empty.
            UnsafePath: a file's name cannot be stored.
        """
        if os.getpid() != self._process:
            return False  # A process that `train` has forked does not speak for the job.
        asked = now or self._progress.stop_reason is not None
        if not asked and time.monotonic() < self._due:
            return False
        if not any(self.path.iterdir()):
            raise ArgumentError(f"the checkpoint is empty: write your state into {self.path} before you call save()")
        fraction = self._progress.snapshot().fraction
        try:
            with self._progress.stage("save checkpoint") as saving:
                # How far the training is, is shown meanwhile too.
                saving.fraction = fraction
                self._upload(fraction)
        except StorageError as error:
            pause = max(self._period, _PAUSE_AFTER_FAILURE)
            logger.warning("the checkpoint could not be saved, the training goes on: {}", error)
            self._due = time.monotonic() + pause
            return False
        self._due = time.monotonic() + self._period
        self._progress.note_checkpoint(saved=time.time(), saved_at=fraction)
        if self._progress.stop_reason is not None:
            raise TrainingStopped("the job was asked to stop, and its checkpoint is saved")
        return True

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        """The path of a file in the folder.

        Raises UnsafePath for a name that would leave it.
        """
        return self.path / checked_key(PurePath(name).as_posix())

    def __fspath__(self) -> str:
        return os.fspath(self.path)


def resumed_model(job: Job) -> str | None:
    """The model id that `extend.resume_from` names, or None.

    Raises:
        ArgumentError: it is not a string.
        UnsafePath: it cannot be a model id.
    """
    extend = msgspec.json.decode(job.extend)
    wanted = extend.get("resume_from") if isinstance(extend, dict) else None
    if wanted is None or wanted == "":
        return None
    if not isinstance(wanted, str):
        raise ArgumentError("[extend.resume_from] must be the id of a model")
    return checked_name(wanted)


def open_checkpoint_of_job(
    job: Job, settings: Settings, storage: Storage, folder: Path, progress: Progress, data_etag: str | None
) -> Checkpoint:
    """The job's `Checkpoint`, with the files that it should continue from.

    `folder` must not exist. A checkpoint of the job itself is used if it is whole and of the same request and the same
    data; otherwise the job begins anew, and the log says why.

    Raises:
        ArgumentError: there is no checkpoint of the model that `extend.resume_from` names, or one of another algorithm.
        IncompleteModel: the checkpoint that it names is broken.
        StorageError: the store cannot be used.
    """
    place = checkpoint_place(settings, job.model_id)
    folder.mkdir(mode=0o700)
    number = 0
    found = _own(storage, place, job, data_etag)
    if found is not None:
        number = found[0].number
    else:
        found = _named(storage, settings, job)
    manifest = None
    if found is not None:
        manifest, copy = found
        shutil.copytree(copy, folder, dirs_exist_ok=True, copy_function=_copy)
        storage.release(copy)
        progress.note_checkpoint(resumed_from=manifest.model_id, resumed_at=manifest.fraction)
        logger.info("the training continues from {}", _described(manifest))

    def upload(fraction: float | None) -> None:
        nonlocal number
        # A number that no save has had: files of one that was killed, or is not used, may still be there.
        number = max(number + 1, int(time.time()))
        parameters = _parameters(job)
        made = CheckpointManifest(
            algorithm=job.algorithm,
            model_id=job.model_id,
            request=job.request_digest(),
            parameters=parameters,
            data_etag=data_etag,
            fraction=fraction,
            attempt=job.attempt,
            number=number,
        )
        save_checkpoint(storage, folder, place, made)

    return Checkpoint(folder, manifest, upload=upload, progress=progress, period=settings.checkpoint_period)


def _own(storage: Storage, place: str, job: Job, data_etag: str | None) -> tuple[CheckpointManifest, Path] | None:
    """The checkpoint that an earlier attempt of this job has saved."""
    try:
        found = open_checkpoint(storage, place)
    except IncompleteModel as error:
        logger.warning("{}: it is not used", error)
        return None
    if found is None:
        return None
    manifest, copy = found
    reason = ""
    if manifest.request != job.request_digest():
        reason = f"it is of an earlier job with this id, {_differences(manifest, job) or 'and another request'}"
    elif manifest.data_etag != data_etag:
        reason = "the training data has changed since then"
    if not reason:
        return found
    storage.release(copy)
    logger.warning("{} is not used: {}", _described(manifest), reason)
    return None


def _named(storage: Storage, settings: Settings, job: Job) -> tuple[CheckpointManifest, Path] | None:
    """The checkpoint of the model that `extend.resume_from` names."""
    model_id = resumed_model(job)
    if model_id is None:
        return None
    place = checkpoint_place(settings, model_id)
    found = open_checkpoint(storage, place)
    if found is None:
        raise ArgumentError(
            f"[extend.resume_from] model [{model_id}] has no checkpoint: its training saved none, or it has completed "
            "without keep_checkpoint=True, or it was cancelled or deleted"
        )
    manifest, copy = found
    if manifest.algorithm != job.algorithm:
        storage.release(copy)
        raise ArgumentError(
            f"[extend.resume_from] the checkpoint of model [{model_id}] is of algorithm {manifest.algorithm!r}, "
            f"not of {job.algorithm!r}"
        )
    differences = _differences(manifest, job)
    if differences:
        logger.warning("the training continues from a checkpoint {}", differences)
    return found


def _parameters(job: Job) -> dict[str, Any]:
    parameters = msgspec.json.decode(job.parameters)
    return parameters if isinstance(parameters, dict) else {}


def _differences(manifest: CheckpointManifest, job: Job) -> str:
    """Which parameters the job has changed, in words; '' if none."""
    now = _parameters(job)
    before = manifest.parameters
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    words = [f"{name} was {_shown(before, name)} and is {_shown(now, name)}" for name in names[:5]]
    if len(names) > len(words):
        words.append(f"{len(names) - len(words)} more")
    return f"with other parameters: {', '.join(words)}" if words else ""


def _shown(parameters: dict[str, Any], name: str) -> str:
    if name not in parameters:
        return "not set"
    text = msgspec.json.encode(parameters[name]).decode()
    return text if len(text) <= 60 else f"{text[:60]}…"


def _described(manifest: CheckpointManifest) -> str:
    far = "" if manifest.fraction is None else f" at {manifest.fraction * 100:.0f} %"
    saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.saved))
    return f"the checkpoint of model [{manifest.model_id}]{far}, saved {saved} by attempt {manifest.attempt}"


def _copy(source: str, target: str) -> None:
    """Copies the content only: files of the cache are read-only."""
    shutil.copyfile(source, target)
