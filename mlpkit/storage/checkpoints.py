"""The checkpoint of a training, which is replaced as a whole.

It is below the model's folder, and is removed together with it:

    <model bucket>/<model id>/mlpkit.checkpoint/mlpkit.json   the manifest, written last
    <model bucket>/<model id>/mlpkit.checkpoint/<number>/...  the files of one save

Each save has a folder of its own, and the manifest says which one counts. So the checkpoint before stays whole until
the new one is.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import msgspec

from mlpkit.errors import IncompleteModel, ModelChanged, ObjectNotFound, StorageError
from mlpkit.log import logger
from mlpkit.settings import Settings
from mlpkit.storage.files import temporary_file
from mlpkit.storage.model_dir import MANIFEST, read_json
from mlpkit.storage.paths import checked_key, checked_name
from mlpkit.storage.storage import Storage, local_files

_FOLDER = "mlpkit.checkpoint"
_TRIES = 3


class CheckpointManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Which training a checkpoint is of, and how far that was.

    `fraction` is 0 to 1, or None if it is not known; `saved` is in seconds since the epoch. `request` is a digest of
    what the job was asked to do. `number` counts the saves; `files` are names and sizes in bytes.
    """

    algorithm: str
    model_id: str
    request: str
    parameters: dict[str, Any] = {}
    data_etag: str | None = None
    fraction: float | None = None
    attempt: int = 1
    saved: float = msgspec.field(default_factory=time.time)
    number: int = 1
    files: dict[str, int] = {}


def checkpoint_place(settings: Settings, model_id: str) -> str:
    """Where the checkpoint of this model id is, as `bucket/prefix`.

    Raises:
        UnsafePath: the id cannot be the name of a folder.
    """
    return f"{settings.model_bucket}/{checked_name(model_id)}/{_FOLDER}"


def save_checkpoint(storage: Storage, directory: Path, place: str, manifest: CheckpointManifest) -> None:
    """Stores the files of a local folder as the checkpoint at `place`.

    `manifest` has a number that no earlier save had; its `files` are filled in here. If this fails, or its process is
    killed, the checkpoint before is still there, whole.

    Raises:
        StorageError: it could not be stored.
        ModelChanged: a file changed meanwhile; the message names it.
        UnsafePath: a file's name cannot be a key.
        FileNotFoundError: something in the folder is not a file.
    """
    before = _stats_of(directory)
    names = [checked_key(name) for name in before]
    try:
        storage.save_dir(directory, f"{place}/{manifest.number}", only=names)
    except OSError:
        # A file that became shorter or went away breaks its upload.
        _check_unchanged(directory, before)
        raise
    _check_unchanged(directory, before)
    sizes = {name: size for name, (size, _) in before.items()}
    written = msgspec.structs.replace(manifest, files=sizes)
    with temporary_file(msgspec.json.format(msgspec.json.encode(written))) as file:
        storage.save(file, f"{place}/{MANIFEST}")
    try:
        _remove_others(storage, place, manifest.number)
    except StorageError as error:
        # The next save removes them.
        logger.warning("files of an earlier checkpoint remain below {}: {}", place, error)


def open_checkpoint(storage: Storage, place: str) -> tuple[CheckpointManifest, Path] | None:
    """The manifest and a read-only copy of the files, or None.

    Raises:
        IncompleteModel: the manifest cannot be read, a file is missing or has another size.
        StorageError: the store cannot be used.
    """
    for _ in range(_TRIES):
        try:
            manifest = _manifest_at(storage, place)
            if manifest is None:
                return None
            folder = storage.fetch_dir(f"{place}/{manifest.number}", only=list(manifest.files), ask=True)
        except ObjectNotFound as error:
            # A save that goes on elsewhere has just removed what the manifest named.
            if _manifest_at(storage, place) != manifest:
                continue
            raise IncompleteModel(f"the checkpoint {place} is incomplete: {error}") from error
        for name, size in manifest.files.items():
            found = (folder / name).stat().st_size
            if found != size:
                storage.release(folder)
                raise IncompleteModel(
                    f"the checkpoint {place} is incomplete: {name} has {found} bytes and should have {size}"
                )
        return manifest, folder
    raise IncompleteModel(
        f"the checkpoint {place} is being replaced again and again: wait until its training has ended"
    )


def delete_checkpoint(storage: Storage, place: str) -> None:
    """Removes the checkpoint; one that does not exist is not an error.

    Raises:
        StorageError: not all of it could be removed.
    """
    with contextlib.suppress(ObjectNotFound):
        # First, so that what remains after an interruption is not a checkpoint.
        storage.delete(f"{place}/{MANIFEST}")
        storage.delete(place, recursive=True)
        storage.discard_uploads(place)


def _manifest_at(storage: Storage, place: str) -> CheckpointManifest | None:
    manifest = read_json(storage, f"{place}/{MANIFEST}", CheckpointManifest)
    if manifest is None and storage.exists(f"{place}/{MANIFEST}"):
        raise IncompleteModel(f"the checkpoint {place} is broken: its {MANIFEST} is not a manifest of mlpkit")
    return manifest


def _remove_others(storage: Storage, place: str, number: int) -> None:
    """Removes the files of earlier saves, finished or not."""
    bucket, _, prefix = place.partition("/")
    kept = (f"{prefix}/{number}/", f"{prefix}/{MANIFEST}")
    for found in storage.list(place):
        if not found.key.startswith(kept):
            storage.delete(f"{bucket}/{found.key}")


def _stats_of(directory: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of change of the files, by name."""
    stats = {name: file.stat() for name, file in local_files(directory).items()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _check_unchanged(directory: Path, before: dict[str, tuple[int, int]]) -> None:
    try:
        now = _stats_of(directory)
    except FileNotFoundError as error:
        raise ModelChanged(f"the checkpoint was not saved, because its folder changed meanwhile: {error}") from error
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        raise ModelChanged(
            f"the checkpoint was not saved, because its file {changed[0]} changed meanwhile: "
            "finish writing before you call save()"
        )
