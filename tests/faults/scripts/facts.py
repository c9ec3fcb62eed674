"""A script whose training writes down what its process has found of its surroundings."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import re
import signal
import stat
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from loguru import logger

from mlpkit import App

app = App("facts")


@app.train
def train(parameters: dict[str, str]) -> None:
    file = Path(parameters["file"])
    # It is complete when it is there.
    file.with_suffix(".part").write_text(json.dumps(facts()))
    file.with_suffix(".part").rename(file)


@app.load
def load() -> None:
    pass


def facts() -> dict[str, Any]:
    return {
        "signals": re.findall(r"^Sig(?:Blk|Ign|Cgt):.*", Path("/proc/self/status").read_text(), re.MULTILINE),
        "interrupted": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "wake-up": signal.set_wakeup_fd(-1),
        "crash dumps": faulthandler.is_enabled(),
        "session": os.getsid(0) == os.getpgid(0) == os.getpid(),
        "name": Path("/proc/self/comm").read_text().strip(),
        "arguments": len(sys.argv),
        "program": sys.modules["__main__"].__name__,
        "threads": threading.active_count(),
        "descriptors": sorted(map(kind, os.listdir("/proc/self/fd"))),
        "streams": [of_stream(each) for each in (sys.__stdin__, sys.__stdout__, sys.__stderr__)],
        "log": len(logger._core.handlers),  # type: ignore[attr-defined]
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count() > 0),
        "search path": sys.path,
        "debugger": (sys.gettrace(), sys.getprofile()),
    }


def of_stream(stream: TextIO | None) -> dict[str, Any]:
    assert stream is not None
    names = ("encoding", "errors", "line_buffering", "write_through", "name", "mode")
    return {**{each: getattr(stream, each) for each in names}, "terminal": stream.isatty()}


def kind(descriptor: str) -> str:
    try:
        return str(stat.S_IFMT(os.fstat(int(descriptor)).st_mode))
    except OSError:
        return ""
