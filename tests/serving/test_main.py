"""The process of a worker, without a server that would tell it what to do."""

from __future__ import annotations

import socket
import subprocess
import sys

from tests.servers import LONG


def test_worker_whose_server_is_gone_before_its_first_message_ends() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "mlpkit.serving", str(theirs.fileno())]
        worker = subprocess.Popen(command, pass_fds=(theirs.fileno(),))
    ours.close()
    try:
        assert worker.wait(LONG) == 0
    finally:
        worker.kill()
        worker.wait()
