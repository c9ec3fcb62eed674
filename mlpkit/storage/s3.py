"""Objects in an S3 store: MinIO, Ceph, Swift, SeaweedFS, AWS, ...

Requests go through the `minio` client and a pool of our own.

Large objects go in parts: downloads by ranges and uploads as S3 multipart, several at a time. A download that breaks
off continues from the byte that it had reached. Format of the errors:
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

import builtins
import contextlib
import os
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from xml.etree.ElementTree import ParseError

import tenacity
import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
    TimeoutError,
)

from mlpkit.errors import ObjectNotFound, SettingsError, StorageDenied, StorageError, StorageUnavailable
from mlpkit.log import logger
from mlpkit.settings import Settings, proxy_for
from mlpkit.storage.paths import ObjectStat
from mlpkit.storage.store import (
    BLOCK,
    LARGE,
    BlockDigest,
    ObjectChanged,
    Threads,
    authorities_file,
    combined,
    endpoint_of,
    write_at,
)

Result = TypeVar("Result")

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
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_SHORTEST_ATTEMPT = 0.1

_NO_SUCH_KEY = "mlpkit.check/"
"""What the check lists: nothing, so that its answer is short however full the bucket is."""

_DENIED = {
    "InvalidAccessKeyId": "the store does not know the access key: check MINIO_ACCESS_KEY",
    "SignatureDoesNotMatch": "the secret key is wrong: check MINIO_SECRET_KEY",
    "AuthorizationHeaderMalformed": "the request was signed for another region: check MLPKIT_S3_REGION",
    "RequestTimeTooSkewed": "the clocks of this machine and of the store differ: set them",
    "RequestExpired": "the clocks of this machine and of the store differ: set them",
    "InvalidToken": "the session token is wrong: check MINIO_SESSION_TOKEN",
    "ExpiredToken": "the session token has expired: set a new MINIO_SESSION_TOKEN",
}
_MISSING = ("NoSuchKey", "NoSuchBucket", "ResourceNotFound")
_PASSING = ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout")
_NOT_S3 = "is not S3: is the address of the store (MINIO_HOST or MLPKIT_STORE) right?"


class S3Store:
    """The S3 store of the settings, safe from every thread.

    It has one pool of connections.
    """

    def __init__(self, settings: Settings) -> None:
        host, secure = endpoint_of(settings)
        self.url = settings.store
        self._place = f"{'https' if secure else 'http'}://{host}"
        self._limits = _CallLimits(settings.storage_timeout, settings.storage_retries)
        self._pool = _pool(self._limits, self._place)
        try:
            self._client = Minio(
                endpoint=host,
                access_key=settings.minio_access_key,
                secret_key=settings.minio_secret_key,
                session_token=settings.minio_session_token or None,
                secure=secure,
                region=settings.s3_region,
                http_client=self._pool,
            )
        except ValueError as error:
            raise SettingsError(f"the address of the store {settings.store!r} cannot be used: {error}") from None

    def stat(self, bucket: str, key: str) -> ObjectStat:
        with translated(self._place, bucket, key, "s3:GetObject", bucket_exists=self._bucket_exists):
            try:
                found = self._client.stat_object(bucket_name=bucket, object_name=key)
            except S3Error as error:
                if error.code == "AccessDenied":
                    # The answer to a HEAD has no body that gives the reason: that to a GET has.
                    self._client.get_object(bucket_name=bucket, object_name=key, length=1).close()
                raise
            if not found.etag or found.etag.startswith("W/"):
                raise _NotS3(f"the answer without an etag {_NOT_S3}")
            return _described(found)

    def download(self, stat: ObjectStat, target: Path, threads: Threads) -> str:
        with translated(self._place, stat.bucket, stat.key, "s3:GetObject"), target.open("wb") as file:
            os.truncate(file.fileno(), stat.size)
            if stat.size < LARGE:
                return combined(self._fetch_range(stat, 0, stat.size, file.fileno()))
            ranges = [(start, min(start + PART, stat.size)) for start in range(0, stat.size, PART)]
            blocks = threads.each(lambda part: self._fetch_range(stat, *part, file.fileno()), ranges)
            return combined(block for part in blocks for block in part)

    def read(self, bucket: str, key: str, most: int) -> tuple[str, bytes]:
        def attempt(left: float) -> tuple[str, bytes]:
            response = self._client.get_object(bucket_name=bucket, object_name=key)
            try:
                if int(response.headers.get("content-length", 0)) > most:
                    raise StorageError(f"{self._place}: {bucket}/{key} has more than {most} bytes")
                return response.headers.get("etag", "").strip('"'), response.read()
            except ProtocolError as error:
                raise _BrokenBody(*error.args) from error
            finally:
                response.close()
                response.release_conn()

        with translated(self._place, bucket, key, "s3:GetObject"):
            return _current_limits(self._limits).call(attempt, on=(_BrokenBody,))

    def upload(self, source: Path, bucket: str, key: str) -> None:
        size = source.stat().st_size
        least = -(-size // _MOST_PARTS)
        part_size = max(PART, -(-least // PART) * PART)
        with translated(self._place, bucket, key, "s3:PutObject"):
            try:
                result = self._client.fput_object(
                    bucket_name=bucket,
                    object_name=key,
                    file_path=str(source),
                    part_size=part_size,
                    num_parallel_uploads=_PARTS_AT_A_TIME,
                )
            except Exception:
                raise
            except BaseException:
                # The client cleans up after an Exception only; this is Ctrl-C, or a job that is cancelled.
                with contextlib.suppress(StorageError):
                    self.discard_uploads(bucket, key)
                raise
        if not result.etag or result.etag.startswith("W/"):
            # Some servers give no etag for an upload in parts, and a server that is not S3 gives none either.
            found = self.stat(bucket, key)
            if found.size != size:
                raise StorageError(f"{self._place}: {bucket}/{key} has {found.size} bytes after {size} were stored")

    def list(self, bucket: str, prefix: str) -> Iterator[ObjectStat]:
        with translated(self._place, bucket, prefix, "s3:ListBucket"):
            for found in self._client.list_objects(bucket_name=bucket, prefix=prefix, recursive=True):
                yield _described(found)

    def folders(self, bucket: str) -> Iterator[str]:
        with translated(self._place, bucket, "", "s3:ListBucket"):
            for found in self._client.list_objects(bucket_name=bucket, recursive=False):
                if found.is_dir:
                    yield found.object_name.removesuffix("/")

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        with translated(self._place, bucket, keys[0] if len(keys) == 1 else "", "s3:DeleteObject"):
            if len(keys) == 1:
                self._client.remove_object(bucket_name=bucket, object_name=keys[0])
                return
            # In small batches: a server may be silent until the whole batch is gone.
            for start in range(0, len(keys), _KEYS_A_DELETE):
                batch = [DeleteObject(key) for key in keys[start : start + _KEYS_A_DELETE]]
                for failure in self._client.remove_objects(bucket_name=bucket, delete_object_list=batch):
                    raise StorageError(
                        f"{self._place}: {bucket}/{failure.name} was not deleted ({failure.code}: {failure.message})"
                    )

    def discard_uploads(self, bucket: str, prefix: str) -> None:
        limits = _CallLimits(min(_CLEAN_UP_TIMEOUT, self._limits.timeout), retries=0)
        with limited(limits), translated(self._place, bucket, prefix, "s3:ListBucketMultipartUploads"):
            found = self._client._list_multipart_uploads(bucket_name=bucket, prefix=prefix)
            for upload in found.uploads:
                self._client._abort_multipart_upload(
                    bucket_name=bucket, object_name=upload.object_name, upload_id=upload.upload_id
                )

    def make_bucket(self, bucket: str) -> None:
        try:
            with translated(self._place, bucket, "", "s3:CreateBucket"):
                self._client.make_bucket(bucket_name=bucket)
        except StorageError:
            # Servers differ in the error for a bucket that exists; only whether it does matters.
            if not self._bucket_exists(bucket):
                raise

    def presign(self, bucket: str, key: str, expires: int) -> str:
        with translated(self._place, bucket, key, "s3:GetObject"):
            url: str = self._client.presigned_get_object(
                bucket_name=bucket, object_name=key, expires=timedelta(seconds=expires)
            )
        return url

    def check(self, bucket: str) -> bool:
        limits = _CallLimits(min(_CHECK_TIMEOUT, self._limits.timeout), retries=0)
        try:
            # A signed GET whose answer is XML: the answer to a HEAD could be that of any web server, without a reason.
            with limited(limits), translated(self._place, bucket, "", "s3:ListBucket"):
                found = self._client.list_objects(bucket_name=bucket, prefix=_NO_SUCH_KEY, recursive=True)
                next(iter(found), None)
        except ObjectNotFound:
            return False
        return True

    def close(self) -> None:
        self._pool.clear()

    def _bucket_exists(self, bucket: str) -> bool:
        with translated(self._place, bucket, "", "s3:ListBucket"):
            return bool(self._client.bucket_exists(bucket_name=bucket))

    def _fetch_range(self, stat: ObjectStat, start: int, end: int, file: int) -> Sequence[bytes]:
        """Fetches a range of whole blocks; gives their digests."""
        limits = _current_limits(self._limits)
        digest = BlockDigest()
        while start < end:
            # After progress the next call gets a fresh deadline: it gives up only if the server stays silent.
            start += limits.call(partial(self._copy, stat, start, end, file, digest), on=(_BrokenBody,))
        return digest.blocks

    def _copy(self, stat: ObjectStat, start: int, end: int, file: int, digest: BlockDigest, left: float) -> int:
        """Copies a range until it ends or the connection breaks.

        Gives how many bytes came.

        That is at least one. The seconds left are not used: each request has its own deadline.
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
                raise StorageError(f"{self._place}: {stat.path}: the store ignores Range, which large objects need")
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
            raise _BrokenBody(f"{stat.path}: an empty answer instead of {end - start} bytes")
        return received


class _BrokenBody(ProtocolError):
    """The connection broke before the first byte of a body.

    It is worth asking again, unlike a request that the pool gave up.
    """


class _NotS3(HTTPError):
    """An answer that no S3 server gives."""


@dataclass(frozen=True)
class _CallLimits:
    """How long one call may take, and how often it is retried."""

    timeout: float
    """In seconds."""
    retries: int

    def call(
        self,
        attempt: Callable[[float], Result],
        *,
        on: tuple[type[Exception], ...],
        unwanted: Callable[[Result], bool] = lambda result: False,
    ) -> Result:
        """What `attempt(seconds left)` returns.

        It is tried again, with back-off, if it raises one of `on` or returns what is unwanted, but never past the
        deadline. After the last attempt its own exception is raised, or its unwanted result returned.
        """
        deadline = time.monotonic() + self.timeout

        def too_late(state: tenacity.RetryCallState) -> bool:
            return state.attempt_number > self.retries or time.monotonic() + _FIRST_PAUSE >= deadline

        retrying = tenacity.Retrying(
            stop=too_late,
            wait=_pause_until(deadline),
            retry=tenacity.retry_if_exception_type(on) | tenacity.retry_if_result(unwanted),
            before_sleep=_log_retry,
            retry_error_callback=_last_outcome,
        )
        return retrying(lambda: attempt(max(deadline - time.monotonic(), _SHORTEST_ATTEMPT)))


_current: ContextVar[_CallLimits | None] = ContextVar("call_limits", default=None)


def _current_limits(usual: _CallLimits) -> _CallLimits:
    """The limits that `limited` set for this context, else the usual ones."""
    return _current.get() or usual


@contextlib.contextmanager
def limited(limits: _CallLimits) -> Iterator[None]:
    """Calls inside the block have these limits instead of the usual ones."""
    token = _current.set(limits)
    try:
        yield
    finally:
        _current.reset(token)


def _pause_until(deadline: float) -> Callable[[tenacity.RetryCallState], float]:
    backoff = tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE)
    return lambda state: max(0.0, min(backoff(state), deadline - time.monotonic() - _SHORTEST_ATTEMPT))


def _log_retry(state: tenacity.RetryCallState) -> None:
    outcome = state.outcome
    reason = "an answer that may pass" if outcome is None or not outcome.failed else repr(outcome.exception())
    logger.debug("the store failed ({}); attempt {} follows", reason, state.attempt_number + 1)


def _last_outcome(state: tenacity.RetryCallState) -> object:
    assert state.outcome is not None
    return state.outcome.result()


class _Limited(urllib3.PoolManager):
    """Connections whose requests have a deadline and are retried.

    They are tried again if the fault may pass.

    The bodies of the `minio` client are bytes, so that a request can be sent again as it is.
    """

    limits: _CallLimits

    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> urllib3.BaseHTTPResponse:  # type: ignore[override]
        limits = _current_limits(self.limits)
        if method == "DELETE" and "uploadId=" in url:
            # The clean-up after an upload that has failed: the caller has waited for its whole time already.
            limits = _CallLimits(min(_CLEAN_UP_TIMEOUT, limits.timeout), retries=0)
        send = super().urlopen

        # A socket's time limit holds for all that is sent at once, however well it gets on: so for a piece each.
        if isinstance(body := options.get("body"), bytes):
            pieces = range(0, len(body), _SENT_AT_ONCE)
            options["body"] = [memoryview(body)[start : start + _SENT_AT_ONCE] for start in pieces] or None

        def attempt(left: float) -> urllib3.BaseHTTPResponse:
            timeout = urllib3.Timeout(connect=min(_CONNECT_TIMEOUT, left), read=left)
            return send(method, url, **{**options, "redirect": False, "retries": False, "timeout": timeout})

        response = limits.call(attempt, on=_WORTH_RETRYING, unwanted=_may_pass)
        is_page = response.headers.get("content-type", "").startswith("text/html")
        # Swift calls its empty answers text/html too. An answer to POST is parsed by the client.
        if is_page and response.status < 300 and method in ("PUT", "DELETE") and response.data:
            raise _NotS3(f"the answer (a web page) {_NOT_S3}")
        return response


class _ThroughProxy(_Limited, urllib3.ProxyManager):
    """The same through the proxy of the environment."""


def _pool(limits: _CallLimits, place: str) -> urllib3.PoolManager:
    """The connections to the store, through a proxy if one is set."""
    options: dict[str, Any] = {"maxsize": 16, "ssl_context": _trust() if place.startswith("https") else None}
    proxy = proxy_for(place)
    pool = _Limited(**options) if proxy is None else _ThroughProxy(proxy.url, proxy_headers=proxy.headers, **options)
    pool.limits = limits
    return pool


def _trust() -> ssl.SSLContext:
    """Trusts the system's authorities, or those in the file of SSL_CERT_FILE."""
    try:
        return ssl.create_default_context(cafile=authorities_file())
    except OSError as error:
        raise StorageError(f"SSL_CERT_FILE is {authorities_file()!r}: it cannot be used ({error})") from None


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


@contextlib.contextmanager
def translated(
    place: str, bucket: str, key: str, right: str, *, bucket_exists: Callable[[str], bool] | None = None
) -> Iterator[None]:
    """Turns errors of `minio` and `urllib3` into those of `StorageError`.

    `right` is the right that the call needs. `bucket_exists` is asked if the server does not say whether the object or
    its bucket is missing, as for a HEAD.
    """
    target = f"{place}: {bucket}/{key}" if key else f"{place}: bucket {bucket!r}"
    try:
        yield
    except S3Error as error:
        if error.code == "NoSuchKey" and bucket_exists is not None and not bucket_exists(bucket):
            raise _missing(place, bucket, key, "NoSuchBucket") from None
        raise _of_s3(error, place, bucket, key, target, right) from None
    except InvalidResponseError as error:
        raise _of_status(error._code, target, right) from None
    except ServerError as error:
        raise _of_status(error.status_code, target, right) from None
    except _NotS3 as error:
        raise StorageError(f"{target}: {error}") from None
    except ParseError:
        raise StorageError(f"{target}: the answer (not valid XML) {_NOT_S3}") from None
    except SSLError as error:
        raise StorageError(
            f"{target}: TLS failed ({error}): check MINIO_SECURE and the certificate (SSL_CERT_FILE)"
        ) from None
    except ProxyError as error:
        raise StorageUnavailable(
            f"{target}: the proxy failed ({_reason(error)}): check http_proxy, https_proxy and no_proxy"
        ) from None
    except NewConnectionError as error:
        raise StorageUnavailable(
            f"{target}: the store cannot be reached ({_reason(error)}): check MINIO_HOST, and that it runs"
        ) from None
    except HTTPError as error:
        raise _of_connection(error, target) from None
    except (MinioException, ValueError) as error:
        raise StorageError(f"{target}: {error}") from None


def _reason(error: Exception) -> str:
    return str(error).rpartition(": ")[2].rstrip("'\")")


def _of_connection(error: HTTPError, target: str) -> StorageUnavailable:
    # A request that stalls while it is sent raises a ProtocolError around the socket's error.
    if isinstance(error, TimeoutError) or any(isinstance(cause, builtins.TimeoutError) for cause in error.args):
        return StorageUnavailable(
            f"{target}: the store did not answer in time: check that it is well (MLPKIT_STORAGE_TIMEOUT is the limit)"
        )
    return StorageUnavailable(f"{target}: the connection broke ({type(error).__name__}: {error})")


def _of_s3(error: S3Error, place: str, bucket: str, key: str, target: str, right: str) -> StorageError:
    code = error.code or ""
    if code in _MISSING:
        return _missing(place, bucket, key, code)
    if code == "AccessDenied":
        return _denied(target, code, right)
    if code in _DENIED:
        said = f": {error.message}" if code == "AuthorizationHeaderMalformed" and error.message else ""
        return StorageDenied(f"{target}: {_DENIED[code]} ({code}{said})")
    if code == "PreconditionFailed":
        return ObjectChanged(f"{target} was replaced while it was read: try again")
    if code in _PASSING or error.response.status >= 500:
        return StorageUnavailable(f"{target}: the store is in trouble ({code}: {error.message}): try again later")
    return StorageError(f"{target}: the store refused ({code}: {error.message})")


def _denied(target: str, code: str, right: str) -> StorageDenied:
    return StorageDenied(
        f"{target}: the credentials are wrong, or they lack the right {right} here: "
        f"check MINIO_ACCESS_KEY, MINIO_SECRET_KEY and what they allow ({code})"
    )


def _missing(place: str, bucket: str, key: str, code: str) -> ObjectNotFound:
    if code == "NoSuchKey" and key:
        return ObjectNotFound(f"{place}: there is no object {bucket}/{key}")
    asked = f" (asked for {bucket}/{key})" if key else ""
    return ObjectNotFound(f"{place}: bucket {bucket!r} does not exist{asked}: make it first, or check the name")


def _of_status(status: int, target: str, right: str) -> StorageError:
    if status == 412:
        return ObjectChanged(f"{target} was replaced while it was read: try again")
    if status in (401, 403):
        return _denied(target, f"HTTP {status}", right)
    if status == 429 or status >= 500:
        return StorageUnavailable(f"{target}: the store is in trouble (HTTP {status}): try again later")
    return StorageError(f"{target}: the answer (HTTP {status}) {_NOT_S3}")
