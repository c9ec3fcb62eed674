"""The settings of a service: the only reader of the environment.

The front door of this folder.
"""

from mlpkit.settings.proxy import Proxy, proxy_for
from mlpkit.settings.readers import DATABASE_NAMES, boolean, seconds, size
from mlpkit.settings.settings import (
    IGNORED,
    Settings,
    decode_settings,
    described,
    encode_settings,
    environment_remarks,
    load_settings,
)

__all__ = [
    "DATABASE_NAMES",
    "IGNORED",
    "Proxy",
    "Settings",
    "boolean",
    "decode_settings",
    "described",
    "encode_settings",
    "environment_remarks",
    "load_settings",
    "proxy_for",
    "seconds",
    "size",
]
