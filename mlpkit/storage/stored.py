"""Which models are in the model bucket: a list in pages.

Listing the bucket's folders costs one request per 1,000 models, but tells nothing except their names. What else is
shown stands in the manifests, and reading one costs a request. So what was read is kept, with the manifest's etag:

- in this process, and
- for other services and after a restart, in one object of the bucket, `mlpkit.index.json`.

Neither is trusted for long: the folders are listed, and each model of a page is compared by etag with its manifest,
unless that was done a moment ago.
So the object may be old, lost, or written by several services at the same time: that costs time, not truth.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import msgspec

from mlpkit.errors import ArgumentError, ObjectNotFound, StorageError
from mlpkit.log import logger
from mlpkit.settings import Settings
from mlpkit.storage.files import decode_json, temporary_file
from mlpkit.storage.model_dir import MANIFEST, Manifest
from mlpkit.storage.paths import checked_name
from mlpkit.storage.storage import Storage
from mlpkit.storage.store import Threads

INDEX = "mlpkit.index.json"

_AT_ONCE = 16
"""Manifests that are asked for at the same time."""
_LISTED_SECONDS = 2.0
"""How long a list of the folders is used again. After one that took long, five times as long as it took."""
_CHECKED_SECONDS = 2.0
"""How long a manifest that was read or compared is not compared again."""
_FILL_SECONDS = 1.0
"""How long a list and the manifests that are not known yet take together; the others are read in the background."""
_LEAST_FILL_SECONDS = 0.3
_CHUNK = 64
_WORTH_WRITING = 100
"""After this many newly read manifests the index is written again: fewer are quickly read again."""
_LOOKED_AGAIN = 200
"""Folders without a manifest that are looked at again in each round: their upload may have ended."""
_LARGEST_INDEX = 256 << 20
_LARGEST_MANIFEST = 64 << 20


class StoredModel(msgspec.Struct, frozen=True):
    """A model in the store.

    `created` is in seconds since the epoch, `size` in bytes; `evaluation` is the summary of its evaluation.
    """

    model_id: str
    algorithm: str
    kind: str
    created: float
    size: int
    evaluation: dict[str, Any] = {}
    below_gate: str = ""


class StoredPage(msgspec.Struct, frozen=True):
    """One page of the list, newest models first.

    `next` is what gives the page after it, None at the end. `total` counts the models of all pages. `unread` is how
    many folders were not looked at yet: they are missing here, and are there when the page is asked for again later.
    """

    models: list[StoredModel]
    total: int
    next: str | None
    unread: int


class _Known(msgspec.Struct, frozen=True, array_like=True):
    """A manifest that was read."""

    etag: str
    model: StoredModel


class StoredModels:
    """The models of a store's model bucket.

    Safe from every thread. Opens nothing before its first use.
    """

    def __init__(self, storage: Storage, settings: Settings) -> None:
        self._storage = storage
        self._bucket = settings.model_bucket
        self._listing = threading.Lock()
        self._folders: set[str] = set()
        self._fresh_until = 0.0
        self._known: dict[str, _Known] = {}
        self._compared: dict[str, float] = {}
        """When a manifest was last read or compared (`time.monotonic`)."""
        self._absent: dict[str, float] = {}
        """Folders without a readable manifest, and when they were looked at (`time.monotonic`), the oldest first."""
        self._has_index = False
        self._unwritten = 0
        self._threads = Threads(_AT_ONCE)
        self._filler = ThreadPoolExecutor(1, thread_name_prefix="mlpkit-stored")
        self._filling: Future[None] | None = None
        self._closed = False

    def close(self) -> None:
        """Reads nothing more."""
        self._closed = True
        self._filler.shutdown(wait=False, cancel_futures=True)
        self._threads.close()

    def page(self, algorithm: str | None = None, limit: int = 100, after: str | None = None) -> StoredPage:
        """The models after the place `after`, another page's `next`.

        Asks the store: for the folders if the list is old, and for each model of the page.

        Raises:
            ArgumentError: `after` is not the `next` of a page.
            StorageError: the store cannot be used.
        """
        start = _place(after) if after is not None else None
        unread = self._refresh()
        models = [known.model for known in list(self._known.values())]
        chosen = [model for model in models if algorithm is None or model.algorithm == algorithm]
        later = [model for model in chosen if start is None or _order(model) > start]
        # One more than the page, to know whether there is another.
        found = heapq.nsmallest(limit + 1, later, key=_order)
        current = self._threads.each(self._read, [model.model_id for model in found[:limit]])
        shown = [model for model in current if model is not None]
        return StoredPage(
            [model for model in shown if algorithm is None or model.algorithm == algorithm],
            len(chosen),
            _name_of(found[limit - 1]) if len(found) > limit else None,
            unread,
        )

    def _refresh(self) -> int:
        """Lists the folders and reads new manifests for a while.

        Gives how many are left.
        """
        started = time.monotonic()
        with self._listing:
            if time.monotonic() >= self._fresh_until:
                self._list()
        filling = self._filling
        if filling is not None:
            wait([filling], timeout=max(_LEAST_FILL_SECONDS, started + _FILL_SECONDS - time.monotonic()))
            if filling.done():
                filling.result()
        return len(self._folders.difference(self._known, self._absent))

    def _list(self) -> None:
        started = time.monotonic()
        with contextlib.suppress(ObjectNotFound):
            self._folders = set(self._storage.folders(self._bucket))
        for gone in [model_id for model_id in list(self._known) if model_id not in self._folders]:
            self._known.pop(gone, None)
            self._compared.pop(gone, None)
        for gone in [model_id for model_id in list(self._absent) if model_id not in self._folders]:
            self._absent.pop(gone, None)
        if not self._has_index:
            self._read_index()
            self._has_index = True
        now = time.monotonic()
        self._fresh_until = now + max(_LISTED_SECONDS, 5 * (now - started))
        unread = [
            model_id for model_id in self._folders if model_id not in self._known and model_id not in self._absent
        ]
        unread += list(self._absent)[:_LOOKED_AGAIN]
        if unread and (self._filling is None or self._filling.done()):
            self._filling = self._filler.submit(self._fill, unread)

    def _fill(self, unread: list[str]) -> None:
        """Reads manifests, and writes the index if there were many."""
        for start in range(0, len(unread), _CHUNK):
            if self._closed:
                return
            found = self._threads.each(self._read, unread[start : start + _CHUNK])
            self._unwritten += sum(model is not None for model in found)
        if self._unwritten >= _WORTH_WRITING:
            self._write_index()

    def _read(self, model_id: str) -> StoredModel | None:
        """A model as its manifest says; None if it has none."""
        known = self._known.get(model_id)
        started = time.monotonic()
        if known is not None and started - self._compared.get(model_id, -math.inf) < _CHECKED_SECONDS:
            return known.model
        try:
            path = f"{self._bucket}/{checked_name(model_id)}/{MANIFEST}"
            if known is None or known.etag != self._storage.stat(path).etag:
                etag, content = self._storage.read(path, _LARGEST_MANIFEST)
                known = _Known(etag, _model_of(decode_json(content, Manifest), model_id))
        except (ObjectNotFound, ArgumentError, msgspec.MsgspecError):
            self._known.pop(model_id, None)
            self._absent.pop(model_id, None)
            self._absent[model_id] = time.monotonic()
            return None
        self._known[model_id] = known
        self._compared[model_id] = started
        self._absent.pop(model_id, None)
        return known.model

    def _read_index(self) -> None:
        try:
            _, content = self._storage.read(f"{self._bucket}/{INDEX}", _LARGEST_INDEX)
            known = decode_json(content, list[_Known])
            self._known = {entry.model.model_id: entry for entry in known if entry.model.model_id in self._folders}
        except ObjectNotFound:
            pass
        except (StorageError, msgspec.MsgspecError) as error:
            logger.warning("the index of stored models {}/{} is not used: {}", self._bucket, INDEX, error)

    def _write_index(self) -> None:
        try:
            with temporary_file(msgspec.json.encode(list(self._known.values()))) as file:
                self._storage.save(file, f"{self._bucket}/{INDEX}")
            self._unwritten = 0
        except (StorageError, OSError) as error:
            # Keys that may only read can list even so; the next service reads the manifests again.
            logger.warning("the index of stored models {}/{} cannot be written: {}", self._bucket, INDEX, error)


def _model_of(manifest: Manifest, model_id: str) -> StoredModel:
    return StoredModel(
        model_id,
        manifest.algorithm,
        manifest.kind,
        manifest.created,
        sum(manifest.files.values()),
        manifest.evaluation,
        manifest.below_gate,
    )


def _order(model: StoredModel) -> tuple[float, str]:
    """Newest first; of the same time by id."""
    return -model.created, model.model_id


def _name_of(model: StoredModel) -> str:
    """The place of a model in the order, as text."""
    return f"{model.created!r}_{model.model_id}"


def _place(text: str) -> tuple[float, str]:
    """The place in the order that `next` of a page names."""
    created, underscore, model_id = text.partition("_")
    try:
        if underscore:
            return -float(created), model_id
    except ValueError:
        pass
    raise ArgumentError(f"[after] must be the `next` of a page, not {text[:100]!r}")
