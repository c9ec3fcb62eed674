"""The seam between the storage and what keeps the objects: an S3 server or a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from mlpkit.errors import StorageError
from mlpkit.storage.paths import ObjectStat
from mlpkit.storage.threads import Threads


class ObjectChanged(StorageError):
    """The object is no longer the one that was asked for; its new etag must be asked for."""


class Store(Protocol):
    """Objects by bucket and key, which are already checked. Safe from every thread; errors are `StorageError`s.

    `place` names the store in errors and keys the cache: it has no secret in it.
    """

    place: str

    def stat(self, bucket: str, key: str) -> ObjectStat:
        """What the store says of the object. Raises ObjectNotFound."""

    def download(self, stat: ObjectStat, target: Path, threads: Threads) -> str:
        """Writes the whole object into a new file; the digest of what it wrote (see `digests.py`).

        Raises ObjectNotFound, or ObjectChanged when its etag is another.
        """

    def upload(self, source: Path, bucket: str, key: str) -> None:
        """Stores the file under the key at once: readers see the old object or the new one, never a part."""

    def list(self, bucket: str, prefix: str) -> Iterator[ObjectStat]:
        """The objects whose keys start with the prefix, by key; a missing bucket has none, or raises ObjectNotFound."""

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        """Removes the objects; one that does not exist is no error."""

    def make_bucket(self, bucket: str) -> None:
        """Makes the bucket; one that exists is no error."""

    def presign(self, bucket: str, key: str, expires: int) -> str:
        """A URL that reads the object without credentials for that many seconds."""

    def check(self, bucket: str) -> None:
        """Asks for the bucket, which may be missing; StorageError when the store cannot be used, within 3 seconds."""

    def close(self) -> None:
        """Closes idle connections."""
