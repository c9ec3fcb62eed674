"""MariaDB from the machine's packages (`apt-get install mariadb-server`), with a data folder of the tests' own."""

from __future__ import annotations

import getpass
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.database import PASSWORD, USER, DatabaseServer, run
from tests.servers.ports import free_port
from tests.servers.s3 import Unavailable

_PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


@contextmanager
def mariadb() -> Iterator[DatabaseServer]:
    """A running server, gone with its data at the end.

    Raises:
        Unavailable: it is not installed, or does not start.
    """
    server, installer = (shutil.which(name, path=_PLACES) for name in ("mariadbd", "mariadb-install-db"))
    if server is None or installer is None:
        raise Unavailable("MariaDB is not installed (apt-get install mariadb-server)")
    folder = Path(tempfile.mkdtemp(prefix="mlpkit-mariadb-"))
    # Two servers that are installed at the same time would meet in the common folder for temporary files.
    (folder / "tmp").mkdir()
    places = (f"--user={getpass.getuser()}", f"--datadir={folder}/data", f"--tmpdir={folder}/tmp")
    port = free_port()
    (folder / "init.sql").write_text(
        f"CREATE USER '{USER}'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO '{USER}'@'127.0.0.1';\n"
    )
    command = [
        *(server, "--no-defaults", *places, "--bind-address=127.0.0.1", f"--port={port}"),
        *(f"--socket={folder}/socket", f"--pid-file={folder}/pid", "--skip-name-resolve"),
        *("--character-set-server=utf8mb4", "--innodb-buffer-pool-size=32M", "--performance-schema=OFF"),
        "--innodb-flush-log-at-trx-commit=0",
    ]
    running = DatabaseServer("mysql", "mysql+pymysql", port, command, folder)
    try:
        run([installer, "--no-defaults", *places, "--skip-test-db"])
        running.command = [*command, f"--init-file={folder}/init.sql"]
        running.start()
        running.command = command
        yield running
    except OSError as error:
        raise Unavailable(f"MariaDB cannot be started: {error}") from error
    finally:
        running.remove()
