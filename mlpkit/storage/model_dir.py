"""A model's files and checkpoint: local for authors, whole in the store.

In the store, a model is the files below a prefix and a manifest, `mlpkit.json`, which is written last and lists them
with their sizes. While one is written, the object `mlpkit.incomplete` is next to them, with the names of all files
that may have to be removed.

The checkpoint of a training is below the model's folder, and is removed together with it:

    <model bucket>/<model id>/mlpkit.checkpoint/mlpkit.json   the manifest, written last
    <model bucket>/<model id>/mlpkit.checkpoint/<number>/...  the files of one save

Each save has a folder of its own, and the manifest says which one counts. So the checkpoint before stays whole until
the new one is.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TypeVar

import msgspec

from mlpkit.errors import IncompleteModel, ModelChanged, ObjectNotFound, StorageDenied, StorageError, StorageUnavailable
from mlpkit.injection import service
from mlpkit.log import logger
from mlpkit.settings import Settings
from mlpkit.storage.files import decode_json, temporary_file
from mlpkit.storage.paths import checked_key, checked_name, checked_prefix, without_outer_slashes
from mlpkit.storage.storage import Storage, in_time, local_files

if TYPE_CHECKING:
    from anyio import CapacityLimiter

T = TypeVar("T")

MANIFEST = "mlpkit.json"
INCOMPLETE = "mlpkit.incomplete"

_CHECKPOINT = "mlpkit.checkpoint"

_What = Literal["model", "checkpoint"]
_IF_CHANGED: Mapping[_What, tuple[str, str]] = {
    "model": (
        "the model was not stored: its file",
        "close every file, and end whatever writes into the folder, before train returns",
    ),
    "checkpoint": ("the checkpoint was not stored: its file", "finish writing before you call save()"),
}
"""How the message about a file that changed during its upload begins and ends."""
_OWN_FILES: Mapping[_What, tuple[str, ...]] = {"model": (MANIFEST, INCOMPLETE), "checkpoint": ()}
"""Files that are not the author's: a copy of a model that was opened has a manifest in it."""
_ATTEMPTS = 3
_LAST_REQUEST = 2.0
"""Seconds that the last request of a killed process may be on its way: a proxy or a busy store delays it."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is and how it was made.

    `created` is in seconds since the epoch; `files` are names below the model's folder and sizes in bytes.
    `evaluation` is the summary of `evaluation.json`; it is empty if the model was not evaluated. `below_gate` says why
    the model is below its gate (`min_f1`), and is empty if it is not: neither the checker nor an alias loads a model
    with this sentence.
    """

    algorithm: str
    kind: str
    model_id: str
    parameters: dict[str, Any] = {}
    data_etag: str | None = None
    created: float = msgspec.field(default_factory=time.time)
    versions: dict[str, str] = {}
    metrics: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    below_gate: str = ""
    files: dict[str, int] = {}


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


@service("train", "load")
@dataclass(frozen=True)
class ModelDir(os.PathLike[str]):
    """The folder of one model.

    In `train` it is a new one to write into, in `load` a read-only one with the model's files.

    `out / "model.joblib"` is a path in it. `manifest` is None in `train`, and for a model that mlpkit did not make.
    """

    path: Path
    model_id: str
    manifest: Manifest | None = None

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        """The path of a file in the folder.

        Raises UnsafePath for a name that would leave it.
        """
        return self.path / checked_key(PurePath(name).as_posix())

    def __fspath__(self) -> str:
        return os.fspath(self.path)


def begin_model(storage: Storage, destination: str) -> None:
    """Writes the marker of a model that will be saved at `destination`.

    Call it before a training, which may take hours: it fails if the model could not be stored afterwards. A model that
    is there already stays as it is. Call `discard_model` if nothing is saved after all.

    Raises:
        StorageDenied: the credentials may not write there; the message names the right that is missing.
        StorageError: the store cannot be used.
        UnsafePath: the destination cannot be used.
    """
    prefix = _folder(destination)
    # Of an upload that never finished, whose files are still to be removed.
    names = _read_json(storage, f"{prefix}/{INCOMPLETE}", list[str]) or []
    # First: without this right the marker would stay.
    storage.check_deletable(prefix)
    with temporary_file(msgspec.json.encode(names)) as marker:
        storage.save(marker, f"{prefix}/{INCOMPLETE}")


def save_model(storage: Storage, directory: Path, destination: str, manifest: Manifest) -> None:
    """Stores the folder's files below `destination` as one model, all or nothing.

    `destination` is `bucket/prefix`. The manifest's `files` are filled in here. A model that was there before is
    replaced; nobody can open a mixture, and if the new one fails the old one is gone too. Other objects below the
    destination are left alone.

    Raises:
        StorageError: something could not be stored; the destination holds no model then.
        ModelChanged: a file changed meanwhile (the message names it), or the model was deleted.
        UnsafePath: a file's name, or the destination, cannot be used; nothing was changed.
        FileNotFoundError: there is no such folder, or something in it is not a file; nothing was changed.
    """
    prefix = _folder(destination)
    versions = _versions_of(directory, "model")
    names = [checked_key(name) for name in versions]
    manifest = msgspec.structs.replace(manifest, files={name: found.size for name, found in versions.items()})
    earlier = _names_of_earlier(storage, prefix)
    with temporary_file(msgspec.json.encode(sorted({*names, *earlier}))) as marker:
        storage.save(marker, f"{prefix}/{INCOMPLETE}")
    try:
        storage.delete(f"{prefix}/{MANIFEST}")
        _upload(storage, directory, prefix, versions, "model")
        with temporary_file(msgspec.json.format(msgspec.json.encode(manifest))) as written:
            storage.save(written, f"{prefix}/{MANIFEST}")
        # After the manifest: `delete_model` removes the marker before it lists what there is, so one of the two
        # notices the other, whichever is first.
        if not storage.exists(f"{prefix}/{INCOMPLETE}"):
            raise ModelChanged(f"the model {prefix} was deleted while it was stored")
    except StorageUnavailable:
        raise
    except BaseException:
        with contextlib.suppress(StorageError):
            _delete_names(storage, prefix, {MANIFEST, *names, *earlier})
            _delete_names(storage, prefix, {INCOMPLETE})
        raise
    try:
        _delete_names(storage, prefix, {INCOMPLETE, *earlier.difference(names)})
    except StorageError as error:
        # The new model is complete even so: it has exactly the files of its manifest.
        logger.warning("files of an earlier model remain below {}: {}", prefix, error)


def discard_model(storage: Storage, destination: str, *, was_killed: bool = False) -> None:
    """Removes what a `save_model` that was interrupted, or a `begin_model`, has left.

    A complete model at the destination stays. The store may be asked for some seconds.

    Args:
        was_killed: a process was killed in it, so a last request may reach the store only after the first look.

    Raises:
        StorageError: not all of it could be removed.
    """
    prefix = _folder(destination)
    removed = _remove_parts(storage, prefix, set())
    # While a model is trained the marker names no files, and nothing is on its way to the store.
    if was_killed and removed != set():
        time.sleep(_LAST_REQUEST)
        _remove_parts(storage, prefix, removed or set())


def _remove_parts(storage: Storage, prefix: str, removed: set[str]) -> set[str] | None:
    """Removes the marker, and the files that it or `removed` names.

    Gives the names of the files, or None if there is no marker.
    """
    names = _read_json(storage, f"{prefix}/{INCOMPLETE}", list[str])
    if names is None and not removed:
        return None
    storage.discard_uploads(prefix)
    manifest = _read_json(storage, f"{prefix}/{MANIFEST}", Manifest)
    kept = set(manifest.files) if manifest else set()
    if not kept.isdisjoint(removed):
        # The manifest itself was the last request: its files are gone.
        _delete_names(storage, prefix, {MANIFEST})
        kept = set()
    parts = removed.union(names or ()).difference(kept)
    _delete_names(storage, prefix, parts)
    _delete_names(storage, prefix, {INCOMPLETE})
    return parts


def open_model(storage: Storage, settings: Settings, model_id: str, model_path: str | None) -> ModelDir:
    """The model's files, local and complete.

    `model_path` (`bucket/key`) may be any prefix, or one object.

    Without a path the model is `<model bucket>/<model_id>/`, and has a manifest. One object is a folder with one file.
    The store is always asked for it, with any value of `MLPKIT_CACHE_TRUST`.

    Raises:
        ObjectNotFound: there is nothing at that place.
        IncompleteModel: there is no manifest where there should be one, a file is missing or has another size.
        UnsafePath: the id or the path cannot be used.
    """
    checked_name(model_id)
    prefix = model_path.removesuffix("/") if model_path else f"{settings.model_bucket}/{model_id}"
    for _ in range(_ATTEMPTS):
        manifest = _manifest_of(storage, settings, prefix)
        if manifest is None:
            return _open_foreign(storage, settings, prefix, model_id) if model_path else _refuse(storage, prefix)
        opened = _open_files(storage, settings, prefix, model_id, manifest)
        if opened is not None:
            return opened
    raise IncompleteModel(f"{prefix} is being replaced again and again: wait until it is saved")


async def find_manifest(
    storage: Storage, settings: Settings, model_id: str, limiter: CapacityLimiter
) -> Manifest | None:
    """The manifest of a model in the model bucket, or None.

    Raises:
        IncompleteModel: its upload never finished, or the manifest cannot be read.
        UnsafePath: the id cannot be used.
        TimeLimitExceeded: the store did not answer within `MLPKIT_HOOK_TIMEOUT`.
    """
    prefix = f"{settings.model_bucket}/{checked_name(model_id)}"
    limit = settings.hook_timeout
    late = f"the store did not answer within {limit:g} s about [{model_id}]"

    def read() -> Manifest:
        return _manifest_of(storage, settings, prefix) or _refuse(storage, prefix)

    with contextlib.suppress(ObjectNotFound):
        return await in_time(read, limit=limit, limiter=limiter, late=late)
    return None


def gate_problem(storage: Storage, settings: Settings, model_id: str, model_path: str | None) -> str:
    """Why a stored model is below its gate; otherwise empty.

    It is also empty if mlpkit did not make the model. `model_path` is as in `open_model`.

    Raises:
        StorageError: the store could not be asked.
        UnsafePath: the id or the path cannot be used.
    """
    prefix = without_outer_slashes(model_path or "") or f"{settings.model_bucket}/{checked_name(model_id)}"
    manifest = _manifest_of(storage, settings, prefix)
    return "" if manifest is None else manifest.below_gate


def delete_model(storage: Storage, settings: Settings, model_id: str) -> None:
    """Removes the model's folder from the model bucket.

    One that does not exist is not an error.

    A job that is storing the model at this moment fails: `save_model` notices that its marker is gone.
    """
    prefix = f"{settings.model_bucket}/{checked_name(model_id)}"
    # First, so that what remains after an interruption is not a model.
    storage.delete(f"{prefix}/{MANIFEST}")
    storage.delete(f"{prefix}/{INCOMPLETE}")
    storage.delete(prefix, recursive=True)


def checkpoint_place(settings: Settings, model_id: str) -> str:
    """Where the checkpoint of this model id is, as `bucket/prefix`.

    Raises:
        UnsafePath: the id cannot be the name of a folder.
    """
    return f"{settings.model_bucket}/{checked_name(model_id)}/{_CHECKPOINT}"


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
    versions = _versions_of(directory, "checkpoint")
    sizes = {checked_key(name): found.size for name, found in versions.items()}
    _upload(storage, directory, f"{place}/{manifest.number}", versions, "checkpoint")
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
    for _ in range(_ATTEMPTS):
        try:
            manifest = _checkpoint_manifest(storage, place)
            if manifest is None:
                return None
            folder = storage.fetch_dir(f"{place}/{manifest.number}", only=list(manifest.files), ask=True)
        except ObjectNotFound as error:
            # A save that goes on elsewhere has just removed what the manifest named.
            if _checkpoint_manifest(storage, place) != manifest:
                continue
            raise IncompleteModel(f"the checkpoint {place} is incomplete: {error}") from error
        _check_sizes(storage, folder, manifest.files, f"checkpoint {place}")
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


def _checkpoint_manifest(storage: Storage, place: str) -> CheckpointManifest | None:
    manifest = _read_json(storage, f"{place}/{MANIFEST}", CheckpointManifest)
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


def _fetched(storage: Storage, settings: Settings, path: str) -> Path | None:
    """The copy of an object, or None.

    None also if no copy is known while the store cannot be reached.
    """
    absent = (ObjectNotFound, StorageUnavailable) if settings.cache_offline else (ObjectNotFound,)
    with contextlib.suppress(*absent):
        return storage.fetch(path, ask=True)
    return None


def _manifest_of(storage: Storage, settings: Settings, prefix: str) -> Manifest | None:
    local = _fetched(storage, settings, f"{prefix}/{MANIFEST}")
    if local is None:
        return None
    try:
        return decode_json(local.read_bytes(), Manifest)
    except msgspec.DecodeError as error:
        raise IncompleteModel(f"{prefix}/{MANIFEST} is not a manifest of mlpkit: {error}") from error
    finally:
        storage.release(local)


def _open_files(
    storage: Storage, settings: Settings, prefix: str, model_id: str, manifest: Manifest
) -> ModelDir | None:
    """The model with exactly the manifest's files.

    None if it was replaced since the manifest was read.
    """
    try:
        folder = storage.fetch_dir(prefix, only=[MANIFEST, *manifest.files], ask=True)
    except ObjectNotFound as error:
        if _manifest_of(storage, settings, prefix) != manifest:
            return None
        raise IncompleteModel(f"the model {prefix} is incomplete: {error}") from error
    if msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest) != manifest:
        storage.release(folder)
        return None
    _check_sizes(storage, folder, manifest.files, f"model {prefix}")
    return ModelDir(folder, model_id, manifest)


def _open_foreign(storage: Storage, settings: Settings, prefix: str, model_id: str) -> ModelDir:
    """A model without a manifest, made elsewhere.

    It is one object, or all that is below the prefix.
    """
    single = _fetched(storage, settings, prefix)
    if single is not None:
        return ModelDir(single.parent, model_id)
    folder = storage.fetch_dir(prefix, ask=True)
    if (folder / INCOMPLETE).exists():
        storage.release(folder)
        _refuse(storage, prefix)
    return ModelDir(folder, model_id)


def _refuse(storage: Storage, prefix: str) -> NoReturn:
    with contextlib.suppress(StorageDenied):
        if storage.list(prefix, limit=1):
            raise IncompleteModel(f"{prefix} is not a model: it has no {MANIFEST}, so its upload never finished")
    raise ObjectNotFound(f"there is no model {prefix}")


class _Version(NamedTuple):
    """What changes when a file does."""

    size: int
    modified: int
    inode: int


def _versions_of(directory: Path, what: _What) -> dict[str, _Version]:
    """The files of a folder by name, without those of mlpkit."""
    stats = {name: file.stat() for name, file in local_files(directory).items() if name not in _OWN_FILES[what]}
    return {name: _Version(stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()}


def _upload(storage: Storage, directory: Path, prefix: str, versions: Mapping[str, _Version], what: _What) -> None:
    """Stores these files of a folder below the prefix.

    Raises:
        ModelChanged: a file changed meanwhile; the message names it.
    """
    try:
        storage.save_dir(directory, prefix, only=list(versions))
    except OSError:
        # A file that became shorter or went away breaks its upload.
        _check_unchanged(directory, versions, what)
        raise
    _check_unchanged(directory, versions, what)


def _check_unchanged(directory: Path, before: Mapping[str, _Version], what: _What) -> None:
    """Raises ModelChanged if the folder is not as it was before.

    The message names the file.
    """
    try:
        now = _versions_of(directory, what)
    except FileNotFoundError as error:
        raise ModelChanged(f"the folder of the {what} changed while it was stored: {error}") from error
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            how = "is new" if name not in before else "is gone" if name not in now else "changed"
            sizes = f" from {before[name].size} to {now[name].size} bytes" if how == "changed" else ""
            problem, advice = _IF_CHANGED[what]
            raise ModelChanged(f"{problem} {name} {how}{sizes} while it was stored; {advice}")


def _check_sizes(storage: Storage, folder: Path, sizes: Mapping[str, int], what: str) -> None:
    """Releases a fetched folder, and raises IncompleteModel, if a size is wrong."""
    for name, size in sizes.items():
        found = (folder / name).stat().st_size
        if found != size:
            storage.release(folder)
            raise IncompleteModel(f"the {what} is incomplete: {name} has {found} bytes and should have {size}")


def _folder(destination: str) -> str:
    bucket, start = checked_prefix(destination)
    return f"{bucket}/{start}".rstrip("/")


def _names_of_earlier(storage: Storage, prefix: str) -> set[str]:
    """The files of the model that is there already.

    And those of an upload that never finished.
    """
    manifest = _read_json(storage, f"{prefix}/{MANIFEST}", Manifest)
    return {*(manifest.files if manifest else ()), *(_read_json(storage, f"{prefix}/{INCOMPLETE}", list[str]) or ())}


def _read_json(storage: Storage, path: str, wanted: type[T]) -> T | None:
    """The decoded object; None if it is missing or something else."""
    try:
        local = storage.fetch(path, ask=True)
    except ObjectNotFound:
        return None
    try:
        return decode_json(local.read_bytes(), wanted)
    except msgspec.DecodeError:
        return None
    finally:
        storage.release(local)


def _delete_names(storage: Storage, prefix: str, names: set[str]) -> None:
    for name in sorted(names):
        storage.delete(f"{prefix}/{checked_key(name)}")
