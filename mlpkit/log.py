"""One log for the server and its children.

Every line has its time, level, request and process.

mlpkit's own lines go through `logger` of this module, which nothing that a script does can change. What the author's
code prints or logs in a child is caught at its standard streams (`processes/output.py`) and sent to the server, which
writes it to the same place as its own lines.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import logging
import os
import re
import select
import socket
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

if TYPE_CHECKING:
    from loguru import Message, Record

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request that is being worked on, as the log shows it; `-` if there is none."""
traceparent: ContextVar[str] = ContextVar("traceparent", default="")
"""The trace that this work belongs to, in the form of W3C Trace Context; empty if there is none."""
_NO_SUBJECT: Mapping[str, str] = {}
subject: ContextVar[Mapping[str, str]] = ContextVar("subject", default=_NO_SUBJECT)
"""What this task or thread works on: `algorithm` and `model_id`, as far as they are known."""

LEVELS = {"trace": 5, "debug": 10, "info": 20, "success": 25, "warning": 30, "error": 40, "critical": 50}
_COUNTED = (10, 100, 1000, 10_000)
_LONGEST_ID = 128
LONGEST_LINE = 64 * 1024
_MOST_WAITING = 64
_MOST_UNWRITTEN = 1 << 20
"""Bytes that are kept while nobody reads the log; further lines are counted and dropped."""
_LAST_WRITE_SECONDS = 0.5
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def level_of_failure(count: int) -> str:
    """The level at which to log a failure that repeats.

    `count` is how often it has failed in a row. The first failure is an ERROR, then a WARNING says how many there were.
    """
    if count == 1:
        return "ERROR"
    return "WARNING" if count in _COUNTED else "DEBUG"


class LogLine(msgspec.Struct, array_like=True, frozen=True):
    """One line of the log.

    `time` is in seconds since the epoch, `trace` is a traceback or empty. Only the JSON format shows `fields`.
    """

    time: float
    level: str
    message: str
    uuid: str = "-"
    process: str = "server"
    source: str = ""
    trace: str = ""
    fields: Mapping[str, Any] = {}


def printable_uuid(uuid: str) -> str:
    """The id without control characters, at most 128 characters."""
    cut = uuid if len(uuid) <= _LONGEST_ID else uuid[:_LONGEST_ID] + "…"
    if cut.isprintable() and " " not in cut:
        return cut
    return "".join(char if char.isprintable() and char != " " else "?" for char in cut)


def printable(text: str) -> str:
    """The text with controls and lone surrogates escaped.

    At most 64 Ki characters; line feeds and tabs stay.
    """
    if len(text) > LONGEST_LINE:
        text = f"{text[:LONGEST_LINE]}… ({len(text):,} characters)"
    if text.isprintable():
        return text
    return text.encode("utf-8", "backslashreplace").decode().translate(_CONTROLS)


@contextmanager
def with_request_id(uuid: str, trace: str = "", **about: str) -> Iterator[None]:
    """Puts `uuid` into every line that this task or thread logs.

    `trace` is the `traceparent` that belongs to it; `about` is added to the `subject` of the lines.
    """
    token = request_id.set(printable_uuid(uuid))
    trace_token = traceparent.set(trace)
    subject_token = subject.set({**subject.get(), **about}) if about else None
    try:
        yield
    finally:
        flush_author_streams()
        request_id.reset(token)
        traceparent.reset(trace_token)
        if subject_token is not None:
            subject.reset(subject_token)


def context_fields() -> Mapping[str, str]:
    """The `fields` of a line that is logged here and now."""
    trace = traceparent.get()
    return {**subject.get(), "trace_id": trace_id_of(trace)} if trace else subject.get()


_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


def read_traceparent(text: str) -> str:
    """A caller's `traceparent`, or nothing if it is not valid.

    Format: W3C Trace Context, section 3.2.
    """
    return text if _TRACEPARENT.fullmatch(text) and not text.startswith("ff") else ""


def trace_id_of(trace: str) -> str:
    """The trace id, 32 hex digits, of a `traceparent`."""
    return trace[3:35]


captured_streams: list[TextIO] = []
"""stdout and stderr of a child (`processes/output.py`); empty in other processes."""


def flush_author_streams() -> None:
    """Flushes streams of the author's own, before the request changes."""
    if captured_streams:
        for stream, captured in zip((sys.stdout, sys.stderr), captured_streams, strict=True):
            if stream is not captured and stream is not None:
                with contextlib.suppress(Exception):
                    stream.flush()


def format_text(line: LogLine) -> str:
    """The line as text, with the traceback below it.

    An example: `2026-11-22 14:30:00.123 INFO    [uuid] process source | message`.
    Further lines of a message are indented, so that no message can look like a line of its own.
    """
    second = int(line.time)
    stamp = f"{_stamp_of(second)}.{int((line.time - second) * 1000):03d}"
    source = f" {line.source}" if line.source else ""
    text = f"{line.message}\n{line.trace.rstrip()}" if line.trace else line.message
    if "\n" in text:
        text = text.replace("\n", "\n    ")
    return f"{stamp} {line.level:<7} [{line.uuid}] {line.process}{source} | {text}\n"


@lru_cache(maxsize=4)
def _stamp_of(second: int) -> str:
    moment = datetime.datetime.fromtimestamp(second)  # noqa: DTZ006 - people read the log in their own time zone
    return moment.strftime("%Y-%m-%d %H:%M:%S")


_DIM = "\x1b[2m"
_PLAIN = "\x1b[0m"
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m", "DEBUG": _DIM, "TRACE": _DIM}
_GREEN = "\x1b[32m"


def format_terminal(line: LogLine) -> str:
    """The line as text with colours."""
    head, bar, message = format_text(line).partition(" | ")
    level = f"{line.level:<7}"
    stamp, _, where = head.partition(level)
    colour = _COLOURS.get(line.level, _GREEN)
    return f"{_DIM}{stamp}{_PLAIN}{colour}{level}{_PLAIN}{_DIM}{where}{bar}{_PLAIN}{message}"


_HOST = socket.gethostname()
_WORKER = re.compile(r"worker-(\d+)")


def format_json(line: LogLine) -> str:
    """One JSON object a line; what is not known is left out."""
    moment = datetime.datetime.fromtimestamp(line.time, datetime.timezone.utc)
    content: dict[str, Any] = {
        "time": moment.isoformat(timespec="milliseconds"),
        "level": line.level,
        "message": line.message,
        "process": line.process,
        "host": _HOST,
    }
    if line.uuid != "-":
        content["request_id"] = line.uuid
    if worker := _WORKER.fullmatch(line.process):
        content["worker"] = int(worker[1])
    if line.source:
        content["source"] = line.source
    content.update(line.fields)
    if line.trace:
        content["exception"] = _exception_of(line.trace)
    return msgspec.json.encode(content).decode() + "\n"


_TRACEBACK = "Traceback (most recent call last):\n"
_RAISED = re.compile(r"^([A-Za-z_][\w.]*)(?:: (.*))?\Z", re.MULTILINE | re.DOTALL)


def _exception_of(trace: str) -> dict[str, str]:
    """Type and text of the exception that a traceback ends with."""
    # Below the last frames, which are indented, stand the type and the text; the text may have several lines.
    raised = _RAISED.search(trace.rstrip(), trace.rfind(_TRACEBACK) + len(_TRACEBACK) if _TRACEBACK in trace else 0)
    kind, text = raised.groups() if raised else ("", trace.rstrip().rpartition("\n")[2])
    return {"type": kind, "text": text or "", "trace": trace.rstrip()}


FORMATS: Mapping[str, Callable[[LogLine], str]] = {
    "text": format_text,
    "terminal": format_terminal,
    "json": format_json,
}


# --- Where lines are written -----------------------------------------------------------------------------------------


class LogOutput:
    """Where the lines of this process and its children go.

    Lines keep their order; use it from any thread.
    Writing never raises and, to a descriptor with `waits=False`, never waits: if nobody reads the log, up to 1 MiB is
    kept, further lines are dropped, and their number is logged when there is room again.
    """

    def __init__(
        self,
        stream: TextIO | int,
        format: Callable[[LogLine], str] = format_text,
        level: str = "info",
        *,
        waits: bool = True,
    ) -> None:
        self._stream = stream
        self._format = format
        self._least = LEVELS[level]
        self._lock = threading.Lock()
        self._waiting: list[LogLine] = []
        self._unwritten = bytearray()
        self._dropped = 0
        # A regular file is always ready, however slow its disk is.
        self._waits = waits or not isinstance(stream, int) or stat.S_ISREG(os.fstat(stream).st_mode)

    def write(self, line: LogLine) -> None:
        """Writes a line now, after the lines that were waiting."""
        if LEVELS.get(line.level.lower(), 20) < self._least:
            return
        with self._lock:
            self._waiting.append(line)
            self._flush()

    def write_all(self, lines: list[LogLine]) -> None:
        """Writes several lines now."""
        for line in lines:
            self.write_soon(line)
        self.flush()

    def write_soon(self, line: LogLine) -> None:
        """Keeps a line until the next `write` or `flush`.

        64 waiting lines are written too. For the many lines of the access log.
        """
        if self._least <= LEVELS.get(line.level.lower(), 20):
            with self._lock:
                self._waiting.append(line)
                if len(self._waiting) >= _MOST_WAITING:
                    self._flush()

    def write_text(self, text: str) -> None:
        """Writes a text, which is not a line of the log."""
        with self._lock:
            self._flush()
            with contextlib.suppress(OSError, ValueError):
                if isinstance(self._stream, int):
                    self._unwritten += text.encode("utf-8", "backslashreplace")
                    self._write_to_descriptor(self._stream, [])
                else:
                    self._stream.write(text)

    def flush(self) -> None:
        """Writes the lines that are waiting."""
        if self._waiting or self._unwritten:
            with self._lock:
                self._flush()

    @property
    def behind(self) -> bool:
        """Whether lines could not be written yet: nobody reads the log."""
        return bool(self._unwritten)

    def close(self) -> None:
        """Writes what is left, for at most half a second."""
        deadline = time.monotonic() + _LAST_WRITE_SECONDS
        self.flush()
        while self._unwritten and time.monotonic() < deadline:
            time.sleep(0.01)
            self.flush()

    def _flush(self) -> None:
        waiting = self._waiting
        self._waiting = []
        with contextlib.suppress(OSError, ValueError):
            if isinstance(self._stream, int):
                self._write_to_descriptor(self._stream, waiting)
                return
            text = "".join(map(self._format, waiting))
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
            self._stream.flush()

    def _write_to_descriptor(self, descriptor: int, lines: list[LogLine]) -> None:
        if len(self._unwritten) >= _MOST_UNWRITTEN:
            self._dropped += len(lines)
        else:
            if self._dropped:
                lines.insert(0, self._notice())
            self._unwritten += "".join(map(self._format, lines)).encode("utf-8", "backslashreplace")
        while self._unwritten:
            if self._waits:
                written = os.write(descriptor, self._unwritten)
            elif not _is_ready(descriptor):
                return
            else:
                # A pipe that is ready takes this much without waiting.
                written = os.write(descriptor, self._unwritten[: select.PIPE_BUF])
            del self._unwritten[:written]
        if self._dropped:
            self._unwritten += self._format(self._notice()).encode()

    def _notice(self) -> LogLine:
        dropped = self._dropped
        self._dropped = 0
        return LogLine(time.time(), "WARNING", f"{dropped:,} lines were dropped here because nobody read the log")


def _is_ready(descriptor: int) -> bool:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLOUT)
    return bool(waiting.poll(0))


class Logger:
    """mlpkit's own logger. A message's arguments are filled in with `str.format`.

    It uses neither loguru nor `logging`, so that no script can remove its outputs or see its lines twice.
    """

    def __init__(self) -> None:
        self._process = "server"
        self._outputs: list[Callable[[LogLine], None]] = [_write_to_stderr]

    def debug(self, message: str, /, *args: object) -> None:
        """Logs a detail that helps to find a fault."""
        self.log("DEBUG", message, *args, depth=1)

    def info(self, message: str, /, *args: object) -> None:
        """Logs what an operator may want to know."""
        self.log("INFO", message, *args, depth=1)

    def warning(self, message: str, /, *args: object) -> None:
        """Logs something that is wrong, although the work continues."""
        self.log("WARNING", message, *args, depth=1)

    def error(self, message: str, /, *args: object, exception: BaseException | None = None, trace: str = "") -> None:
        """Logs a failure, with `trace` or the traceback of `exception`."""
        self.log("ERROR", message, *args, exception=exception, trace=trace, depth=1)

    def exception(self, message: str, /, *args: object) -> None:
        """Logs a failure with the traceback of the current exception."""
        self.log("ERROR", message, *args, exception=sys.exc_info()[1], depth=1)

    def log(
        self,
        level: str,
        message: str,
        /,
        *args: object,
        exception: BaseException | None = None,
        trace: str = "",
        uuid: str | None = None,
        depth: int = 0,
    ) -> None:
        """Logs at any level.

        `depth` says how many callers above this one the source is; `uuid` replaces the request id. `trace` is a
        traceback as text.
        """
        frame = sys._getframe(depth + 1)
        self.write(
            LogLine(
                time.time(),
                level,
                printable(_filled(message, args)),
                request_id.get() if uuid is None else printable_uuid(uuid),
                self._process,
                f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno}",
                printable(trace if exception is None else trace_of(exception)),
                context_fields(),
            )
        )

    def write(self, line: LogLine) -> None:
        """Hands a line to the outputs."""
        for output in self._outputs:
            output(line)

    def send_to(self, output: Callable[[LogLine], None], process: str) -> None:
        """Makes `output` the only output.

        `process` is the name of this process in the lines.
        """
        self._process = process
        self._outputs = [output]

    @contextmanager
    def also_to(self, output: Callable[[LogLine], None]) -> Iterator[None]:
        """Adds an output for the length of a block."""
        self._outputs.append(output)
        try:
            yield
        finally:
            self._outputs.remove(output)


def _filled(message: str, args: tuple[object, ...]) -> str:
    if not args:
        return message
    try:
        return message.format(*args)
    except Exception:  # the arguments' own methods may raise anything: the line must not be lost
        return f"{message} {args!r}"


def trace_of(error: BaseException) -> str:
    """The traceback as Python prints it."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def _write_to_stderr(line: LogLine) -> None:
    if sys.stderr is not None and LEVELS.get(line.level.lower(), 20) >= LEVELS["info"]:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(format_text(line))


logger = Logger()


# --- The server's process --------------------------------------------------------------------------------------------


def configure(
    *,
    level: str = "info",
    format: str = "text",
    stream: TextIO | None = None,
    process: str = "server",
    waits: bool = True,
) -> LogOutput:
    """Sends all that this process logs to one output, and returns it.

    That is mlpkit's own lines, `logging`, warnings and loguru.

    Without a `stream` the output is a duplicate of the descriptor of stderr, so that a script that changes `sys.stderr`
    does not change it. `waits=False` is for a service, which must continue if nobody reads its log. `format` is one of
    `FORMATS`.
    """
    target: TextIO | int = os.dup(2) if stream is None else stream
    output = LogOutput(target, FORMATS[format], level, waits=waits)
    logger.send_to(output.write, process)
    logging.basicConfig(handlers=[StdlibHandler(output.write, process)], level=LEVELS[level], force=True)
    calm_libraries()
    # Off first: logging believes that it is on if another program, such as pytest, has restored Python's own function.
    logging.captureWarnings(False)
    logging.captureWarnings(True)
    if "loguru" in sys.modules:
        from loguru import logger as authors

        authors.remove()
        add_loguru_output(output.write, level, process)
    if stream is None:
        atexit.register(output.close)
    return output


def format_here(setting: str) -> str:
    """One of `FORMATS` for `MLPKIT_LOG_FORMAT`.

    Text has colours if stderr is a terminal that may show them. Rule: https://no-color.org.
    """
    has_colours = os.isatty(2) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return "terminal" if setting == "text" and has_colours else setting


def add_loguru_output(
    write: Callable[[LogLine], None], level: str = "trace", process: str = "server"
) -> Callable[[], None]:
    """Adds a handler to loguru's logger; returns what removes it."""
    # Only a script that logs with loguru needs it.
    from loguru import logger as authors

    def sink(message: Message) -> None:
        write(line_of_loguru(message.record, message.record["message"], process))

    number = authors.add(sink, level=LEVELS[level], format="{message}", backtrace=False, diagnose=False, catch=True)

    def remove() -> None:
        # A script, or another test, may have removed it.
        with contextlib.suppress(ValueError):
            authors.remove(number)

    return remove


def calm_libraries() -> None:
    """Leaves out what libraries say below WARNING about their ordinary work."""
    for name in ("asyncio", "urllib3", "filelock", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)


class StdlibHandler(logging.Handler):
    """Hands on the records of `logging` as lines."""

    def __init__(self, write: Callable[[LogLine], None], process: str) -> None:
        super().__init__()
        self._write = write
        self._process = process

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # a KeyError too, for names that the arguments do not have
            message = f"{record.msg} {record.args!r}"
        error = record.exc_info[1] if record.exc_info else None
        trace = record.exc_text or (trace_of(error) if error is not None else "")
        # A warning's text ends with a line feed.
        self._write(line_of_record(record, message.rstrip("\n"), trace, self._process))


def line_of_record(record: logging.LogRecord, text: str, trace: str, process: str) -> LogLine:
    """A record of `logging` as a line with this text and traceback."""
    uuid = request_id.get()
    return LogLine(
        record.created,
        record.levelname,
        printable(text),
        uuid if uuid != "-" else printable_uuid(str(getattr(record, "uuid", uuid))),
        process,
        f"{record.name}:{record.lineno}",
        printable(trace),
        context_fields(),
    )


def line_of_loguru(record: Record, text: str, process: str) -> LogLine:
    """A record of loguru as a line with this text."""
    error = record["exception"]
    return LogLine(
        time=record["time"].timestamp(),
        level=record["level"].name,
        message=printable(text),
        uuid=printable_uuid(str(record["extra"].get("uuid", request_id.get()))),
        process=process,
        source=f"{record['name']}:{record['line']}",
        trace=printable(trace_of(error.value)) if error and error.value is not None else "",
        fields=context_fields(),
    )
