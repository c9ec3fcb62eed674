"""The output of a child as lines of the log.

What the author's code prints or logs in a child is caught at `sys.stdout` and `sys.stderr`: whatever handlers a script
adds to loguru or `logging`, a line that ends there becomes one `LogLine` with the id of the request.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO
from weakref import WeakSet

import msgspec

from mlpkit.log import (
    LEVELS,
    LONGEST_LINE,
    LogLine,
    StdlibHandler,
    calm_libraries,
    captured_streams,
    context_fields,
    flush_author_streams,
    line_of_loguru,
    line_of_record,
    logger,
    printable,
    printable_uuid,
    request_id,
    subject,
    traceparent,
)

if TYPE_CHECKING:
    from loguru import Record

_LINE_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")
_MOST_SEEN = 64
_MARK = b"\x1e"
"""Begins a whole `LogLine` on a child's pipe: the record separator that RFC 7464 puts before JSON."""
_line_decoder = msgspec.json.Decoder(LogLine)


class LineSplitter:
    """Cuts bytes into lines, as `(text, redrawn)`.

    `redrawn` is True if a carriage return ended the line, as a progress bar's. Blank lines are left out; a long line
    comes in pieces of 64 KiB, also before it ends.
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    def __bool__(self) -> bool:
        return bool(self._rest)

    def feed(self, data: bytes) -> list[tuple[str, bool]]:
        """The lines that these bytes complete."""
        lines: list[tuple[str, bool]] = []
        held_return = self._rest.endswith(b"\r")
        self._rest += data
        if not held_return and b"\n" not in data and b"\r" not in data and len(self._rest) <= LONGEST_LINE:
            return lines
        data = bytes(self._rest)
        start = 0
        # A carriage return at the very end is kept: what comes next tells whether it belongs to a line feed.
        for end in _LINE_END.finditer(data):
            _add_line(lines, data[start : end.start()], end[0] == b"\r")
            start = end.end()
        while len(data) - start > LONGEST_LINE:
            end_of_piece = start + LONGEST_LINE
            while data[end_of_piece] & 0xC0 == 0x80 and end_of_piece > start + 1:
                end_of_piece -= 1  # not in the middle of a character
            _add_line(lines, data[start:end_of_piece], False)
            start = end_of_piece
        self._rest = bytearray(data[start:])
        return lines

    def close(self) -> list[tuple[str, bool]]:
        """What is left of a line that never ended."""
        rest = bytes(self._rest)
        self._rest.clear()
        lines: list[tuple[str, bool]] = []
        _add_line(lines, rest.removesuffix(b"\r"), rest.endswith(b"\r"))
        return lines


def _add_line(lines: list[tuple[str, bool]], line: bytes, redrawn: bool) -> None:
    if line.strip():
        for start in range(0, len(line), LONGEST_LINE):
            lines.append((_decoded(line[start : start + LONGEST_LINE]), redrawn))


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        # A script may have given its stream another encoding.
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        try:
            return line.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            return line.decode("utf-8", "replace")


def line_of_pipe(text: str, process: str) -> LogLine:
    """The `LogLine` of a line that came from a child's pipe.

    The child or a process that it started wrote it.
    """
    if text.startswith(_MARK.decode()):
        with contextlib.suppress(msgspec.MsgspecError):
            line = _line_decoder.decode(text[1:])
            return msgspec.structs.replace(
                line, message=printable(line.message), uuid=printable_uuid(line.uuid), trace=printable(line.trace)
            )
    return LogLine(time.time(), "INFO", printable(text), "-", process, "output")


def capture_output(
    send: Callable[[LogLine], None],
    *,
    process: str,
    level: str = "info",
    on_redrawn: Callable[[str], object] | None = None,
) -> None:
    """Turns all that this child prints and logs into lines for `send`.

    Call it before the script is imported.
    `sys.stdout` and `sys.stderr` become text streams that hand on lines; loguru's and `logging`'s handlers that write
    to them are understood, so that level, time, source and traceback are kept. What else a script does with handlers is
    left to it. A line that ends in a carriage return (a progress bar) goes to `on_redrawn`, or nowhere.
    Lines of forked processes, which must not use the channel, go to the pipe in a form that the server understands.
    Output below Python (C code, other programs) is not seen here; the server reads it from the pipe.
    """
    output = _ChildOutput(send, process, level)
    streams = (_CapturedStream(1, "stdout", output, on_redrawn), _CapturedStream(2, "stderr", output, on_redrawn))
    captured_streams[:] = streams
    sys.stdout = sys.__stdout__ = streams[0]  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = streams[1]  # type: ignore[misc]
    logger.send_to(output.write, process)
    _take_what_logging_leaves(StdlibHandler(output.write, process))
    _take_what_logging_streams(LEVELS[level])
    logging.getLogger().setLevel(LEVELS[level])
    calm_libraries()
    warnings.showwarning = _warning_writer(output.write, process)
    if "loguru" in sys.modules:
        # Somebody imported it before us: its first handler writes to the old stream.
        from loguru import logger as authors

        authors.remove()
        authors.add(sys.stderr)
    _pass_on_request_ids()
    os.register_at_fork(after_in_child=output.use_pipe)
    for stream in streams:
        os.register_at_fork(after_in_child=stream.forget)
    # Registered first, so it runs after all that the script registers.
    atexit.register(flush_streams)


def log_prints(process: str) -> Callable[[], None]:
    """Turns what this process prints into lines of the log.

    They have the id of the request. What is returned ends it, and gives the streams back.

    It is for scripts and models in the server process. A terminal is left alone: a debugger may need it.
    """
    before = sys.stdout, sys.stderr
    buffers: list[_LineBuffer] = []
    for name, stream in zip(("stdout", "stderr"), before, strict=True):
        if stream is None or stream.isatty():
            continue

        def on_line(text: str, redrawn: bool, uuid: str, source: str = f"{name}:0") -> None:
            if not redrawn:
                logger.write(LogLine(time.time(), "INFO", printable(text), uuid, process, source, "", context_fields()))

        lines = _LineBuffer(stream.fileno, f"<{name}>", on_line)
        setattr(sys, name, io.TextIOWrapper(lines, encoding="utf-8", errors="backslashreplace", write_through=True))
        buffers.append(lines)

    def end() -> None:
        sys.stdout, sys.stderr = before
        for lines in buffers:
            lines.end_lines()

    atexit.register(end)
    return end


def flush_streams() -> None:
    """Hands on all that was printed; call it before the process ends.

    Lines without an end are handed on too.
    """
    flush_author_streams()
    for stream in captured_streams:
        assert isinstance(stream, _CapturedStream)
        stream.end_lines()


class _ChildOutput:
    """Sends lines to the server.

    A forked process, and a signal handler that interrupts a send, write them to the pipe.
    """

    def __init__(self, send: Callable[[LogLine], None], process: str, level: str) -> None:
        self._send = send
        self.process = process
        self._least = LEVELS[level]
        self.takes_prints = self._least <= LEVELS["info"]
        self._lock = threading.RLock()
        self._sending = False
        self._forked = False
        self._pipes = [os.fstat(1), os.fstat(2)]

    def write(self, line: LogLine) -> None:
        """Sends a line."""
        if LEVELS.get(line.level.lower(), 20) < self._least:
            return
        if self._forked:
            self._write_to_pipe(line)
            return
        with self._lock:
            if self._sending:
                # A signal handler that prints while its thread sends must not cut a message in two.
                self._write_to_pipe(line)
                return
            self._sending = True
            try:
                self._send(line)
            finally:
                self._sending = False

    def use_pipe(self) -> None:
        """Prepares a forked process: it writes to the pipe only.

        The channel belongs to its parent, and nobody may ever release the lock.
        """
        self._forked = True
        self._lock = threading.RLock()

    def _write_to_pipe(self, line: LogLine) -> None:
        descriptor = 2 if line.source.startswith("stderr") else 1
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), self._pipes[descriptor - 1]):
                os.write(descriptor, _MARK + msgspec.json.encode(line) + b"\n")
            else:
                # The author's code has redirected it, for example to a file.
                os.write(descriptor, f"{line.message}\n{line.trace}".encode("utf-8", "backslashreplace"))


class _LineBuffer(io.BufferedIOBase):
    """The buffer below a captured stream; it is never closed.

    A script may wrap streams around it, and close those.
    Each thread has its own unfinished line, so that lines of two threads are not mixed.
    """

    mode = "wb"

    def __init__(self, fileno: Callable[[], int], name: str, on_line: Callable[[str, bool, str], object]) -> None:
        super().__init__()
        self.name = name
        self._fileno = fileno
        self._on_line = on_line
        self._unfinished: dict[int, tuple[str, LineSplitter]] = {}
        self._forked = False

    def write(self, data: Any) -> int:
        content = bytes(data)
        thread = threading.get_ident()
        uuid = request_id.get()
        started_by, splitter = self._unfinished.pop(thread, ("", None))
        if splitter is None or started_by != uuid:
            # What another request left without an end does not belong to this one's first line.
            if splitter is not None:
                self._hand_on(splitter.close(), started_by)
            splitter = LineSplitter()
        lines = splitter.feed(content)
        if splitter:
            self._unfinished[thread] = (uuid, splitter)
        self._hand_on(lines, uuid)
        return len(content)

    def end_lines(self) -> None:
        """Hands on the lines that have no end yet."""
        while self._unfinished:
            _, (uuid, splitter) = self._unfinished.popitem()
            self._hand_on(splitter.close(), uuid)

    def forget(self) -> None:
        """Prepares a forked process: unfinished lines belong to its parent."""
        self._unfinished.clear()
        self._forked = True

    def flush(self) -> None:
        # A forked process ends without `atexit`: multiprocessing only flushes.
        if self._forked:
            self.end_lines()

    def _hand_on(self, lines: list[tuple[str, bool]], uuid: str) -> None:
        for text, redrawn in lines:
            self._on_line(text, redrawn, uuid)

    @property
    def raw(self) -> _LineBuffer:
        """This buffer itself: lines are handed on immediately."""
        return self

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._fileno()

    def close(self) -> None:
        pass


class LineStream(io.TextIOWrapper):
    """A text stream that gives its lines to `on_line(text, redrawn)`."""

    def __init__(self, on_line: Callable[[str, bool], object], under: TextIO) -> None:
        self._lines = _LineBuffer(under.fileno, "<lines>", lambda text, redrawn, uuid: on_line(text, redrawn))
        super().__init__(self._lines, encoding="utf-8", errors="backslashreplace", write_through=True)

    def close(self) -> None:
        """Hands on what is left of a line that never ended."""
        self._lines.end_lines()


class _CapturedStream(io.TextIOWrapper):
    """Replaces `sys.stdout` or `sys.stderr` in a child.

    It is a complete text stream whose lines go to the log.
    """

    def __init__(
        self, descriptor: int, name: str, output: _ChildOutput, on_redrawn: Callable[[str], object] | None
    ) -> None:
        self._source = f"{name}:0"
        self._output = output
        self._on_redrawn = on_redrawn
        self._lines = _LineBuffer(lambda: descriptor, f"<{name}>", self._take_line)
        super().__init__(self._lines, encoding="utf-8", errors="backslashreplace", write_through=True)
        self.mode = "w"  # type: ignore[misc]

    def write(self, text: str) -> int:
        record = getattr(text, "record", None)
        # loguru hands such a text to the streams that it writes to.
        if isinstance(record, dict):
            self._take_loguru(text, record)  # type: ignore[arg-type]
            return len(text)
        return super().write(text)

    def take_record(self, record: logging.LogRecord, text: str) -> None:
        """Takes a record of `logging` as one line with this text, once."""
        if record in _taken:
            return
        _taken.add(record)
        trace = record.exc_text or ""
        if trace:
            before, found, after = text.partition(f"\n{trace}")
            text, trace = (before + after, trace) if found else (text, "")
        self._output.write(line_of_record(record, text, trace, self._output.process))

    def end_lines(self) -> None:
        """Hands on the lines that have no end yet."""
        self._lines.end_lines()

    def forget(self) -> None:
        """Prepares a forked process: unfinished lines belong to its parent."""
        self._lines.forget()

    def _take_line(self, text: str, redrawn: bool, uuid: str) -> None:
        if not redrawn and self._output.takes_prints:
            process = self._output.process
            line = LogLine(time.time(), "INFO", printable(text), uuid, process, self._source, "", context_fields())
            self._output.write(line)
        elif self._on_redrawn is not None:
            # A bar with another one below it ends in a line feed: it is progress, also if prints are not logged.
            self._on_redrawn(text)

    def _take_loguru(self, text: str, record: Record) -> None:
        if _is_repeated(record):
            return
        default = f"{record['name']}:{record['function']}:{record['line']} - {record['message']}"
        # A format of the author's own is kept; the traceback is Python's, as loguru's shows the values of variables.
        shown = record["message"]
        if default not in text:
            shown = text.partition("\nTraceback (most recent call last):")[0].rstrip("\n") or shown
        self._output.write(line_of_loguru(record, shown, self._output.process))


_seen: tuple[dict[object, object], dict[object, object]] = ({}, {})
_taken: WeakSet[logging.LogRecord] = WeakSet()


def _is_repeated(record: Record) -> bool:
    """Whether another handler has already brought this record.

    Two of loguru's handlers may write to stdout and stderr.
    """
    global _seen
    key = (record["time"], record["thread"].id, record["process"].id, record["line"], record["message"])
    mine = object()
    recent, older = _seen
    if key in older or recent.setdefault(key, mine) is not mine:
        return True
    if len(recent) > _MOST_SEEN:
        _seen = ({}, recent)
    return False


def _warning_writer(write: Callable[[LogLine], None], process: str) -> Callable[..., None]:
    """Replaces `warnings.showwarning`: a warning is one line of the level WARNING."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        if file is not None:
            file.write(text)
        else:
            shown = printable(text.rstrip())
            write(
                LogLine(
                    time.time(), "WARNING", shown, request_id.get(), process, "py.warnings", fields=context_fields()
                )
            )

    return show


def _take_what_logging_leaves(handler: logging.Handler) -> None:
    """Gives records that no handler of the author's gets to `handler`.

    A handler at the root logger would do that too, but `basicConfig` does nothing if there is one, and a line would
    arrive twice if the author gave a handler to another logger. Python's own last resort is not asked for loggers of
    libraries, which have a `NullHandler`.
    """
    logging.lastResort = handler
    call_handlers = logging.Logger.callHandlers

    def call_handlers_or_ours(self: logging.Logger, record: logging.LogRecord) -> None:
        if request_id.get() != "-":
            # A `QueueListener` writes in its own thread, which does not know the request.
            vars(record).setdefault("uuid", request_id.get())
        logger: logging.Logger | None = self
        while logger is not None:
            if any(not isinstance(found, logging.NullHandler) for found in logger.handlers) or (
                logger.parent is not None and not logger.propagate
            ):
                call_handlers(self, record)
                return
            logger = logger.parent
        handler.handle(record)

    logging.Logger.callHandlers = call_handlers_or_ours  # type: ignore[method-assign]


def _take_what_logging_streams(least: int) -> None:
    """Lets `logging`'s handlers of stdout and stderr hand on whole records.

    Records below the level `least` stay text, which is not left out.
    """
    emit = logging.StreamHandler.emit

    def emit_line(self: logging.StreamHandler[Any], record: logging.LogRecord) -> None:
        if isinstance(self.stream, _CapturedStream) and record.levelno >= least and self.terminator == "\n":
            try:
                text = self.format(record)
            except RecursionError:
                raise
            except Exception:
                self.handleError(record)
                return
            # What redraws its line, and what is too long for one, is left to the stream.
            if "\r" not in text and len(text) <= LONGEST_LINE:
                self.stream.take_record(record, text)
                return
        emit(self, record)

    logging.StreamHandler.emit = emit_line  # type: ignore[method-assign,assignment]


def _pass_on_request_ids() -> None:
    """Gives threads and thread pools the request of their caller.

    Python (before 3.14) starts a thread with an empty context. Only what lines of the log need is passed on: numpy's,
    torch's and other settings in the context must be as new in a thread as they are in a plain script.
    """
    start = threading.Thread.start
    submit = ThreadPoolExecutor.submit

    def start_with_id(self: threading.Thread) -> None:
        request = _request_here()
        if request_id.get() != "-":
            run = self.run

            def run_with_id() -> None:
                del self.run
                for variable, value in request:
                    variable.set(value)
                run()

            self.run = run_with_id  # type: ignore[method-assign]
        start(self)

    def submit_with_id(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        request = _request_here()

        def run_with_id(*args: Any, **kwargs: Any) -> Any:
            tokens = [(variable, variable.set(value)) for variable, value in request]
            try:
                return fn(*args, **kwargs)
            finally:
                for variable, token in tokens:
                    variable.reset(token)

        return submit(self, run_with_id, *args, **kwargs)

    threading.Thread.start = start_with_id  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = submit_with_id  # type: ignore[method-assign,assignment]


def _request_here() -> list[tuple[ContextVar[Any], Any]]:
    """The variables that lines of the log need, with their values."""
    return [(variable, variable.get()) for variable in (request_id, traceparent, subject)]


def name_requests_in_loguru() -> None:
    """Puts the request id into loguru's records when they are made.

    Call it when the script has been imported.
    A handler with `enqueue=True` writes in its own thread, which does not know the request.
    """
    if "loguru" not in sys.modules:
        return
    from loguru import logger as authors

    theirs = getattr(getattr(authors, "_core", None), "patcher", None)

    def patch(record: Record) -> None:
        if theirs is not None:
            theirs(record)
        record["extra"].setdefault("uuid", request_id.get())

    authors.configure(patcher=patch)
