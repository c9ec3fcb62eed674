"""Local files of a training request: uploaded, then named in it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mlpkit.errors import ArgumentError, StorageError

if TYPE_CHECKING:
    from mlpkit.storage import Storage


@dataclass(frozen=True)
class LocalFiles:
    """Local files for a training.

    None means that the request does not name the file. `pretrained` may be a folder; the others are files.
    """

    data: Path | None = None
    dictionary: Path | None = None
    extra: Path | None = None
    pretrained: Path | None = None
    test: Path | None = None

    @classmethod
    def of(cls, *paths: str | Path | None, folder: str | Path = "") -> LocalFiles:
        """The files of these paths, which are relative to `folder`."""
        return cls(*(None if path is None else Path(folder, path) for path in paths))

    def names(self, data: Mapping[str, Any]) -> dict[str, str]:
        """What messages call the files, by their locations in the request's `data`."""
        # The name of the test file is stored with the evaluation, so it is not the path on this machine.
        known = {"location": self.data, "test_location": self.test and Path(self.test.name)}
        return {data[field]: str(file) for field, file in known.items() if file is not None}

    def check(self) -> None:
        """Checks that all of them exist.

        Raises:
            ArgumentError: a file does not exist; the message names the first.
        """
        for role, file in (
            ("data", self.data),
            ("dictionary", self.dictionary),
            ("extra", self.extra),
            ("test", self.test),
        ):
            if file is not None and not file.is_file():
                if file.is_dir():
                    raise ArgumentError(f"{role}: {file} is a folder; it must be a file")
                raise ArgumentError(f"{role}: there is no file {file.absolute()}")
        if self.pretrained is not None and not self.pretrained.exists():
            raise ArgumentError(f"pretrained: there is no file or folder {self.pretrained.absolute()}")
        if self.pretrained is not None and self.pretrained.is_dir() and not any(self.pretrained.iterdir()):
            raise ArgumentError(f"pretrained: the folder {self.pretrained} is empty")


@dataclass(frozen=True)
class TrainRequest:
    """The objects of a training request whose files were uploaded.

    `uploaded` are the paths of the files in the store.
    """

    data: dict[str, Any]
    parameters: Any
    extend: Any
    uploaded: tuple[str, ...] = ()

    def remove(self, storage: Storage) -> None:
        """Deletes the uploaded files.

        Raises:
            StorageError: a file could not be deleted.
        """
        for path in self.uploaded:
            storage.delete(path, recursive=path.endswith("/"))


def upload(
    files: LocalFiles, storage: Storage, bucket: str, prefix: str, parameters: object = None, extend: object = None
) -> TrainRequest:
    """The request that trains on these files, which are now below `bucket/prefix/`.

    Raises:
        ArgumentError: a file does not exist, or the request already names another one.
        StorageError: an upload failed; nothing stays behind.
    """
    files.check()
    folder = f"{prefix}/{secrets.token_hex(16)}"
    data: dict[str, Any] = {}
    parameters = {} if parameters is None else parameters
    extend = {} if extend is None else extend
    uploads: list[tuple[Path, str]] = []
    if files.data is not None:
        data["location"] = f"{folder}/{files.data.name}"
        uploads.append((files.data, data["location"]))
    if files.test is not None:
        data["test_location"] = f"{folder}/test/{files.test.name}"
        uploads.append((files.test, data["test_location"]))
    if files.dictionary is not None:
        location = f"{folder}/dictionary/{files.dictionary.name}"
        extend = _with_field(extend, "extend", "dict_location", location)
        uploads.append((files.dictionary, location))
    if files.extra is not None:
        location = f"{folder}/extra/{files.extra.name}"
        extend = _with_field(extend, "extend", "extra_location", location)
        uploads.append((files.extra, location))
    if files.pretrained is not None:
        location = f"{folder}/pretrained/{files.pretrained.resolve().name}"
        parameters = _with_field(parameters, "parameters", "pretrain_model", f"{bucket}/{location}")
        uploads.append((files.pretrained, location))
    paths = tuple(f"{bucket}/{location}" + "/" * file.is_dir() for file, location in uploads)
    request = TrainRequest(data, parameters, extend, paths)
    try:
        for (file, _), path in zip(uploads, paths, strict=True):
            if file.is_dir():
                storage.save_dir(file, path)
            else:
                storage.save(file, path)
    except BaseException:
        with contextlib.suppress(StorageError):
            request.remove(storage)
        raise
    return request


def _with_field(value: object, name: str, field: str, location: str) -> dict[str, Any]:
    """The object as a dict, with one more field."""
    fields = msgspec.to_builtins(value)
    if not isinstance(fields, dict):
        raise ArgumentError(f"{name} must be an object, because {field} is added to it; it is {fields!r}")
    if fields.get(field):
        raise ArgumentError(f"{name} already has {field}: {fields[field]!r}; give either the local file or this field")
    return {**fields, field: location}
