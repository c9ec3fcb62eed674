"""What the S3 client raises, in words of the `StorageError` family: which store, which object, and what to do."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Iterator

from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError, NewConnectionError, SSLError, TimeoutError

from mlpkit.errors import ObjectNotFound, StorageDenied, StorageError, StorageUnavailable
from mlpkit.storage.store import ObjectChanged

_DENIED = {
    "AccessDenied": "the credentials are wrong, or they do not allow this: check MINIO_ACCESS_KEY and MINIO_SECRET_KEY",
    "InvalidAccessKeyId": "the store does not know the access key: check MINIO_ACCESS_KEY",
    "SignatureDoesNotMatch": "the secret key is wrong: check MINIO_SECRET_KEY",
    "AuthorizationHeaderMalformed": "the request was signed for another region: check MLPKIT_S3_REGION",
    "RequestTimeTooSkewed": "the clocks of this machine and of the store differ: set them",
}
_MISSING = ("NoSuchKey", "NoSuchBucket", "ResourceNotFound")
_PASSING = ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout")


@contextlib.contextmanager
def translated(
    place: str, bucket: str, key: str, *, bucket_exists: Callable[[str], bool] | None = None
) -> Iterator[None]:
    """Lets no error of `minio` or `urllib3` through: they leave as `StorageError` and its kinds.

    `bucket_exists` is asked where the server does not say whether the object or its bucket is missing, as for a HEAD.
    """
    where = f"{place}: {bucket}/{key}" if key else f"{place}: bucket {bucket!r}"
    try:
        yield
    except S3Error as error:
        if error.code == "NoSuchKey" and bucket_exists is not None and not bucket_exists(bucket):
            raise _missing(place, bucket, key, "NoSuchBucket") from None
        raise _of_s3(error, place, bucket, key, where) from None
    except InvalidResponseError as error:
        raise _of_status(error._code, where) from None
    except ServerError as error:
        raise _of_status(error.status_code, where) from None
    except SSLError as error:
        raise StorageError(
            f"{where}: TLS failed ({error}): check MINIO_SECURE and the certificate (SSL_CERT_FILE)"
        ) from None
    except NewConnectionError as error:
        reason = str(error).rpartition(": ")[2]
        raise StorageUnavailable(
            f"{where}: the store cannot be reached ({reason}): check MINIO_HOST, and that it runs"
        ) from None
    except HTTPError as error:
        raise _of_connection(error, where) from None
    except (MinioException, ValueError) as error:
        raise StorageError(f"{where}: {error}") from None


def _of_connection(error: HTTPError, where: str) -> StorageUnavailable:
    # What stands still while it is sent is a ProtocolError around the socket's own.
    if isinstance(error, TimeoutError) or any(isinstance(each, builtins.TimeoutError) for each in error.args):
        return StorageUnavailable(
            f"{where}: the store did not answer in time: check that it is well (MLPKIT_STORAGE_TIMEOUT is the limit)"
        )
    return StorageUnavailable(f"{where}: the connection broke ({type(error).__name__}: {error})")


def _of_s3(error: S3Error, place: str, bucket: str, key: str, where: str) -> StorageError:
    code = error.code or ""
    if code in _MISSING:
        return _missing(place, bucket, key, code)
    if code in _DENIED:
        return StorageDenied(f"{where}: {_DENIED[code]} ({code})")
    if code == "PreconditionFailed":
        return ObjectChanged(f"{where} was replaced while it was read: try again")
    if code in _PASSING or error.response.status >= 500:
        return StorageUnavailable(f"{where}: the store is in trouble ({code}: {error.message}): try again later")
    return StorageError(f"{where}: the store refused ({code}: {error.message})")


def _missing(place: str, bucket: str, key: str, code: str) -> ObjectNotFound:
    if code == "NoSuchKey" and key:
        return ObjectNotFound(f"{place}: there is no object {bucket}/{key}")
    asked = f" (asked for {bucket}/{key})" if key else ""
    return ObjectNotFound(f"{place}: bucket {bucket!r} does not exist{asked}: make it first, or check the name")


def _of_status(status: int, where: str) -> StorageError:
    if status == 412:
        return ObjectChanged(f"{where} was replaced while it was read: try again")
    if status in (401, 403):
        return StorageDenied(f"{where}: {_DENIED['AccessDenied']} (HTTP {status})")
    if status == 429 or status >= 500:
        return StorageUnavailable(f"{where}: the store is in trouble (HTTP {status}): try again later")
    return StorageError(f"{where}: the answer (HTTP {status}) is not S3: is MINIO_HOST the right address?")
