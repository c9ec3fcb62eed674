"""One log for the server and all its children: loguru set up, the request's uuid in every line, stdlib logging routed in.

Children send their lines as `LogRecord`s over their channel; the server writes them where its own lines go. Code of mlpkit
and of users logs through `loguru.logger` (or stdlib logging, warnings, print): nobody needs this module to log a line.
"""

from __future__ import annotations

import datetime
import io
import logging
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
from loguru import logger

if TYPE_CHECKING:
    from loguru import Message

request_uuid: ContextVar[str] = ContextVar("request_uuid", default="-")
"""The uuid of the request that is being worked on, as it stands in the log; `-` where there is none."""

_LEVELS = {"trace": 5, "debug": 10, "info": 20, "success": 25, "warning": 30, "error": 40, "critical": 50}
_LONGEST_UUID = 128


class LogRecord(msgspec.Struct, array_like=True, frozen=True):
    """One line of the log, as children send it. `time` is in seconds since the epoch; `trace` is a traceback or empty."""

    time: float
    level: str
    message: str
    uuid: str = "-"
    process: str = "server"
    source: str = ""
    trace: str = ""


def printable_uuid(uuid: str) -> str:
    """The uuid as it may stand in a log line: no control characters, at most 128 characters."""
    cut = uuid if len(uuid) <= _LONGEST_UUID else uuid[:_LONGEST_UUID] + "…"
    return cut if cut.isprintable() and " " not in cut else "".join(c if c.isprintable() and c != " " else "?" for c in cut)


@contextmanager
def uuid_bound(uuid: str) -> Iterator[None]:
    """Puts `uuid` into every line that is logged inside the block (in this task or thread)."""
    token = request_uuid.set(printable_uuid(uuid))
    try:
        yield
    finally:
        request_uuid.reset(token)


def format_text(record: LogRecord) -> str:
    """`2026-11-22 14:30:00.123 INFO    [uuid] process source | message`, and the traceback below it."""
    moment = datetime.datetime.fromtimestamp(record.time)  # noqa: DTZ006 - people read the log in their own time zone
    stamp = moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"
    source = f" {record.source}" if record.source else ""
    line = f"{stamp} {record.level:<7} [{record.uuid}] {record.process}{source} | {record.message}\n"
    return line + record.trace.rstrip("\n") + "\n" if record.trace else line


def format_json(record: LogRecord) -> str:
    """One JSON object a line, with the fields of `LogRecord`."""
    return msgspec.json.encode(msgspec.structs.asdict(record)).decode() + "\n"


class LogOutput:
    """Where the lines of this process and of its children go. Lines keep their order; safe from every thread."""

    def __init__(self, stream: TextIO, format: Callable[[LogRecord], str] = format_text, level: str = "info") -> None:
        self._stream, self._format, self._least = stream, format, _LEVELS[level]
        self._lock = threading.Lock()
        self._waiting: list[str] = []

    def write(self, record: LogRecord) -> None:
        """Writes a line now, after the lines that were waiting."""
        if _LEVELS.get(record.level.lower(), 20) < self._least:
            return
        with self._lock:
            self._waiting.append(self._format(record))
            self._flush()

    def write_soon(self, record: LogRecord) -> None:
        """Keeps a line until the next `write` or `flush`: for lines that come by the thousand, such as the access log."""
        if self._least <= _LEVELS["info"]:
            self._waiting.append(self._format(record))

    def flush(self) -> None:
        """Writes the lines that are waiting."""
        if self._waiting:
            with self._lock:
                self._flush()

    def _flush(self) -> None:
        lines, self._waiting = self._waiting, []
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
        except (OSError, ValueError):
            # The log's reader is gone, or the stream is closed at exit: nobody is left to be told.
            pass


def configure(*, level: str = "info", format: str = "text", stream: TextIO | None = None) -> LogOutput:
    """Routes loguru, stdlib logging and warnings of this process into one output, and returns it."""
    output = LogOutput(stream or sys.stderr, format_json if format == "json" else format_text, level)
    _route(output.write, process="server", level=level)
    return output


def configure_child(send: Callable[[LogRecord], None], *, process: str, level: str = "info") -> None:
    """Routes loguru, stdlib logging, warnings, `print` and stderr of a child into `send`.

    Lines written below Python (by C code, or by a grandchild) are not seen here; the parent reads them from the pipe.
    """
    _route(send, process=process, level=level)


def _route(send: Callable[[LogRecord], None], *, process: str, level: str) -> None:
    def sink(message: Message) -> None:
        record = message.record
        error = record["exception"]
        send(
            LogRecord(
                time=record["time"].timestamp(),
                level=record["level"].name,
                message=record["message"],
                uuid=record["extra"].get("uuid", "-"),
                process=process,
                source=f"{record['name']}:{record['line']}",
                trace="".join(traceback.format_exception(error.type, error.value, error.traceback)) if error else "",
            )
        )

    logger.remove()
    logger.configure(patcher=_add_uuid)
    logger.add(sink, level=_LEVELS[level], format="{message}", catch=True)
    logging.basicConfig(handlers=[_StdlibHandler()], level=_LEVELS[level], force=True)
    for noisy in ("asyncio", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    warnings.simplefilter("default", UserWarning)


def _add_uuid(record: Any) -> None:
    record["extra"].setdefault("uuid", request_uuid.get())


class _StdlibHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        def place(loguru_record: Any) -> None:
            loguru_record["name"], loguru_record["line"] = record.name, record.lineno

        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = f"{record.msg} {record.args!r}"
        logger.patch(place).opt(exception=record.exc_info).log(level, "{}", message)


class LineStream(io.TextIOBase):
    """A text stream that hands on whole lines: stands in for `sys.stdout` and `sys.stderr` of a child.

    `on_line(text, redrawn)` is called once a line; `redrawn` is True where a carriage return ended it, as a progress bar's.
    """

    def __init__(self, on_line: Callable[[str, bool], None]) -> None:
        super().__init__()
        self._on_line, self._rest, self._lock = on_line, "", threading.RLock()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:
        return "utf-8"

    def write(self, text: str) -> int:
        with self._lock:
            self._rest += text
            if "\n" in text or "\r" in text:
                *lines, self._rest = self._rest.replace("\r\n", "\n").splitlines(keepends=True) + [""]
                if lines and not lines[-1].endswith(("\n", "\r")):
                    self._rest = lines.pop()
                for line in lines:
                    self._hand_on(line.rstrip("\r\n"), line.endswith("\r"))
        return len(text)

    def close(self) -> None:
        """Hands on what is left of a line that never ended."""
        with self._lock:
            rest, self._rest = self._rest, ""
            self._hand_on(rest, False)
        super().close()

    def _hand_on(self, line: str, redrawn: bool) -> None:
        if line.strip():
            self._on_line(line, redrawn)


def capture_streams(on_redrawn: Callable[[str], None] | None = None) -> None:
    """Turns `print` and what is written to `sys.stderr` into log lines with the uuid of the code that wrote them.

    A line that ends in a carriage return (a progress bar) goes to `on_redrawn`, or nowhere.
    """

    def line_logger(source: str) -> Callable[[str, bool], None]:
        def on_line(text: str, redrawn: bool) -> None:
            if not redrawn:
                logger.patch(lambda record: record.update(name=source, line=0)).info("{}", text)
            elif on_redrawn is not None:
                on_redrawn(text)

        return on_line

    sys.stdout = LineStream(line_logger("stdout"))
    sys.stderr = LineStream(line_logger("stderr"))


def access_line(process: str, uuid: str, text: str) -> LogRecord:
    """The record of one request, cheaper to make than through loguru."""
    return LogRecord(time.time(), "INFO", text, uuid, process, "access")
