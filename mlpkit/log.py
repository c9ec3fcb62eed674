"""One log for the server and its children: loguru set up, the request's uuid in every line, stdlib logging routed in.

Children send their lines as `LogLine`s over their channel; the server writes them where its own lines go. Code of
mlpkit and of users logs through `loguru.logger` (or stdlib logging, warnings, print): nobody needs this module to log.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, TextIO

import msgspec
from loguru import logger as logger

if TYPE_CHECKING:
    from loguru import Message, Record, RecordException

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The uuid of the request that is being worked on, as it stands in the log; `-` where there is none."""

_LEVELS = {"trace": 5, "debug": 10, "info": 20, "success": 25, "warning": 30, "error": 40, "critical": 50}
_LONGEST_UUID = 128
_LONGEST_LINE = 64 * 1024
_MOST_WAITING = 64
_LINE_END = re.compile("\r\n|\n|\r(?=[^\n])")
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class LogLine(msgspec.Struct, array_like=True, frozen=True):
    """One line of the log, as children send it. `time` is in seconds since the epoch, `trace` a traceback or empty."""

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
    if cut.isprintable() and " " not in cut:
        return cut
    return "".join(each if each.isprintable() and each != " " else "?" for each in cut)


def printable(text: str) -> str:
    """The text as it may stand in a log: 64 Ki characters of it, no lone surrogates, no controls but \\n and \\t."""
    if len(text) > _LONGEST_LINE:
        text = f"{text[:_LONGEST_LINE]}… ({len(text):,} characters)"
    if text.isprintable():
        return text
    return text.encode("utf-8", "backslashreplace").decode().translate(_CONTROLS)


@contextmanager
def with_request_id(uuid: str) -> Iterator[None]:
    """Puts `uuid` into every line that is logged inside the block (in this task or thread)."""
    token = request_id.set(printable_uuid(uuid))
    try:
        yield
    finally:
        request_id.reset(token)


def format_text(record: LogLine) -> str:
    """`2026-11-22 14:30:00.123 INFO    [uuid] process source | message`, and the traceback below it.

    Further lines of a message are indented, so that no message can look like a line of its own.
    """
    second = int(record.time)
    stamp = f"{_stamp_of(second)}.{int((record.time - second) * 1000):03d}"
    source = f" {record.source}" if record.source else ""
    text = f"{record.message}\n{record.trace.rstrip()}" if record.trace else record.message
    if "\n" in text:
        text = text.replace("\n", "\n    ")
    return f"{stamp} {record.level:<7} [{record.uuid}] {record.process}{source} | {text}\n"


@lru_cache(maxsize=4)
def _stamp_of(second: int) -> str:
    moment = datetime.datetime.fromtimestamp(second)  # noqa: DTZ006 - people read the log in their own time zone
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def format_json(record: LogLine) -> str:
    """One JSON object a line, with the fields of `LogLine`."""
    return msgspec.json.encode(msgspec.structs.asdict(record)).decode() + "\n"


class LogOutput:
    """Where the lines of this process and of its children go. Lines keep their order; safe from every thread.

    Writing never raises: when the stream is gone, nobody is left to be told.
    """

    def __init__(self, stream: TextIO, format: Callable[[LogLine], str] = format_text, level: str = "info") -> None:
        self._stream, self._format, self._least = stream, format, _LEVELS[level]
        self._lock = threading.Lock()
        self._waiting: list[LogLine] = []

    def write(self, record: LogLine) -> None:
        """Writes a line now, after the lines that were waiting."""
        if _LEVELS.get(record.level.lower(), 20) < self._least:
            return
        with self._lock:
            self._waiting.append(record)
            self._flush()

    def write_soon(self, record: LogLine) -> None:
        """Keeps a line until the next `write` or `flush` (or until 64 wait): for the access log's many lines."""
        if self._least <= _LEVELS["info"]:
            with self._lock:
                self._waiting.append(record)
                if len(self._waiting) >= _MOST_WAITING:
                    self._flush()

    def flush(self) -> None:
        """Writes the lines that are waiting."""
        if self._waiting:
            with self._lock:
                self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        text = "".join(map(self._format, waiting))
        with contextlib.suppress(OSError, ValueError):
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
            self._stream.flush()


def configure(
    *, level: str = "info", format: str = "text", stream: TextIO | None = None, process: str = "server"
) -> LogOutput:
    """Routes loguru, stdlib logging and warnings of this process into one output, and returns it."""
    output = LogOutput(stream or sys.stderr, format_json if format == "json" else format_text, level)
    _route(output.write, process=process, level=level)
    return output


def configure_child(send: Callable[[LogLine], None], *, process: str, level: str = "info") -> None:
    """Routes loguru, stdlib logging, warnings, `print` and stderr of a child into `send`.

    Lines written below Python (by C code, or by a grandchild) are not seen here; the parent reads them from the pipe.
    """
    _route(send, process=process, level=level)


def _route(send: Callable[[LogLine], None], *, process: str, level: str) -> None:
    def sink(message: Message) -> None:
        send(record_of(message, process))

    logger.remove()
    logger.configure(patcher=_add_uuid)
    logger.add(sink, level=_LEVELS[level], format="{message}", backtrace=False, diagnose=False, catch=True)
    logging.basicConfig(handlers=[_StdlibHandler()], level=_LEVELS[level], force=True)
    for noisy in ("asyncio", "urllib3", "filelock", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Off first: logging thinks that it is on where somebody, such as pytest, has put Python's own function back.
    logging.captureWarnings(False)
    logging.captureWarnings(True)


def record_of(message: Message, process: str = "server") -> LogLine:
    """What loguru hands to a sink, as a record that every output and channel can carry."""
    record = message.record
    error = record["exception"]
    return LogLine(
        time=record["time"].timestamp(),
        level=record["level"].name,
        message=printable(record["message"]),
        uuid=printable_uuid(str(record["extra"].get("uuid", request_id.get()))),
        process=process,
        source=f"{record['name']}:{record['line']}",
        trace=printable(_trace_of(error)) if error else "",
    )


def _trace_of(error: RecordException) -> str:
    if error.type is None:
        return ""
    return "".join(traceback.format_exception(error.type, error.value, error.traceback))


def _add_uuid(record: Record) -> None:
    record["extra"].setdefault("uuid", request_id.get())


class _StdlibHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        def place(loguru_record: Record) -> None:
            loguru_record["name"], loguru_record["line"] = record.name, record.lineno

        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        try:
            message = record.getMessage()
        except Exception:  # a KeyError too, for names that the arguments do not have
            message = f"{record.msg} {record.args!r}"
        logger.patch(place).opt(exception=record.exc_info).log(level, "{}", message)


class LineStream(io.TextIOBase):
    """A text stream that hands on whole lines: stands in for `sys.stdout` and `sys.stderr` of a child.

    `on_line(text, redrawn)` is called once a line; `redrawn` is True where a carriage return ended it, as a progress
    bar's. Blank lines are left out; a long line comes in pieces of 64 Ki characters, also before it ends.
    What needs the file itself (`fileno`, `buffer`) gets that of the stream `under` it.
    """

    encoding = "utf-8"

    def __init__(self, on_line: Callable[[str, bool], None], under: TextIO | None = None) -> None:
        super().__init__()
        self._on_line, self._under, self._lock = on_line, under, threading.RLock()
        self._parts: list[str] = []
        self._length = 0
        self._handing_on = False

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        if self._under is None:
            raise io.UnsupportedOperation("fileno")
        return self._under.fileno()

    @property
    def buffer(self) -> BinaryIO:
        if self._under is None:
            raise AttributeError("buffer")
        return self._under.buffer

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() needs a str, not {type(text).__name__}")
        with self._lock:
            if self._handing_on:
                self._write_under(text)
                return len(text)
            held_return = bool(self._parts) and self._parts[-1].endswith("\r")
            self._parts.append(text)
            self._length += len(text)
            if held_return or self._length > _LONGEST_LINE or "\n" in text or "\r" in text:
                self._hand_on_lines()
        return len(text)

    def close(self) -> None:
        """Hands on what is left of a line that never ended."""
        with self._lock:
            rest = "".join(self._parts)
            self._parts.clear()
            self._hand_on(rest.removesuffix("\r"), rest.endswith("\r"))
        super().close()

    def _hand_on_lines(self) -> None:
        # A carriage return at the very end is kept: what comes next tells whether it belongs to a line feed.
        text, start = "".join(self._parts), 0
        self._parts, self._length = [], 0
        for end in _LINE_END.finditer(text):
            self._hand_on(text[start : end.start()], end[0] == "\r")
            start = end.end()
        whole_pieces = (len(text) - start) // _LONGEST_LINE * _LONGEST_LINE
        self._hand_on(text[start : start + whole_pieces], False)
        start += whole_pieces
        if start < len(text):
            self._parts, self._length = [text[start:]], len(text) - start

    def _hand_on(self, line: str, redrawn: bool) -> None:
        if not line.strip():
            return
        self._handing_on = True
        try:
            for start in range(0, len(line), _LONGEST_LINE):
                self._on_line(line[start : start + _LONGEST_LINE], redrawn)
        finally:
            self._handing_on = False

    def _write_under(self, text: str) -> None:
        # Whoever handles a line must not cause the next one: that would never end.
        if self._under is not None:
            with contextlib.suppress(OSError, ValueError):
                self._under.write(text)
                self._under.flush()


def capture_streams(on_redrawn: Callable[[str], object] | None = None) -> None:
    """Turns `print` and what is written to `sys.stderr` into log lines with the uuid of the code that wrote them.

    A line that ends in a carriage return (a progress bar) goes to `on_redrawn`, or nowhere.
    """

    def line_logger(source: str) -> Callable[[str, bool], None]:
        def place(record: Record) -> None:
            record["name"], record["line"] = source, 0

        def on_line(text: str, redrawn: bool) -> None:
            if not redrawn:
                logger.patch(place).info("{}", text)
            elif on_redrawn is not None:
                on_redrawn(text)

        return on_line

    sys.stdout = LineStream(line_logger("stdout"), sys.stdout)
    sys.stderr = LineStream(line_logger("stderr"), sys.stderr)
