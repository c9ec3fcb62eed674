"""What a store must do, and the tools that stores need.

A new kind of store is a class that keeps to the protocol `Store`, and one line in `_STORES` (or, from outside of the
package, a call of `register_store`). `Settings.store` is its URL, and the scheme of the URL chooses the class.
"""

from __future__ import annotations

import contextvars
import errno
import hashlib
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec

from mlpkit import start_folder
from mlpkit.errors import ArgumentError, SettingsError, StorageError, did_you_mean
from mlpkit.settings import Settings, boolean
from mlpkit.storage.paths import ObjectStat

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGE = 64 << 20
"""Objects of at least this many bytes are fetched in parallel parts."""
BLOCK = 16 << 20
"""Bytes of one block of a digest; the last one may be shorter."""
_CHUNK = 256 << 10
"""Bytes read at a time. Larger buffers are given back to the system each time, and cost more than they save."""
_S3_PORT = 9000


class ObjectChanged(StorageError):
    """The object has changed; its new etag must be asked for."""


class Threads:
    """Runs functions in at most `limit` threads, started when needed.

    A function that runs here must not wait for another one: all threads could be waiting then.
    """

    def __init__(self, limit: int) -> None:
        self._pool = ThreadPoolExecutor(limit, thread_name_prefix="mlpkit-storage")

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The results in the order of the items.

        After the first failure nothing new is begun; it is raised once what has begun is over.
        """
        futures = [self._pool.submit(contextvars.copy_context().run, function, item) for item in items]
        try:
            failed = [done for done in wait(futures, return_when=FIRST_EXCEPTION).done if done.exception() is not None]
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
        if failed:
            failed[0].result()
        return [future.result() for future in futures]

    def transfer(
        self, items: Sequence[Item], *, size: Callable[[Item], int], move: Callable[[Item], object], large: int = LARGE
    ) -> None:
        """Moves small items several at a time, then large ones singly.

        Large ones have at least `large` bytes.

        Large ones are moved from the caller's thread, because they go in parallel parts themselves.
        """
        small = {index for index, item in enumerate(items) if size(item) < large}
        self.each(lambda index: move(items[index]), sorted(small))
        for index, item in enumerate(items):
            if index not in small:
                move(item)

    def close(self) -> None:
        """Takes no new work and forgets what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Store(Protocol):
    """Objects by bucket and key, which are already checked.

    Safe from every thread. All errors are of the `StorageError` family. `url` is the identity of the store: two stores
    with the same URL have the same objects, so the cache is keyed by it. It has no secret in it.
    """

    url: str

    def stat(self, bucket: str, key: str) -> ObjectStat:
        """What the store says of the object. Raises ObjectNotFound."""

    def download(self, stat: ObjectStat, target: Path, threads: Threads) -> str:
        """Writes the object into a new file; gives the file's digest.

        The digest is that of `BlockDigest`; "" is allowed, and costs a second reading of the file.
        Raises ObjectNotFound, or ObjectChanged if the object has another etag by now.
        """

    def read(self, bucket: str, key: str, most: int) -> tuple[str, bytes]:
        """The etag and the content of a small object.

        It is one request. Raises ObjectNotFound, or StorageError if it has more than `most` bytes.
        """

    def upload(self, source: Path, bucket: str, key: str) -> None:
        """Stores the file under the key.

        Readers see the old object or the new one, never a part.
        """

    def list(self, bucket: str, prefix: str) -> Iterator[ObjectStat]:
        """The objects whose keys start with the prefix, by key.

        A bucket that does not exist has none, or raises ObjectNotFound.
        """

    def folders(self, bucket: str) -> Iterator[str]:
        """What keys have before their first slash, in order.

        It must not take longer if there is much below them. A bucket that does not exist is as in `list`.
        """

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        """Removes the objects; one that does not exist is not an error."""

    def discard_uploads(self, bucket: str, prefix: str) -> None:
        """Removes what uploads that were killed have left below the prefix."""

    def make_bucket(self, bucket: str) -> None:
        """Makes the bucket; one that exists is not an error."""

    def presign(self, bucket: str, key: str, expires: int) -> str:
        """A URL that reads the object without credentials for that many seconds."""

    def check(self, bucket: str) -> bool:
        """Whether the bucket exists.

        Raises StorageError within 3 seconds if the store cannot be used.
        """

    def close(self) -> None:
        """Closes idle connections."""


_STORES: dict[str, str | Callable[[Settings], Store]] = {
    "s3": "mlpkit.storage.s3:S3Store",
    "folder": "mlpkit.storage.folder:FolderStore",
}
"""What makes the store for the scheme of a URL: a function, or the name of one that is imported with its first use."""


def register_store(scheme: str, make: Callable[[Settings], Store]) -> None:
    """Makes `MLPKIT_STORE=<scheme>://...` a store of your own.

    Call it while your script is imported: every process of the service imports the script, and then knows the store.
    """
    _STORES[scheme] = make


def check_store(settings: Settings) -> None:
    """Checks what the settings say of the store.

    Connects to nothing and imports no client.

    Raises:
        SettingsError: the URL cannot be used, credentials are missing, or the file with certificates does not exist.
    """
    scheme = settings.store.partition("://")[0]
    if scheme not in _STORES:
        raise SettingsError(
            f"MLPKIT_STORE: there is no store for {scheme}:// URLs, only for {', '.join(sorted(_STORES))}"
            + did_you_mean(scheme, _STORES)
        )
    if scheme == "s3":
        _, secure = endpoint_of(settings)
        if not (settings.minio_access_key and settings.minio_secret_key):
            raise SettingsError("the store is an S3 store, so MINIO_ACCESS_KEY and MINIO_SECRET_KEY must be set")
        authorities = authorities_file()
        if secure and authorities and not os.path.isfile(authorities):
            raise SettingsError(f"SSL_CERT_FILE is {authorities!r}: there is no such file")
    elif scheme == "folder" and folder_of(settings) == Path("."):
        raise SettingsError("MLPKIT_STORE must be folder:///path, with three slashes and an absolute path")


def store_of(settings: Settings) -> Store:
    """The store that the settings name.

    It connects with its first use.
    """
    make = _STORES[settings.store.partition("://")[0]]
    if isinstance(make, str):
        module, _, name = make.partition(":")
        make = getattr(importlib.import_module(module), name)
    return make(settings)


def folder_of(settings: Settings) -> Path | None:
    """The folder of a store in a folder, else None."""
    scheme, _, path = settings.store.partition("://")
    if scheme != "folder":
        return None
    return Path(path) if path.startswith("/") else Path(".")


def endpoint_of(settings: Settings) -> tuple[str, bool]:
    """`host:port` of an S3 store, and whether to speak TLS to it.

    Raises:
        SettingsError: the URL has no host, or has a path or credentials.
    """
    text, _, query = settings.store.removeprefix("s3://").partition("?")
    name, _, value = query.partition("=")
    try:
        parts = urlsplit(f"//{text}")
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0) and name in ("", "secure")
        secure = boolean(value) if name else bool(settings.store_url) and settings.minio_secure
    except ValueError:
        usable = False
    if not usable or "@" in text or text.rstrip("/") != parts.netloc:
        if settings.store_url:
            raise SettingsError("MLPKIT_STORE must be s3://host:port or s3://host:port?secure=on for an S3 store")
        raise SettingsError("MINIO_HOST must be host:port, or http://host:port or https://host:port without a path")
    return parts.netloc, secure


def authorities_file() -> str | None:
    """The absolute path that SSL_CERT_FILE names, or None.

    A script may change the working directory before the store is opened.
    """
    name = os.environ.get("SSL_CERT_FILE")
    return os.path.join(start_folder, name) if name else None


def settings_for(settings: Settings, extend: str | bytes) -> Settings:
    """The settings with the caller's own store, if that is allowed.

    That is so if `MLPKIT_REMOTE_STORAGE` is on and `extend` has a `remote_ip`. The service writes `remote_ip` itself:
    it is the address that the request came from. The caller's store has the port, the keys and the buckets of the
    service's own.

    Raises:
        ArgumentError: the address is not among `MLPKIT_REMOTE_ALLOW`; nothing was sent to it.
    """
    if not settings.remote_storage:
        return settings
    fields = msgspec.json.decode(extend)
    remote = fields.get("remote_ip") if isinstance(fields, Mapping) else None
    if not remote:
        return settings
    try:
        address = _address(str(remote))
    except ValueError:
        raise ArgumentError("[extend.remote_ip] is not an IP address") from None
    if not any(address in ip_network(network) for network in settings.remote_allow):
        raise ArgumentError(f"the store of {address} may not be used: it is not among MLPKIT_REMOTE_ALLOW")
    own, secure = endpoint_of(settings)
    port = urlsplit(f"//{own}").port or _S3_PORT
    host = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
    return settings.with_options(store_url="", minio_host=f"{host}:{port}", minio_secure=secure)


def _address(text: str) -> IPv4Address | IPv6Address:
    """The address, as IPv4 if it is one.

    A socket for both writes it as one of IPv6 (`::ffff:10.0.0.1`).
    """
    address = ip_address(text)
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def objects_below(store: Store, bucket: str, start: str) -> Iterator[ObjectStat]:
    """The objects whose keys begin with `start`, without folder marks."""
    return (stat for stat in store.list(bucket, start) if not stat.path.endswith("/"))


class BlockDigest:
    """The digests of a file's blocks, taken while its bytes arrive.

    The digest of a file is the SHA-256 of the SHA-256 of each block of 16 MiB, so that parts can be digested in any
    order, in parallel. Give the bytes from the beginning of a block on, in order; `blocks` are the digests so far.
    """

    def __init__(self) -> None:
        self._done: list[bytes] = []
        self._current = hashlib.sha256()
        self._missing = BLOCK

    def update(self, data: bytes | memoryview) -> None:
        """Takes in the next bytes."""
        left = memoryview(data)
        while left:
            piece = left[: self._missing]
            left = left[self._missing :]
            self._current.update(piece)
            self._missing -= len(piece)
            if not self._missing:
                self._done.append(self._current.digest())
                self._current = hashlib.sha256()
                self._missing = BLOCK

    @property
    def blocks(self) -> list[bytes]:
        """The digests of the blocks, that of a last short one included."""
        return self._done if self._missing == BLOCK else [*self._done, self._current.digest()]


def combined(blocks: Iterable[bytes]) -> str:
    """The digest of the file that has these blocks, as hexadecimal text."""
    return hashlib.sha256(b"".join(blocks)).hexdigest()


def digest_of(file: Path) -> str:
    """The digest of a file's content."""
    digest = BlockDigest()
    buffer = memoryview(bytearray(_CHUNK))
    with file.open("rb", buffering=0) as content:
        while count := content.readinto(buffer):
            digest.update(buffer[:count])
    return combined(digest.blocks)


def is_full(error: OSError) -> bool:
    """Whether the disk, or this user's quota, has no room left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_at(file: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of the data at the offset of an open file.

    Raises:
        OSError: not all of it could be written. The kernel's own `pwrite` writes a part and raises nothing if a disk
            has room for that part only.
    """
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, offset)
        left = left[written:]
        offset += written
