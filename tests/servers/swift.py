"""OpenStack Swift with its S3 interface, from PyPI: a real S3 server with signatures, multipart and ranges, on disk.

What: `python -m tests.servers.swift FOLDER` starts its four processes (object, container, account, proxy) in FOLDER,
and writes FOLDER/ready when they answer. Who ends it: itself, when nobody holds FOLDER/users any more (a shared lock,
which the kernel drops when a user ends, however it ends); it ends the four processes and removes the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.secret import MARK
from tests.servers import installed
from tests.servers.installed import NotInstallable
from tests.servers.ports import LONG, accepts, free_port, wait_until

REQUIREMENT = "swift>=2.38,<3"
ACCESS_KEY, SECRET_KEY = "test:tester", f"{MARK}-testing"

_MEMORY = Path("/dev/shm")
ON_DISK = (Path(tempfile.gettempdir()), Path.home())
_KINDS = ("object", "container", "account")
_FILTERS = "catch_errors healthcheck cache listing_formats s3api tempauth copy bulk slo dlo versioned_writes"
_RINGS = """
import sys
from swift.common.ring import RingBuilder
folder = sys.argv[1]
for kind, port in (each.split("=") for each in sys.argv[2:]):
    builder = RingBuilder(4, 1, 1)
    builder.add_dev(dict(id=0, region=1, zone=1, ip="127.0.0.1", port=int(port), device="sdb1", weight=1,
                         replication_ip="127.0.0.1", replication_port=int(port), meta=""))
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{kind}.ring.gz")
"""


def installed_python() -> Path:
    """The Python of a virtual environment with Swift.

    Raises:
        NotInstallable: pip failed.
    """
    return installed.installed_python("swift", REQUIREMENT)


def write_configuration(folder: Path, python: Path) -> None:
    """Writes rings and configurations of the servers into `folder`/etc."""
    etc = folder / "etc"
    (folder / "srv" / "sdb1").mkdir(parents=True)
    etc.mkdir()
    ports = {kind: free_port() for kind in _KINDS}
    (etc / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_prefix = test\nswift_hash_path_suffix = test\n"
        "[storage-policy:0]\nname = gold\ndefault = yes\n"
    )
    for kind, port in ports.items():
        (etc / f"{kind}-server.conf").write_text(
            _defaults(folder, port)
            + f"devices = {folder}/srv\nmount_check = false\ndisable_fallocate = true\nfallocate_reserve = 0\n"
            + f"[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n"
        )
    rings = [f"{kind}={port}" for kind, port in ports.items()]
    subprocess.run([str(python), "-c", _RINGS, str(etc), *rings], check=True, timeout=LONG)
    write_proxy(folder, "proxy-server")


def write_proxy(folder: Path, name: str) -> int:
    """Writes the configuration of a proxy (the S3 interface) over the servers of `folder`; its port."""
    port = free_port()
    options = {
        "cache": f"use = egg:swift#memcache\nmemcache_servers = 127.0.0.1:{free_port()}\n",
        "s3api": "use = egg:swift#s3api\nlocation = us-east-1\n",
        "tempauth": f"use = egg:swift#tempauth\nuser_test_tester = {SECRET_KEY} .admin\n",
        "versioned_writes": "use = egg:swift#versioned_writes\nallow_versioned_writes = true\n",
    }
    filters = "".join(f"[filter:{each}]\n{options.get(each, f'use = egg:swift#{each}')}\n" for each in _FILTERS.split())
    (folder / "etc" / f"{name}.conf").write_text(
        _defaults(folder, port)
        + f"[pipeline:main]\npipeline = {_FILTERS} proxy-server\n"
        + f"[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n{filters}"
    )
    return port


def as_operated(folder: Path, memcache: int) -> None:
    """Makes the configurations those of an operator: a worker for each core, and a memcached, at that port.

    Without memcached the proxy asks for account and container again with every request.
    """
    for file in (folder / "etc").glob("*-server.conf"):
        text = file.read_text().replace("workers = 0", f"workers = {os.cpu_count()}")
        file.write_text(re.sub(r"(memcache_servers = 127\.0\.0\.1:)\d+", rf"\g<1>{memcache}", text))


@contextlib.contextmanager
def operated() -> Iterator[Path]:
    """A server as an operator runs it, its files on a disk; `port_of(folder, "proxy")` is the S3 interface.

    Raises:
        NotInstallable: Swift, or memcached, is not there.
    """
    folder, port = _folder_for(*filter(is_on_disk, ON_DISK)), free_port()
    with contextlib.ExitStack() as after:
        after.callback(shutil.rmtree, folder, ignore_errors=True)
        if shutil.which("memcached") is None:
            raise NotInstallable("memcached is needed: apt-get install memcached")
        command = ["memcached", "-u", _user(), "-l", "127.0.0.1", "-p", str(port), "-t", "1"]
        cache = after.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        after.callback(cache.kill)
        python = installed_python()
        write_configuration(folder, python)
        as_operated(folder, port)
        for kind in (*_KINDS, "proxy"):
            server = start_server(folder, python, kind, f"{kind}-server", group=True)
            after.callback(_end_group, server)
        wait_until(lambda: _all_answer(folder), "Swift answers")
        yield folder


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """Ends a server and its workers, which would go on without it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def start_server(folder: Path, python: Path, kind: str, name: str, group: bool = False) -> subprocess.Popen[bytes]:
    """Starts `swift-<kind>-server` with the configuration `name`; what it says is in `folder`/<name>.log.

    With `group` it is in a process group of its own, together with its workers.
    """
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [str(python), str(python.parent / f"swift-{kind}-server"), str(folder / "etc" / f"{name}.conf")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=group,
        )


def answers(port: int) -> bool:
    """Whether the proxy at the port says that it is well."""
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=2) as found,
    ):
        return bool(found.status == 200)
    return False


def fast_folder() -> Path:
    """A new folder for a server, in memory where possible."""
    return _folder_for(_MEMORY, *ON_DISK)


def is_on_disk(folder: Path) -> bool:
    """Whether its files are on a disk, where there are places whose files are not."""
    mounts = {Path(each.mountpoint): each.fstype for each in psutil.disk_partitions(all=True)}
    kinds = (mounts[each] for each in (folder.resolve(), *folder.resolve().parents) if each in mounts)
    return next(kinds, "") not in ("tmpfs", "ramfs")


def _folder_for(*parents: Path) -> Path:
    """A new folder in the first of these whose files can have extended attributes, which Swift needs.

    Raises:
        NotInstallable: there is none.
    """
    for parent in parents:
        with contextlib.suppress(OSError, AttributeError):
            folder = Path(tempfile.mkdtemp(prefix="mlpkit-swift-", dir=parent))
            with contextlib.ExitStack() as undo:
                undo.callback(shutil.rmtree, folder)
                os.setxattr(folder, "user.swift.probe", b"x" * 200)
                undo.pop_all()
                return folder
    raise NotInstallable("no folder here keeps extended attributes (user xattrs), which Swift needs")


@contextlib.contextmanager
def _running(folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    python = installed_python()
    write_configuration(folder, python)
    servers = [start_server(folder, python, kind, f"{kind}-server") for kind in (*_KINDS, "proxy")]
    try:
        wait_until(lambda: _all_answer(folder) or any(each.poll() is not None for each in servers), "Swift answers")
        yield servers
    finally:
        for each in servers:
            each.kill()
            each.wait()


def _wait_for_the_last_user(folder: Path, servers: list[subprocess.Popen[bytes]]) -> None:
    with (folder / "users").open("a") as users:
        while all(each.poll() is None for each in servers):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.1)


def _defaults(folder: Path, port: int) -> str:
    return (
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\nuser = {_user()}\nswift_dir = {folder}/etc\n"
        f"recon_cache_path = {folder}/cache\nlog_address = /dev/null\nlog_level = WARNING\n"
    )


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def main() -> None:
    """Serves in the folder that the command line names, until the last user is gone."""
    folder = Path(sys.argv[1])
    try:
        with _running(folder) as servers:
            if _all_answer(folder):
                (folder / "ready.new").write_text(str(port_of(folder, "proxy")))
                (folder / "ready.new").rename(folder / "ready")
                _wait_for_the_last_user(folder, servers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _all_answer(folder: Path) -> bool:
    """Whether the proxy is well and the servers behind it, which it does not look at, can be reached."""
    return answers(port_of(folder, "proxy")) and all(accepts(port_of(folder, kind)) for kind in _KINDS)


def port_of(folder: Path, kind: str) -> int:
    """The port that the configuration of the server of that kind names."""
    lines = (folder / "etc" / f"{kind}-server.conf").read_text().splitlines()
    return next(int(line.partition("=")[2]) for line in lines if line.startswith("bind_port"))


if __name__ == "__main__":
    main()
