"""Readers, which turn the text of a setting into a value.

Each raises ValueError with what is allowed, as the end of the sentence "it must be ...".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_network
from urllib.parse import urlsplit

from mlpkit.errors import did_you_mean

DATABASE_NAMES = (
    *("model", "model.model_id", "model.path", "model.status", "model.loaded", "model.algorithm"),
    *("load_record", "load_record.load_time", "load_record.algorithm"),
    *("model_alias", "model_alias.algorithm", "model_alias.alias", "model_alias.model_id", "model_alias.moved"),
)
"""The tables and columns of the platform that replicas use, in its own words; `model_alias` is mlpkit's own."""
_DATABASES = {
    **dict.fromkeys(("mysql", "mariadb"), "mysql"),
    **dict.fromkeys(("pg", "postgres", "postgresql"), "postgresql"),
    **dict.fromkeys(("mssql", "sqlserver"), "mssql"),
    "sqlite": "sqlite",
}

_BOOLEANS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def boolean(text: str) -> bool:
    """True or False from true/on/yes/1 and false/off/no/0, in any case."""
    try:
        return _BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError("one of on, off, true, false, yes, no, 1, 0") from None


def size(text: str) -> int:
    """Bytes from `512`, `64MiB`, `1.5G` (units are powers of 1024)."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if match is None:
        raise ValueError("a size such as 512, 64MiB or 10GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def seconds(text: str) -> float:
    """Seconds from `1.5`, `30s`, `5m`, `2h` or `30d`."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d+)?)\s*([smhd]?)\s*", text.lower())
    if match is None:
        raise ValueError("a time such as 1.5, 30s, 5m, 2h or 30d")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def period(text: str) -> float:
    """Seconds from 0.1 to 3600, as `seconds` reads them."""
    if not 0.1 <= (value := seconds(text)) <= 3600:
        raise ValueError("a time from 0.1s to 1h")
    return value


def time_limit(text: str) -> float:
    """Seconds above 0, as `seconds` reads them."""
    if (value := seconds(text)) <= 0:
        raise ValueError("a time above 0")
    return value


def natural(minimum: int) -> Callable[[str], int]:
    """A reader of whole numbers of at least `minimum`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\s*\d{1,9}\s*", text) or int(text) < minimum:
            raise ValueError(f"a whole number of at least {minimum}")
        return int(text)

    return parse


def choice(*allowed: str) -> Callable[[str], str]:
    """A reader of one of these words, in any case."""

    def parse(text: str) -> str:
        if text.strip().lower() not in allowed:
            raise ValueError("one of " + ", ".join(allowed))
        return text.strip().lower()

    return parse


def choice_or_boolean(*words: str) -> Callable[[str], str]:
    """A reader of on, off, as `boolean` spells them, or these words."""

    def parse(text: str) -> str:
        word = text.strip().lower()
        if word in words:
            return word
        try:
            return "on" if boolean(word) else "off"
        except ValueError as error:
            raise ValueError(f"{error}, {', '.join(words)}") from None

    return parse


def names(text: str) -> tuple[str, ...]:
    """Names that are separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def networks(text: str) -> tuple[str, ...]:
    """IP networks, or single addresses, that are separated by commas."""
    for network in (found := names(text)):
        try:
            ip_network(network)
        except ValueError as error:
            raise ValueError(f"networks such as 10.0.0.0/8,192.168.1.7: {error}") from None
    return found


def webhook_url(text: str) -> str:
    """The URL of a webhook."""
    parts = urlsplit(text.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ValueError("a URL such as https://example.com/hook, without credentials")
    return text.strip()


def webhook_secret(text: str) -> str:
    """A secret of Standard Webhooks, with 24 to 64 bytes in base64."""
    match = re.fullmatch(r"whsec_([A-Za-z0-9+/]{32,86}={0,2})", text.strip())
    if match is None or len(match[1]) % 4:
        raise ValueError("whsec_ and then base64 of 24 to 64 random bytes")
    return text.strip()


def port(text: str) -> int:
    """A TCP port."""
    if not re.fullmatch(r"\s*\d{1,5}\s*", text) or not 1 <= int(text) <= 65535:
        raise ValueError("a port from 1 to 65535")
    return int(text)


def prefix(text: str) -> str:
    """A path with a slash first and last."""
    if not text.startswith("/"):
        raise ValueError("a path that starts with a slash: urls must start with a leading slash")
    return text if text.endswith("/") else text + "/"


def database(text: str) -> str:
    """One of the kinds of database, from one of its names."""
    try:
        return _DATABASES[text.strip().lower()]
    except KeyError:
        raise ValueError("one of " + ", ".join(_DATABASES)) from None


def database_names(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs of a name of `DATABASE_NAMES` and its name here.

    They are read from a text such as `model=models,model.path=file`.
    """
    pairs = [tuple(part.strip() for part in pair.split("=", 1)) for pair in names(text)]
    for pair in pairs:
        if len(pair) != 2 or not pair[1]:
            raise ValueError("names such as model=models,model.path=location,load_record.load_time=changed")
        if pair[0] not in DATABASE_NAMES:
            raise ValueError(
                f"about {', '.join(DATABASE_NAMES)}, not {pair[0]!r}{did_you_mean(pair[0], DATABASE_NAMES)}"
            )
    return tuple((pair[0], pair[1]) for pair in pairs)


def store_url(text: str) -> str:
    """The URL of a store."""
    text = text.strip()
    if not re.match(r"[a-z][a-z0-9+.-]*://", text) or "@" in text:
        raise ValueError("a URL without credentials, such as s3://minio:9000 or folder:///srv/store")
    return text
