"""The HTTP proxy that the environment names for a URL.

`http_proxy`, `https_proxy` and `no_proxy`, as curl and Python's own clients read them.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from mlpkit.errors import SettingsError


@dataclass(frozen=True)
class Proxy:
    """A proxy; `authorization` is its `Proxy-Authorization`, or empty."""

    url: str
    authorization: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What a request to the proxy must have."""
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}


def proxy_for(url: str) -> Proxy | None:
    """The proxy for this URL; None if it is asked directly.

    A loopback address is never asked through a proxy.

    Raises:
        SettingsError: what the environment names is not the URL of a proxy.
    """
    import urllib.request  # it takes a megabyte, and most services need no proxy's name

    parts = urlsplit(url)
    host = parts.hostname or ""
    found = urllib.request.getproxies().get(parts.scheme, "")
    loopback = host == "localhost" or host.startswith("127.") or host == "::1"
    if not found or loopback or urllib.request.proxy_bypass(parts.netloc):
        return None
    proxy = urlsplit(found if "://" in found else f"http://{found}")
    if not proxy.hostname:
        raise SettingsError(f"{parts.scheme}_proxy is not the URL of a proxy, such as http://proxy:3128")
    place = f"{proxy.scheme}://{proxy.netloc.rpartition('@')[2]}"
    if not proxy.username:
        return Proxy(place)
    user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return Proxy(place, f"Basic {base64.b64encode(user.encode()).decode()}")
