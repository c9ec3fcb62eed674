"""The log of one job, in addition to the service's log."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import msgspec

from mlpkit.log import LogLine, context_fields, format_text, printable_uuid
from mlpkit.training.progress import BarLines

_LONGEST_NAME = 200
BARS_SHARE = 10
"""Progress bars may take one tenth of a job's log."""


def file_name(model_id: str) -> str:
    """A file name for a model id; no two ids share one.

    It is the id itself if that is plain; otherwise it is escaped.
    """
    name = quote(model_id, safe="", errors="surrogatepass")
    return name if len(name) <= _LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()


class Output(Protocol):
    """Where the lines go too: the service's log (`LogOutput`) is one."""

    def write(self, line: LogLine) -> None:
        """Writes a line now."""

    def write_soon(self, line: LogLine) -> None:
        """Takes a line that may wait for `flush`."""

    def flush(self) -> None:
        """Writes the lines that wait."""


class JobLog:
    """Takes the lines of one job.

    Lines past `limit` bytes are counted and dropped, in the service's log too. Use it from one thread, as a context
    manager: at the end it says how much was dropped. `on_line` is called for each line, also for one that is dropped.
    `used` is how many bytes of the limit were used before, if another file has them.
    """

    def __init__(
        self,
        path: Path,
        limit: int,
        output: Output,
        uuid: str,
        on_line: Callable[[], None] | None = None,
        *,
        used: int | None = None,
    ) -> None:
        self.path = path
        self._limit = limit
        self._output = output
        self._uuid = printable_uuid(uuid)
        self._fields = context_fields()
        self._on_line = on_line
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "ab")
        self._size = os.fstat(descriptor).st_size if used is None else used
        self._dropped_lines = 0
        self._dropped_bytes = 0
        self._child_lines = 0
        self._child_bytes = 0
        self._broken = False
        self._bars = BarLines(lambda text: self.write(self._record(text, "INFO", "bar")), limit // BARS_SHARE)

    def __enter__(self) -> JobLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def room(self) -> int:
        """Bytes that the log still takes."""
        return max(0, self._limit - self._size)

    def write(self, record: LogLine, *, always: bool = False) -> None:
        """Writes a line of the job; with `always` it is never dropped."""
        if self._on_line is not None:
            self._on_line()
        if not self.room and not always:
            self._drop(record.message)
            return
        line = format_text(record).encode("utf-8", "replace")
        self._size += len(line)
        self._output.write_soon(record)
        self._try(lambda: self._file.write(line))

    def write_output(self, lines: list[LogLine]) -> None:
        """Writes what was written to the pipe, for example by C code."""
        for line in lines:
            if not self._bars.take(line.message):
                own = line.uuid != "-"
                self.write(line if own else msgspec.structs.replace(line, uuid=self._uuid, fields=self._fields))
        self.flush()

    def drop_output(self, lines: int, size: int) -> bool:
        """Counts further output if the log is full; whether it is."""
        if self.room:
            return False
        self._dropped_lines += lines
        self._dropped_bytes += size
        return True

    def say(self, text: str, level: str = "INFO", trace: str = "") -> None:
        """Writes what mlpkit itself has to say about the job; never dropped."""
        self.write(self._record(text, level, trace=trace), always=True)
        self.flush()

    def count_dropped(self, lines: int, size: int) -> None:
        """Notes how much the child itself has dropped so far."""
        self._child_lines = lines
        self._child_bytes = size

    def flush(self) -> None:
        """Makes the lines visible to readers, in the service's log too."""
        self._output.flush()
        if not self._file.closed and self._try(self._file.flush):
            self._broken = False

    def close(self) -> None:
        """Says how much was dropped, if anything was, and closes the file."""
        self._bars.flush()
        self._output.flush()
        lines = self._dropped_lines + self._child_lines
        size = self._dropped_bytes + self._child_bytes
        if lines:
            self.say(
                f"{lines:,} more lines ({size:,} bytes) were not kept: the log of a job holds {self._limit:,} bytes "
                "(MLPKIT_JOB_LOG_SIZE)",
                "WARNING",
            )
        with contextlib.suppress(OSError):
            self._file.close()

    def _try(self, step: Callable[[], object]) -> bool:
        """Whether the step could be done.

        A full disk must not end a training; the service's log has the line.
        """
        try:
            step()
        except OSError as error:
            if not self._broken:
                why = f"the job's own log cannot be written ({error.strerror or error}): lines may be missing there"
                self._output.write(self._record(why, "WARNING"))
            self._broken = True
            return False
        return True

    def _drop(self, text: str) -> None:
        self._dropped_lines += 1
        self._dropped_bytes += len(text) + 1

    def _record(self, text: str, level: str, source: str = "", trace: str = "") -> LogLine:
        return LogLine(time.time(), level, text, self._uuid, "train", source, trace, self._fields)
