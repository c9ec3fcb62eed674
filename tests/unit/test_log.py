"""One log: every line has its time, level, request and process; nothing that is logged can break or forge it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from mlpkit.handler_log import Log
from mlpkit.log import (
    Logger,
    LogLine,
    LogOutput,
    configure,
    format_json,
    format_terminal,
    format_text,
    printable,
    printable_uuid,
    read_traceparent,
    trace_of,
    with_request_id,
)
from mlpkit.processes.output import LineSplitter
from tests.servers import LONG, SOON


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What this process logs, in debug and above."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    configure(level="debug", stream=stream)
    yield stream
    logger.remove()
    logging.captureWarnings(False)
    root.handlers[:], root.level = handlers, level


def lines_of(writes: list[str]) -> list[tuple[str, bool]]:
    splitter = LineSplitter()
    found = [line for text in writes for line in splitter.feed(text.encode())]
    return found + splitter.close()


def test_a_line_has_time_level_uuid_process_and_source() -> None:
    record = LogLine(0.25, "INFO", "hello", "u1", "worker-1", "script:3", fields={"model_id": "m"})

    assert format_text(record).endswith(":00.250 INFO    [u1] worker-1 script:3 | hello\n")
    assert json.loads(format_json(record)) == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "INFO",
        "message": "hello",
        "request_id": "u1",
        "process": "worker-1",
        "worker": 1,
        "host": socket.gethostname(),
        "source": "script:3",
        "model_id": "m",
    }


def test_a_line_on_a_terminal_has_colours_around_the_same_text() -> None:
    for level in ("INFO", "ERROR", "CRITICAL"):
        record = LogLine(0.25, level, "a | b", "u1", "server", "x:3")

        assert "\x1b[" in format_terminal(record)
        assert re.sub(r"\x1b\[[0-9;]*m", "", format_terminal(record)) == format_text(record)


class TwoLinesError(Exception):
    """An exception of the tests' own module."""


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("broken"), "ValueError", "broken"),
        (KeyError(), "KeyError", ""),
        (TwoLinesError("one\nNotAType: two"), f"{__name__}.TwoLinesError", "one\nNotAType: two"),
    ],
)
def test_a_line_of_json_has_type_text_and_trace_of_an_exception(error: Exception, kind: str, text: str) -> None:
    try:
        try:
            raise RuntimeError("the cause")
        except RuntimeError as cause:
            raise error from cause
    except Exception as raised:
        trace = trace_of(raised)
    found = json.loads(format_json(LogLine(0, "ERROR", "it failed", trace=trace)))["exception"]

    assert found == {"type": kind, "text": text, "trace": trace.rstrip()}


def test_lines_have_the_trace_and_the_subject_of_their_request() -> None:
    stream = io.StringIO()
    output = LogOutput(stream, format_json)
    ours = Logger()
    ours.send_to(output.write, "train")
    with with_request_id("u1", f"00-{'a' * 32}-{'b' * 16}-01", algorithm="mood", model_id="m"):
        ours.info("inside")
    ours.info("outside")

    inside, outside = map(json.loads, stream.getvalue().splitlines())
    assert (inside["trace_id"], inside["algorithm"], inside["model_id"]) == ("a" * 32, "mood", "m")
    assert not {"trace_id", "algorithm", "model_id", "request_id"} & set(outside)


def test_only_a_valid_traceparent_is_taken() -> None:
    good = f"00-{'a' * 32}-{'b' * 16}-01"
    assert read_traceparent(good) == good
    zeros, version = f"00-{'0' * 32}-{'b' * 16}-01", f"ff{good[2:]}"
    for wrong in ("", "x", zeros, version, good.upper(), good + "\n", f"{good}, {good}"):
        assert read_traceparent(wrong) == ""


@pytest.mark.filterwarnings("default:from warnings")
def test_loguru_stdlib_logging_and_warnings_go_into_one_log(written: io.StringIO) -> None:
    with with_request_id("u1"):
        logger.info("from loguru")
        logging.getLogger("theirs").warning("from %s", "stdlib")
        warnings.warn("from warnings", UserWarning, stacklevel=1)

    assert [line.partition(" | ")[2] for line in written.getvalue().splitlines() if "from" in line][:2] == [
        "from loguru",
        "from stdlib",
    ]
    assert "from warnings" in written.getvalue()
    assert written.getvalue().count("[u1]") == 3
    assert "theirs:" in written.getvalue()


def test_the_uuid_holds_for_its_block_only(written: io.StringIO) -> None:
    with with_request_id("outer"):
        with with_request_id("inner"):
            logger.info("1")
        logger.info("2")
    logger.info("3")

    assert [line.partition("[")[2].partition("]")[0] for line in written.getvalue().splitlines()] == [
        "inner",
        "outer",
        "-",
    ]


def test_a_traceback_is_part_of_its_line(written: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("it failed")

    first, *rest = written.getvalue().splitlines()
    assert first.endswith("| it failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == "    ValueError: broken"


def test_no_message_can_look_like_a_line_of_its_own(written: io.StringIO) -> None:
    logger.info("harmless\n2026-11-22 00:00:00.000 ERROR   [u] server | forged\r\x1b[2J")

    first, second = written.getvalue().splitlines()
    assert first.endswith("harmless")
    assert second == "    2026-11-22 00:00:00.000 ERROR   [u] server | forged\\x0d\\x1b[2J"


def test_what_no_encoding_can_carry_is_escaped() -> None:
    assert printable("ok 你好\t\n") == "ok 你好\t\n"
    assert printable("lone \ud800") == "lone \\ud800"
    assert len(printable("x" * 1_000_000)) < 70_000

    raw = io.BytesIO()
    output = LogOutput(io.TextIOWrapper(raw, encoding="ascii"))
    output.write(LogLine(0, "INFO", "你好"))

    assert rb"\u4f60\u597d" in raw.getvalue()


def test_a_uuid_cannot_break_the_line() -> None:
    assert printable_uuid("a b\nc") == "a?b?c"
    assert len(printable_uuid("x" * 1000)) == 129


def test_a_stream_that_is_gone_disturbs_nobody() -> None:
    stream = io.StringIO()
    stream.close()

    LogOutput(stream).write(LogLine(0, "INFO", "unheard"))


def test_a_log_that_nobody_reads_stops_nobody_and_counts_what_it_drops() -> None:
    read, write = os.pipe()
    output = LogOutput(write, lambda record: record.message + "\n", waits=False)
    started = time.monotonic()
    for number in range(40_000):
        output.write(LogLine(0, "INFO", f"line {number} {'x' * 50}"))
    assert time.monotonic() - started < LONG

    found = bytearray()
    os.set_blocking(read, False)
    for _ in range(1000):
        output.flush()
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(read, 1 << 16):
                found += chunk
        if b"were dropped here" in found:
            break
    output.close()
    lines = found.decode().splitlines()
    kept = [line for line in lines if line.startswith("line ")]
    (notice,) = (line for line in lines if "were dropped here" in line)
    assert len(kept) + int(notice.split()[0].replace(",", "")) == 40_000
    assert kept == [f"line {number} {'x' * 50}" for number in range(len(kept))]
    os.close(read)
    os.close(write)


def test_closing_a_log_that_nobody_reads_ends(tmp_path: Path) -> None:
    read, write = os.pipe()
    output = LogOutput(write, waits=False)
    for _ in range(100):
        output.write(LogLine(0, "INFO", "x" * 10_000))
    started = time.monotonic()
    output.close()
    assert time.monotonic() - started < SOON
    os.close(read)
    output.write(LogLine(0, "INFO", "to nobody"))
    os.close(write)


def test_lines_below_the_level_are_left_out() -> None:
    stream = io.StringIO()
    output = LogOutput(stream, level="warning")
    output.write(LogLine(0, "INFO", "no"))
    output.write_soon(LogLine(0, "INFO", "no"))
    output.write(LogLine(0, "ERROR", "yes"))

    assert stream.getvalue().count("\n") == 1


def test_lines_that_can_wait_are_written_in_order_and_not_kept_for_ever() -> None:
    stream = io.StringIO()
    output = LogOutput(stream, lambda record: record.message + "\n")
    output.write_soon(LogLine(0, "INFO", "first"))
    assert stream.getvalue() == ""
    output.write(LogLine(0, "INFO", "second"))
    assert stream.getvalue() == "first\nsecond\n"

    for _ in range(1000):
        output.write_soon(LogLine(0, "INFO", "soon"))
    assert stream.getvalue().count("soon") > 700
    output.flush()
    assert stream.getvalue().count("soon") == 1000


def test_lines_of_many_threads_are_whole() -> None:
    stream = io.StringIO()
    output = LogOutput(stream, lambda record: record.message + "\n")

    def write(name: str) -> None:
        for _ in range(500):
            output.write(LogLine(0, "INFO", name * 50))
            output.write_soon(LogLine(0, "INFO", name * 50))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    output.flush()

    lines = stream.getvalue().splitlines()
    assert len(lines) == 4000
    assert all(line == line[0] * 50 for line in lines)


@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_lines_end_at_line_feeds_and_carriage_returns_only(pieces: int) -> None:
    text = "one\r\ntwo\n10%\r20%\r\nx\x0by\x0cz\x1c\x85\u2028w\n\n \nend"
    writes = [text[start : start + pieces] for start in range(0, len(text), pieces)]

    assert lines_of(writes) == [
        ("one", False),
        ("two", False),
        ("10%", True),
        ("20%", False),
        ("x\x0by\x0cz\x1c\x85\u2028w", False),
        ("end", False),
    ]


def test_a_progress_bar_is_told_from_a_line() -> None:
    assert lines_of(["\r 10%", "\r 20%", "\r100%\n"]) == [(" 10%", True), (" 20%", True), ("100%", False)]
    assert lines_of([" 10%\r", " 20%\r"]) == [(" 10%", True), (" 20%", True)]


def test_a_line_that_never_ends_is_handed_on_in_pieces() -> None:
    found: list[str] = []
    splitter = LineSplitter()
    for number in range(200):
        found += [text for text, _ in splitter.feed(b"x" * 1000)]
        assert number * 1000 - sum(map(len, found)) <= 65536
    found += [text for text, _ in splitter.close()]

    assert "".join(found) == "x" * 200_000
    assert max(map(len, found)) == 65536


def test_a_handlers_log_carries_the_uuid_also_in_threads_of_its_own(written: io.StringIO) -> None:
    log = Log("u7")
    thread = threading.Thread(target=lambda: log.info("read {} rows", 3))
    thread.start()
    thread.join(LONG)
    with with_request_id("u8"):
        Log().warning("braces stay: {}")
    log.debug("d")
    log.error("e")
    try:
        raise KeyError("gone")
    except KeyError:
        log.exception("failed")

    text = written.getvalue()
    assert "[u7] server tests.unit.test_log:" in text
    assert "read 3 rows" in text
    assert "WARNING [u8]" in text
    assert "braces stay: {}" in text
    assert "KeyError: 'gone'" in text
    assert "services:" not in text
