"""A debugger for a child process: `MLPKIT_DEBUGPY`."""

from __future__ import annotations

import os
import socket

from mlpkit.errors import SettingsError
from mlpkit.log import logger

_HOST = "127.0.0.1"
"""A debugger can run any code, so only programs of this machine may attach."""
_MOST_PORTS = 100


def listen_for_debugger(port: int | None) -> None:
    """Lets a debugger attach to this process, unless `port` is None.

    Several processes may get the same `port`: each takes the first from there on that is free, and logs it.

    Raises:
        SettingsError: debugpy is not installed, or no port is free.
    """
    if port is None:
        return
    # Its warning about frozen modules is about those of Python itself.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    try:
        import debugpy
    except ModuleNotFoundError as error:
        raise SettingsError("MLPKIT_DEBUGPY needs the package debugpy: pip install debugpy") from error
    last = min(port + _MOST_PORTS, 2**16) - 1
    for candidate in range(port, last + 1):
        if not _is_free(candidate):
            continue
        try:
            debugpy.listen((_HOST, candidate))
        except RuntimeError as error:
            # Another process may have taken the port meanwhile.
            if _is_free(candidate):
                raise SettingsError(f"MLPKIT_DEBUGPY: debugpy cannot listen on {_HOST}:{candidate}: {error}") from error
        else:
            logger.info("a debugger can attach to {}:{} (process {})", _HOST, candidate, os.getpid())
            return
    raise SettingsError(f"MLPKIT_DEBUGPY: no port from {port} to {last} is free on {_HOST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True
