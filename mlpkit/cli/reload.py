"""`mlpkit run --reload`: a process that serves, and this one, which starts it again when a file changes.

The serving process is stopped with SIGTERM, so that it ends its children; Ctrl-C reaches both.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from mlpkit.errors import ArgumentError

_STOP_SECONDS = 40.0
_ENDINGS = (".py", ".toml", ".json", ".yaml", ".yml")


def run_again_on_change(target: str) -> None:
    """Serves with the arguments of this process, again after every change, until Ctrl-C or SIGTERM."""
    try:
        from watchfiles import watch
    except ImportError:
        raise ArgumentError("--reload needs the package watchfiles: pip install 'mlpkit[reload]'") from None

    folder = _folder(target)
    signal.signal(signal.SIGTERM, _interrupt)
    process = _start()
    try:
        for changes in watch(
            folder, watch_filter=lambda _, path: is_source(path.removeprefix(str(folder))), raise_interrupt=True
        ):
            changed = ", ".join(sorted({Path(path).name for _, path in changes}))
            print(f"{changed} changed: starting again", file=sys.stderr, flush=True)
            _stop(process)
            process = _start()
    except KeyboardInterrupt:
        pass
    finally:
        _stop(process)


def is_source(path: str) -> bool:
    """Whether a file, named from the watched folder, is what a service is made from: code, or settings."""
    *folders, name = Path(path).parts
    if any(each.startswith(".") or each == "__pycache__" for each in folders):
        return False
    return name == ".env" or (name.endswith(_ENDINGS) and not name.startswith("."))


def _folder(target: str) -> Path:
    file = Path(target.rpartition(":")[0] or target)
    return file.resolve().parent if file.suffix == ".py" and file.exists() else Path.cwd()


def _start() -> subprocess.Popen[bytes]:
    arguments = [each for each in sys.argv[1:] if each != "--reload"]
    return subprocess.Popen([sys.executable, "-m", "mlpkit", *arguments])  # noqa: S603 - our own command line


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
