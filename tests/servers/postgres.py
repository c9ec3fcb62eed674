"""PostgreSQL from the machine's packages (`apt-get install postgresql`), with a data folder of the tests' own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.database import PASSWORD, USER, DatabaseServer, run
from tests.servers.ports import free_port
from tests.servers.s3 import Unavailable


@contextmanager
def postgres() -> Iterator[DatabaseServer]:
    """A running server, gone with its data at the end.

    Raises:
        Unavailable: it is not installed, or does not start.
    """
    binaries = _binaries()
    folder = Path(tempfile.mkdtemp(prefix="mlpkit-postgres-"))
    (folder / "password").write_text(PASSWORD)
    # The server refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        for each in (folder, folder / "password"):
            shutil.chown(each, user)
    port, data = free_port(), str(folder / "data")
    command = [
        *(f"{binaries}/postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)),
        *("-c", "fsync=off", "-c", "shared_buffers=32MB"),
    ]
    running = DatabaseServer("postgresql", "postgresql+psycopg", port, command, folder, user)
    try:
        login = ["-U", USER, "-A", "scram-sha-256", f"--pwfile={folder}/password"]
        run([f"{binaries}/initdb", "-D", data, *login, "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"], user=user)
        running.start()
        yield running
    except OSError as error:
        raise Unavailable(f"PostgreSQL cannot be started: {error}") from error
    finally:
        running.remove()


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    if (command := shutil.which("initdb")) is not None:
        return Path(command).parent
    raise Unavailable("PostgreSQL is not installed (apt-get install postgresql)")
