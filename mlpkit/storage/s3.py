"""Objects in an S3 store (MinIO, Ceph, Swift, SeaweedFS, AWS, ...), through the `minio` client and a pool of our own.

Large objects go in parts: downloads by ranges and uploads as S3 multipart, several at a time. A download that breaks
off goes on where it was. Format of the errors: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ProtocolError, ReadTimeoutError

from mlpkit.errors import SettingsError, StorageError
from mlpkit.settings import Settings
from mlpkit.storage.digests import BLOCK, BlockDigest, combined
from mlpkit.storage.disk import write_at
from mlpkit.storage.paths import ObjectStat, endpoint_of
from mlpkit.storage.retries import Patience, current_patience, patience_of
from mlpkit.storage.s3_errors import translated
from mlpkit.storage.threads import LARGE, Threads

PART = BLOCK
"""Bytes of one part, which is digested on its own; objects up to this size are sent in one request."""

_PARTS_AT_A_TIME = 4
_MOST_PARTS = 10_000
_CHUNK = 256 << 10
"""Bytes read at a time: larger buffers go back to the system each time, which costs twice as much time."""
_CONNECT_TIMEOUT = 5.0
_CHECK_TIMEOUT = 3.0
_SENT_AT_ONCE = 256 << 10
_CLEAN_UP_TIMEOUT = 1.0
_KEYS_A_DELETE = 100
_WORTH_RETRYING = (ConnectTimeoutError, ReadTimeoutError, ProtocolError)
"""NewConnectionError (refused, unknown host) is a ConnectTimeoutError in urllib3 2."""
_STATUSES_WORTH_RETRYING = frozenset({429, 500, 502, 503, 504})


class S3Store:
    """The S3 store of the settings; one pool of connections, safe from every thread. Made without a connection."""

    def __init__(self, settings: Settings) -> None:
        host, secure = endpoint_of(settings)
        self.place = f"{'https' if secure else 'http'}://{host}"
        self._patience = Patience(settings.storage_timeout, settings.storage_retries)
        self._pool = _Pool(self._patience, secure)
        try:
            self._client = Minio(
                endpoint=host,
                access_key=settings.minio_access_key,
                secret_key=settings.minio_secret_key,
                secure=secure,
                region=settings.s3_region,
                http_client=self._pool,
            )
        except ValueError as error:
            raise SettingsError(f"MINIO_HOST is {settings.minio_host!r}: {error}") from None

    def stat(self, bucket: str, key: str) -> ObjectStat:
        with translated(self.place, bucket, key, bucket_exists=self._bucket_exists):
            return _described(self._client.stat_object(bucket_name=bucket, object_name=key))

    def download(self, stat: ObjectStat, target: Path, threads: Threads) -> str:
        with translated(self.place, stat.bucket, stat.key), target.open("wb") as file:
            os.truncate(file.fileno(), stat.size)
            if stat.size < LARGE:
                return combined(self._fetch_range(stat, 0, stat.size, file.fileno()))
            ranges = [(start, min(start + PART, stat.size)) for start in range(0, stat.size, PART)]
            blocks = threads.each(lambda part: self._fetch_range(stat, *part, file.fileno()), ranges)
            return combined(block for each in blocks for block in each)

    def upload(self, source: Path, bucket: str, key: str) -> None:
        least = -(-source.stat().st_size // _MOST_PARTS)
        with translated(self.place, bucket, key):
            self._client.fput_object(
                bucket_name=bucket,
                object_name=key,
                file_path=str(source),
                part_size=max(PART, -(-least // PART) * PART),
                num_parallel_uploads=_PARTS_AT_A_TIME,
            )

    def list(self, bucket: str, prefix: str) -> Iterator[ObjectStat]:
        with translated(self.place, bucket, prefix):
            for each in self._client.list_objects(bucket_name=bucket, prefix=prefix, recursive=True):
                yield _described(each)

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        with translated(self.place, bucket, keys[0] if len(keys) == 1 else ""):
            if len(keys) == 1:
                self._client.remove_object(bucket_name=bucket, object_name=keys[0])
                return
            # In small batches: a server may be silent until the whole batch is gone.
            for start in range(0, len(keys), _KEYS_A_DELETE):
                batch = [DeleteObject(key) for key in keys[start : start + _KEYS_A_DELETE]]
                for failure in self._client.remove_objects(bucket_name=bucket, delete_object_list=batch):
                    raise StorageError(
                        f"{self.place}: {bucket}/{failure.name} was not deleted ({failure.code}: {failure.message})"
                    )

    def make_bucket(self, bucket: str) -> None:
        try:
            with translated(self.place, bucket, ""):
                self._client.make_bucket(bucket_name=bucket)
        except StorageError:
            # Servers differ in the error for a bucket that exists; only whether it does matters.
            if not self._bucket_exists(bucket):
                raise

    def presign(self, bucket: str, key: str, expires: int) -> str:
        with translated(self.place, bucket, key):
            url: str = self._client.presigned_get_object(
                bucket_name=bucket, object_name=key, expires=timedelta(seconds=expires)
            )
        return url

    def check(self, bucket: str) -> None:
        timeout = min(_CHECK_TIMEOUT, self._patience.timeout)
        with patience_of(Patience(timeout, retries=0)), translated(self.place, bucket, ""):
            self._client.bucket_exists(bucket_name=bucket)

    def close(self) -> None:
        self._pool.clear()

    def _bucket_exists(self, bucket: str) -> bool:
        with translated(self.place, bucket, ""):
            return bool(self._client.bucket_exists(bucket_name=bucket))

    def _fetch_range(self, stat: ObjectStat, start: int, end: int, file: int) -> Sequence[bytes]:
        """Fetches a range that begins with a block; the digests of its blocks."""
        patience, digest = current_patience(self._patience), BlockDigest()
        while start < end:
            # Every call that gets on begins with a fresh deadline: only silence is given up.
            start += patience.call(partial(self._copy, stat, start, end, file, digest), on=(_BrokenBody,))
        return digest.blocks

    def _copy(self, stat: ObjectStat, start: int, end: int, file: int, digest: BlockDigest, left: float) -> int:
        """Copies from `start` on until the range ends or the connection breaks; how many bytes came, at least one.

        The seconds left are not used: each request has its own deadline.
        """
        response = self._client.get_object(
            bucket_name=stat.bucket,
            object_name=stat.key,
            offset=start,
            length=end - start,
            request_headers={"If-Match": f'"{stat.etag}"'} if stat.etag else None,
        )
        received = 0
        try:
            if response.status != 206 and end - start != stat.size:
                raise StorageError(f"{self.place}: {stat.path}: the store ignores Range, which large objects need")
            for chunk in response.stream(_CHUNK):
                wanted = memoryview(chunk)[: end - start - received]
                write_at(file, wanted, start + received)
                digest.update(wanted)
                received += len(chunk)
        except ProtocolError as error:
            if not received:
                raise _BrokenBody(*error.args) from error
        finally:
            response.close()
            response.release_conn()
        if not received:
            raise _BrokenBody(f"{stat.path}: an empty answer where {end - start} bytes were asked for")
        return received


class _BrokenBody(ProtocolError):
    """The connection broke before the first byte of a body: worth asking again, unlike what the pool gave up."""


class _Pool(urllib3.PoolManager):
    """Connections to the store: each request has a deadline, and is tried again when the fault may pass.

    The bodies of the `minio` client are bytes, so that a request can be sent again as it is.
    """

    def __init__(self, patience: Patience, secure: bool) -> None:
        # The default context trusts the system's authorities, or those in the file of SSL_CERT_FILE.
        super().__init__(maxsize=16, ssl_context=ssl.create_default_context() if secure else None)
        self._patience = patience

    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> urllib3.BaseHTTPResponse:  # type: ignore[override]
        patience = current_patience(self._patience)
        if method == "DELETE" and "uploadId=" in url:
            # The clean-up after an upload that has failed: the caller has waited for its whole time already.
            patience = Patience(min(_CLEAN_UP_TIMEOUT, patience.timeout), retries=0)
        send = super().urlopen

        # A socket's time limit holds for all that is sent at once, however well it gets on: so for a piece each.
        if isinstance(body := options.get("body"), bytes):
            pieces = range(0, len(body), _SENT_AT_ONCE)
            options["body"] = [memoryview(body)[start : start + _SENT_AT_ONCE] for start in pieces] or None

        def attempt(left: float) -> urllib3.BaseHTTPResponse:
            timeout = urllib3.Timeout(connect=min(_CONNECT_TIMEOUT, left), read=left)
            return send(method, url, **{**options, "redirect": False, "retries": False, "timeout": timeout})

        return patience.call(attempt, on=_WORTH_RETRYING, unwanted=_may_pass)


def _may_pass(response: urllib3.BaseHTTPResponse) -> bool:
    if response.status not in _STATUSES_WORTH_RETRYING:
        return False
    with contextlib.suppress(HTTPError):
        response.read(cache_content=True)
    return True


def _described(found: Any) -> ObjectStat:
    return ObjectStat(
        path=f"{found.bucket_name}/{found.object_name}",
        etag=(found.etag or "").strip('"'),
        size=found.size or 0,
        modified=found.last_modified.timestamp() if found.last_modified else 0.0,
    )
