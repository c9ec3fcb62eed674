"""The S3 server of a test session: one for all workers of xdist, or the one that the environment names."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from tests.servers import swift
from tests.servers.installed import NotInstallable
from tests.servers.ports import LONG, wait_until

_outliving: list[subprocess.Popen[bytes]] = []
"""What other sessions may use longer than this one: it must not be collected while it runs."""


class Unavailable(Exception):
    """There is no S3 server to test with here; the message says why."""


@dataclass(frozen=True)
class S3Server:
    """How to reach the server; `folder` is None for one that is not ours to stop."""

    endpoint: str
    access_key: str
    secret_key: str
    folder: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make a service of mlpkit use this server."""
        return {
            "MINIO_HOST": self.endpoint,
            "MINIO_ACCESS_KEY": self.access_key,
            "MINIO_SECRET_KEY": self.secret_key,
        }


@contextlib.contextmanager
def s3_server(shared: Path) -> Iterator[S3Server]:
    """A running server: the first to ask starts it, and it ends after the last that asked with this `shared` folder.

    `MLPKIT_TEST_S3` (host:port or URL), `MLPKIT_TEST_S3_ACCESS_KEY` and `MLPKIT_TEST_S3_SECRET_KEY` name another one.

    Raises:
        Unavailable: Swift cannot be installed or started.
    """
    if endpoint := os.environ.get("MLPKIT_TEST_S3"):
        access_key = os.environ.get("MLPKIT_TEST_S3_ACCESS_KEY", "")
        yield S3Server(endpoint, access_key, os.environ.get("MLPKIT_TEST_S3_SECRET_KEY", ""))
        return
    try:
        swift.installed_python()
    except (NotInstallable, OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"Swift cannot be installed: {error}") from error
    with contextlib.ExitStack() as held:
        with filelock.FileLock(shared / "swift.lock", timeout=LONG):
            folder = _joined(shared / "swift", held) or _started(shared / "swift", held)
        yield S3Server(f"127.0.0.1:{(folder / 'ready').read_text()}", swift.ACCESS_KEY, swift.SECRET_KEY, folder)


@contextlib.contextmanager
def proxy_of(server: S3Server) -> Iterator[tuple[S3Server, subprocess.Popen[bytes]]]:
    """Another entrance to the same objects, with a process of its own that may be stopped or killed."""
    assert server.folder is not None
    python = swift.installed_python()
    name = f"proxy-{os.getpid()}"
    port = swift.write_proxy(server.folder, name)
    process = swift.start_server(server.folder, python, "proxy", name)
    try:
        wait_until(lambda: swift.answers(port) or process.poll() is not None, "the second proxy answers")
        yield S3Server(f"127.0.0.1:{port}", server.access_key, server.secret_key), process
    finally:
        process.kill()
        process.wait()


def _joined(pointer: Path, held: contextlib.ExitStack) -> Path | None:
    """The folder of the server that runs already, with our share of its lock; None where none does."""
    if not pointer.exists():
        return None
    folder = Path(pointer.read_text())
    with contextlib.suppress(FileNotFoundError, BlockingIOError):
        users = held.enter_context((folder / "users").open("r"))
        fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if (folder / "ready").exists():
            return folder
    return None


def _started(pointer: Path, held: contextlib.ExitStack) -> Path:
    folder = swift.fast_folder()
    users = held.enter_context((folder / "users").open("a"))
    fcntl.flock(users, fcntl.LOCK_SH)
    with (folder / "swift.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.swift", str(folder)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _outliving.append(process)
    wait_until(lambda: (folder / "ready").exists() or process.poll() is not None, "Swift is ready")
    if not (folder / "ready").exists():
        raise Unavailable(f"Swift did not start (exit code {process.returncode})")
    pointer.write_text(str(folder))
    return folder
