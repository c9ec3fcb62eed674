"""Several platforms, one service: the store of the platform that sent a request, in place of the service's own."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

import msgspec

from mlpkit.errors import ArgumentError
from mlpkit.settings import Settings
from mlpkit.storage.paths import endpoint_of

_PORT = 9000


def settings_for(settings: Settings, extend: str | bytes) -> Settings:
    """The settings with the caller's own store, where `MLPKIT_REMOTE_STORAGE` is on and `extend` has a `remote_ip`.

    The service writes `remote_ip` itself: it is the address that the request came from. The caller's store has the
    port, the keys and the buckets of the service's own.

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
        raise ArgumentError("[extend.remote_ip] is no IP address") from None
    if not any(address in ip_network(network) for network in settings.remote_allow):
        raise ArgumentError(f"the store of {address} may not be used: it is not among MLPKIT_REMOTE_ALLOW")
    own, secure = endpoint_of(settings)
    port = urlsplit(f"//{own}").port or _PORT
    host = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
    return settings.with_options(minio_host=f"{host}:{port}", minio_secure=secure)


def _address(text: str) -> IPv4Address | IPv6Address:
    """The address; that of IPv4 where a socket for both has written it as one of IPv6 (`::ffff:10.0.0.1`)."""
    address = ip_address(text)
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
