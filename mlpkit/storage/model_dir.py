"""A model's files: a local folder for the author's code, and in the store a folder that is complete or no model.

In the store, a model is the files below a prefix and a manifest, `mlpkit.json`, which is written last and lists them
with their sizes. While one is written, the object `mlpkit.incomplete` stands beside them, with the names of all files
that may have to be removed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NoReturn, TypeVar

import msgspec

from mlpkit.errors import IncompleteModel, ObjectNotFound, StorageError, StorageUnavailable
from mlpkit.injection import service
from mlpkit.log import logger
from mlpkit.settings import Settings
from mlpkit.storage.paths import checked_key, checked_name, checked_prefix
from mlpkit.storage.storage import Storage, local_files

T = TypeVar("T")

MANIFEST = "mlpkit.json"
INCOMPLETE = "mlpkit.incomplete"

_ATTEMPTS = 3


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is and how it was made.

    `created` is in seconds since the epoch; `files` are names below the model's folder and sizes in bytes.
    """

    algorithm: str
    kind: str
    model_id: str
    parameters: dict[str, Any] = {}
    data_etag: str | None = None
    created: float = msgspec.field(default_factory=time.time)
    versions: dict[str, str] = {}
    metrics: dict[str, Any] = {}
    files: dict[str, int] = {}


@service("train", "load")
@dataclass(frozen=True)
class ModelDir(os.PathLike[str]):
    """The folder of one model: in `train` a new one to write into, in `load` a read-only one with the model's files.

    `out / "model.joblib"` is a path in it. `manifest` is None in `train`, and for a model that mlpkit did not make.
    """

    path: Path
    model_id: str
    manifest: Manifest | None = None

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        """The path of a file in the folder. Raises UnsafePath for a name that would leave it."""
        return self.path / checked_key(PurePath(name).as_posix())

    def __fspath__(self) -> str:
        return os.fspath(self.path)


def save_model(storage: Storage, directory: Path, destination: str, manifest: Manifest) -> None:
    """Stores the folder's files below `destination` (`bucket/prefix`) as one model: all of them, or there is no model.

    The manifest's `files` are filled in here. A model that was there before is replaced; nobody can open a mixture,
    and where the new one fails the old one is gone too. Other objects below the destination are left alone.

    Raises:
        StorageError: something could not be stored; the destination holds no model then.
        UnsafePath: a file's name, or the destination, cannot be used; nothing was changed.
        FileNotFoundError: there is no such folder, or something in it is no file; nothing was changed.
    """
    bucket, start = checked_prefix(destination)
    prefix = f"{bucket}/{start}".rstrip("/")
    # A manifest is in the folder where it is a copy of a model that was opened.
    names = [checked_key(name) for name in local_files(directory) if name not in (MANIFEST, INCOMPLETE)]
    files = {name: (directory / name).stat().st_size for name in names}
    manifest = msgspec.structs.replace(manifest, files=files)
    earlier = _names_of_earlier(storage, prefix)
    with _file(msgspec.json.encode(sorted({*names, *earlier}))) as marker:
        storage.save(marker, f"{prefix}/{INCOMPLETE}")
    try:
        storage.delete(f"{prefix}/{MANIFEST}")
        storage.save_dir(directory, prefix, only=names)
        with _file(msgspec.json.format(msgspec.json.encode(manifest))) as written:
            storage.save(written, f"{prefix}/{MANIFEST}")
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
        # The new model is complete all the same: it has exactly the files of its manifest.
        logger.warning("files of an earlier model remain below {}: {}", prefix, error)


def open_model(storage: Storage, settings: Settings, model_id: str, model_path: str | None) -> ModelDir:
    """The model's files, local and complete. `model_path` (`bucket/key`) may be any prefix, or one object.

    Without a path the model is `<model bucket>/<model_id>/`, and has a manifest. One object is a folder with one file.
    The store is always asked for it, whatever `MLPKIT_CACHE_TRUST` says.

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


def delete_model(storage: Storage, settings: Settings, model_id: str) -> None:
    """Removes the model's folder from the model bucket; one that does not exist is no error."""
    prefix = f"{settings.model_bucket}/{checked_name(model_id)}"
    # First, so that what remains after an interruption is no model.
    storage.delete(f"{prefix}/{MANIFEST}")
    storage.delete(prefix, recursive=True)


def _fetched(storage: Storage, settings: Settings, path: str) -> Path | None:
    """The copy of an object; None where there is none, or none is known while the store cannot be reached."""
    absent = (ObjectNotFound, StorageUnavailable) if settings.cache_offline else (ObjectNotFound,)
    with contextlib.suppress(*absent):
        return storage.fetch(path, ask=True)
    return None


def _manifest_of(storage: Storage, settings: Settings, prefix: str) -> Manifest | None:
    local = _fetched(storage, settings, f"{prefix}/{MANIFEST}")
    if local is None:
        return None
    try:
        return msgspec.json.decode(local.read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise IncompleteModel(f"{prefix}/{MANIFEST} is no manifest of mlpkit: {error}") from error
    finally:
        storage.release(local)


def _open_files(
    storage: Storage, settings: Settings, prefix: str, model_id: str, manifest: Manifest
) -> ModelDir | None:
    """The model with exactly the manifest's files; None where it was replaced since the manifest was read."""
    try:
        folder = storage.fetch_dir(prefix, only=[MANIFEST, *manifest.files], ask=True)
    except ObjectNotFound as error:
        if _manifest_of(storage, settings, prefix) != manifest:
            return None
        raise IncompleteModel(f"the model {prefix} is incomplete: {error}") from error
    if msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest) != manifest:
        storage.release(folder)
        return None
    for name, size in manifest.files.items():
        found = (folder / name).stat().st_size
        if found != size:
            storage.release(folder)
            raise IncompleteModel(f"the model {prefix} is incomplete: {name} has {found} bytes and should have {size}")
    return ModelDir(folder, model_id, manifest)


def _open_foreign(storage: Storage, settings: Settings, prefix: str, model_id: str) -> ModelDir:
    """A model without a manifest, made elsewhere: one object or all that is below the prefix."""
    single = _fetched(storage, settings, prefix)
    if single is not None:
        return ModelDir(single.parent, model_id)
    folder = storage.fetch_dir(prefix, ask=True)
    if (folder / INCOMPLETE).exists():
        storage.release(folder)
        _refuse(storage, prefix)
    return ModelDir(folder, model_id)


def _refuse(storage: Storage, prefix: str) -> NoReturn:
    if storage.list(prefix, limit=1):
        raise IncompleteModel(f"{prefix} is no model: it has no {MANIFEST}, so its upload never finished")
    raise ObjectNotFound(f"there is no model {prefix}")


def _names_of_earlier(storage: Storage, prefix: str) -> set[str]:
    """The files of the model that is there already, and of one whose upload never finished."""
    manifest = _read(storage, f"{prefix}/{MANIFEST}", Manifest)
    return {*(manifest.files if manifest else ()), *(_read(storage, f"{prefix}/{INCOMPLETE}", list[str]) or ())}


def _read(storage: Storage, path: str, wanted: type[T]) -> T | None:
    try:
        local = storage.fetch(path, ask=True)
    except ObjectNotFound:
        return None
    try:
        return msgspec.json.decode(local.read_bytes(), type=wanted)
    except msgspec.DecodeError:
        return None
    finally:
        storage.release(local)


def _delete_names(storage: Storage, prefix: str, names: set[str]) -> None:
    for name in sorted(names):
        storage.delete(f"{prefix}/{checked_key(name)}")


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield Path(file.name)
