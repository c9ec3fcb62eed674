"""The guard: a shell that kills the children of a killed server.

It runs a moment longer than the server, and kills the process groups of its children.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading

from mlpkit.log import logger

_SCRIPT = """
trap '' HUP INT TERM
groups=''
while read -r sign group; do
    kept=''
    for each in $groups; do [ "$each" = "$group" ] || kept="$kept $each"; done
    groups=$kept
    [ "$sign" = + ] && groups="$groups $group"
done
for each in $groups; do kill -s KILL -- "-$each" 2>/dev/null; done
"""


class Guard:
    """Tells the shell which process groups to kill.

    The shell kills them when the server's pipe closes. If the shell itself is killed, another one is started.
    """

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._shell: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def watch(self, group: int) -> None:
        """Adds a process group."""
        with self._lock:
            self._groups.add(group)
            self._tell(f"+ {group}\n")

    def forget(self, group: int) -> None:
        """Takes a process group out: it has ended."""
        with self._lock:
            if group in self._groups:
                self._groups.discard(group)
                self._tell(f"- {group}\n")

    def _tell(self, line: str) -> None:
        if self._shell is None or self._shell.poll() is not None:
            ended = self._shell
            try:
                self._shell = _start_shell()
            except OSError as error:
                # The caller, which starts or ends a child, cannot do anything about it; the next call tries again.
                logger.error(
                    "the guard cannot be started; if the server is killed, its children may keep running: {}", error
                )
                return
            if ended is not None and ended.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    ended.stdin.close()
            line = "".join(f"+ {group}\n" for group in self._groups)
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._replace, args=(self._shell,), name="mlpkit-guard", daemon=True).start()
        assert self._shell.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.write(line.encode())
            self._shell.stdin.flush()

    def _replace(self, shell: subprocess.Popen[bytes]) -> None:
        """Starts another shell as soon as this one has been killed."""
        shell.wait()
        with self._lock:
            if self._groups and self._shell is shell:
                self._tell("")


def _start_shell() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - the command is a constant
        ["/bin/sh", "-c", _SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


guard = Guard()
"""The guard of this process."""
