"""Slurm from the machine's packages (`apt-get install slurm-wlm munge`): a batch system of one node on loopback."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tests.servers.ports import LONG, free_port, wait_until
from tests.servers.s3 import Unavailable

_PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES State=UP
"""


class Slurm:
    """A running batch system with one node.

    Raises:
        Unavailable: Slurm or munge is not installed, or they do not start.
    """

    def __init__(self) -> None:
        # Not below the folders of the tests, which hold no secret: Slurm keeps the environment of its jobs here.
        folder = self._folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        (folder / "state").mkdir()
        configuration = folder / "slurm.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                controller=free_port(),
                daemon=free_port(),
                user=getpass.getuser(),
                folder=folder,
                cpus=os.cpu_count(),
            )
        )
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        self.environment = {"SLURM_CONF": str(configuration)}
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self._start(
                *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"),
                *(f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed"),
            )
            wait_until((folder / "munge.socket").exists, "munge listens")
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D")
            wait_until(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T"), "the node is there")
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Slurm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            [_program(command[0]), *command[1:]],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
        return done.stdout

    def stop(self) -> None:
        """Cancels all jobs, and ends it."""
        if len(self._processes) == 3:
            self.run("scancel", f"--user={getpass.getuser()}")
            wait_until(lambda: not self.run("squeue", "--noheader"), "all jobs have ended")
        for process in reversed(self._processes):
            process.terminate()
            process.wait(LONG)
        shutil.rmtree(self._folder)

    def _start(self, *command: str) -> None:
        with (self._folder / f"{command[0]}.log").open("wb") as log:
            process = subprocess.Popen(
                [_program(command[0]), *command[1:]],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)


def _program(name: str) -> str:
    program = shutil.which(name, path=_PATH)
    if program is None:
        raise Unavailable(f"{name} is not installed (apt-get install slurm-wlm munge)")
    return program
