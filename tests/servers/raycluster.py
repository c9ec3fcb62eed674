"""A Ray cluster of several nodes on loopback, in a process of its own: `python -m tests.servers.raycluster NODES`.

It prints the address of the cluster when all nodes are there, then one line for each command that it reads: `kill N`
kills node N with its processes, `kill head` the head, `pids` tells the processes of Ray. At the end of its input it
ends everything.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

ENVIRONMENT = {
    # Everything listens on 127.0.0.1 only.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
}


class RayCluster:
    """A running cluster; node 0 is its head. `options` are those of `ray start` for each node."""

    def __init__(self, nodes: Sequence[dict[str, Any]]) -> None:
        # Short: the paths of Ray's sockets are below it, and have a limit.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self._log = (self._folder / "cluster.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.raycluster", json.dumps(list(nodes))],
            env={**os.environ, **ENVIRONMENT, "RAY_TMPDIR": str(self._folder)},
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self.address = self._answer()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make a service use this cluster."""
        return {**ENVIRONMENT, "RAY_ADDRESS": self.address, "MLPKIT_ENGINE": "ray"}

    def kill(self, node: int) -> None:
        """Kills all processes of a node, as a power cut would."""
        self._tell(f"kill {node}")

    def node_ids(self) -> list[str]:
        """The ids of the nodes, the head first."""
        found: list[str] = json.loads(self._tell("ids"))
        return found

    def stop(self) -> None:
        """Ends the cluster and every process of it."""
        family = psutil.Process(self._process.pid).children(recursive=True) if self._process.poll() is None else []
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.kill()
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _tell(self, command: str) -> str:
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == "answer":
                return rest
        raise RuntimeError(f"the cluster has ended: {(self._folder / 'cluster.log').read_text()[-2000:]}")


def is_installed() -> bool:
    """Whether this Python has Ray."""
    return importlib.util.find_spec("ray") is not None


@contextlib.contextmanager
def ray_cluster(nodes: Sequence[dict[str, Any]]) -> Iterator[RayCluster]:
    """A running cluster of these nodes; it ends with the block."""
    cluster = RayCluster(nodes)
    try:
        yield cluster
    finally:
        cluster.stop()


def main() -> None:
    """Runs the cluster until the end of the input."""
    from ray.cluster_utils import Cluster

    usual = {"include_dashboard": False, "object_store_memory": 100 << 20}
    cluster = Cluster()
    nodes = [cluster.add_node(**usual, **options) for options in json.loads(sys.argv[1])]
    cluster.wait_for_nodes()
    print("answer", cluster.address, flush=True)
    for line in sys.stdin:
        match line.split():
            case ["kill", number]:
                node = nodes[int(number)]
                for infos in node.all_processes.values():
                    for info in infos:
                        family = psutil.Process(info.process.pid)
                        for each in [family, *family.children(recursive=True)]:
                            with contextlib.suppress(psutil.NoSuchProcess):
                                each.send_signal(signal.SIGKILL)
                print("answer killed", flush=True)
            case ["ids"]:
                print("answer", json.dumps([node.node_id for node in nodes]), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
