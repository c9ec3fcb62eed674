"""Texts become values: sizes, times, choices and lists, as settings and options are written.

Every reader raises ValueError with what is allowed, as the end of the sentence "it must be ...".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_network

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
