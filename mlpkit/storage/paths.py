"""Names that come from outside, checked before they are used.

These are locations, `bucket/key`, prefixes and model ids.
"""

from __future__ import annotations

import re
import unicodedata

import msgspec

from mlpkit.errors import UnsafePath

_LONGEST_KEY = 1024
_LONGEST_PART = 255
_LONGEST_NAME = 200
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")


class ObjectStat(msgspec.Struct, frozen=True):
    """What the store says of one object.

    `path` is `bucket/key`, `size` is in bytes.

    `modified` is in seconds since the epoch. `etag` changes whenever the content does; it is not always a checksum.
    """

    path: str
    etag: str
    size: int
    modified: float

    @property
    def bucket(self) -> str:
        """The part before the first slash."""
        return self.path.partition("/")[0]

    @property
    def key(self) -> str:
        """The part after the first slash."""
        return self.path.partition("/")[2]


def location(text: str, field: str, *, bucket: str = "") -> str:
    """The `bucket/key` that a field of a request names.

    With `bucket`, the text is a key in that bucket; without, it begins with a bucket itself.

    Args:
        field: what the message calls the field, such as `data.location`.

    Raises:
        UnsafePath: the text cannot be a path in the store; the message begins with the field.
    """
    name = without_outer_slashes(text)
    path = f"{bucket}/{name}" if bucket else name
    try:
        checked_path(path)
    except UnsafePath as error:
        raise UnsafePath(f"[{field}] {error}") from None
    return path


def without_outer_slashes(text: str) -> str:
    """The path that a caller's text names.

    One slash at the beginning is accepted, because the platform's own pages show paths so. One at the end may mark a
    folder.
    """
    return text.removeprefix("/").removesuffix("/")


def checked_path(path: str) -> tuple[str, str]:
    """The bucket and the key of `bucket/key`.

    Raises:
        UnsafePath: no bucket or no key, `.` or `..`, absolute, an empty part, a backslash, NUL or another control
            character, too long, or a bucket name that S3 does not allow.
    """
    bucket, slash, key = path.partition("/")
    if not slash:
        raise UnsafePath(f"{path!r} is not a path in the store: it must be bucket/key")
    return _checked_bucket(bucket, path), checked_key(key)


def checked_prefix(path: str) -> tuple[str, str]:
    """The bucket and the prefix of `bucket`, `bucket/` or `bucket/folder`.

    The prefix ends with a slash, so that `models/1` does not cover `models/10`; it is empty for a whole bucket.

    Raises:
        UnsafePath: as `checked_path`.
    """
    bucket, _, prefix = path.partition("/")
    prefix = prefix.removesuffix("/")
    return _checked_bucket(bucket, path), checked_key(prefix) + "/" if prefix else ""


def checked_key(key: str) -> str:
    """The key itself, if a path and S3 can have it.

    It has at most 1024 bytes of UTF-8.

    Raises:
        UnsafePath: as `checked_path`.
    """
    parts = key.split("/")
    if not key.strip() or "" in parts:
        raise UnsafePath(f"{key!r} is not a safe path: it has an empty part (a slash first, last, or two in a row)")
    if "." in parts or ".." in parts:
        raise UnsafePath(f"{key!r} is not a safe path: '.' and '..' are not allowed in it")
    _check_characters(key)
    if len(key.encode()) > _LONGEST_KEY or any(len(part.encode()) > _LONGEST_PART for part in parts):
        raise UnsafePath(
            f"{key[:80]!r}... is too long: at most {_LONGEST_KEY} bytes, {_LONGEST_PART} between two slashes"
        )
    return key


def checked_name(model_id: str) -> str:
    """The model id itself, if it can name a file.

    It has at most 200 bytes of UTF-8.

    Raises:
        UnsafePath: it is empty, has a slash, or is not a part of a path that `checked_path` allows.
    """
    if "/" in model_id or not model_id.strip() or model_id in (".", ".."):
        raise UnsafePath(f"{model_id!r} is not a model id: it must be a name without slashes, not empty, '.' or '..'")
    _check_characters(model_id)
    if len(model_id.encode()) > _LONGEST_NAME:
        raise UnsafePath(f"model id {model_id[:80]!r}... is too long: at most {_LONGEST_NAME} bytes")
    return model_id


def _check_characters(name: str) -> None:
    if "\\" in name:
        raise UnsafePath(f"{name!r} is not a safe path: backslashes are not allowed in it")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise UnsafePath(f"{name!r} is not a safe path: control characters are not allowed in it")


def _checked_bucket(bucket: str, path: str) -> str:
    if not bucket:
        raise UnsafePath(f"{path!r} is not a safe path: it must start with a bucket, not with a slash")
    strange = any(pair in bucket for pair in ("..", ".-", "-.")) or _ADDRESS.fullmatch(bucket)
    if not _BUCKET.fullmatch(bucket) or strange:
        raise UnsafePath(
            f"{bucket!r} is not a bucket name: 3 to 63 letters, digits, '.', '-' and '_', "
            "with a letter or digit first and last"
        )
    return bucket
