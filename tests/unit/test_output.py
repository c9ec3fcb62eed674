"""A child's output belongs to its author: whatever a script does to it, each line arrives once, with its request."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mlpkit.log import LogLine
from mlpkit.processes.output import line_of_pipe
from tests.servers import LONG

HARNESS = """
import atexit, json, os, sys
import msgspec
lines = []
atexit.register(lambda: open("lines.json", "wb").write(msgspec.json.encode(lines)))
from mlpkit.log import with_request_id
from mlpkit.processes import capture_output, name_requests_in_loguru
def send(line):
    if line.message == "printed in the sink":
        print("inside")
    lines.append(line)
bars = []
capture_output(send, process="worker 1", on_redrawn=bars.append)
"""


def lines_of(folder: Path, script: str) -> list[LogLine]:
    """The lines that this script's process sends, and then those of its pipe."""
    (folder / "script.py").write_text(HARNESS + textwrap.dedent(script))
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, timeout=LONG, check=False)
    sent = [LogLine(*line) for line in json.loads((folder / "lines.json").read_bytes())]
    piped = [line_of_pipe(text.decode(), "pipe") for text in (done.stdout + done.stderr).split(b"\n") if text]
    return sent + piped


def ids_of(lines: list[LogLine], message: str) -> list[str]:
    return [line.uuid for line in lines if message in line.message]


SCRIPT = """
import logging, threading, warnings
HEAD
name_requests_in_loguru()

def predict(uuid):
    with with_request_id(uuid):
        print("printed")
        print("to stderr", file=sys.stderr)
        logging.getLogger("mine").warning("from logging")
        warnings.warn("from warnings", stacklevel=1)
        thread = threading.Thread(target=print, args=("from a thread",))
        thread.start()
        thread.join()
        LOGURU

predict("u1")
predict("u2")
"""

HEADS = {
    "nothing": "",
    "loguru": "from loguru import logger",
    "loguru, stderr added": "from loguru import logger; logger.add(sys.stderr)",
    "loguru, only stderr": "from loguru import logger; logger.remove(); logger.add(sys.stderr, level='INFO')",
    "loguru, handler 0 removed": "from loguru import logger; logger.remove(0); logger.add(sys.stdout)",
    "loguru, both streams": "from loguru import logger; logger.add(sys.stdout); logger.add(sys.__stderr__)",
    "loguru, enqueue": "from loguru import logger; logger.remove(); logger.add(sys.stderr, enqueue=True)",
    "loguru, configure": (
        "from loguru import logger\n"
        "logger.configure(handlers=[dict(sink=sys.stderr, format='{time} {message}')], patcher=lambda record: None)"
    ),
    "loguru, enqueue and a patcher": (
        "from loguru import logger\n"
        "logger.configure(handlers=[dict(sink=sys.stderr, enqueue=True)], patcher=lambda record: None)"
    ),
    "loguru, serialized": "from loguru import logger; logger.remove(); logger.add(sys.stderr, serialize=True)",
    "loguru, a function": "from loguru import logger; logger.remove(); logger.add(lambda text: print(text, end=''))",
    "loguru gets logging": (
        "from loguru import logger\n"
        "class Intercept(logging.Handler):\n"
        "    def emit(self, record): logger.opt(depth=6, exception=record.exc_info).log('INFO', record.getMessage())\n"
        "logging.basicConfig(handlers=[Intercept()], level=0, force=True)"
    ),
    "logging, basicConfig": "logging.basicConfig(level=logging.INFO)",
    "logging, a handler of stdout": "logging.getLogger().addHandler(logging.StreamHandler(sys.stdout))",
    "logging, dictConfig": (
        "import logging.config\n"
        "logging.config.dictConfig({'version': 1, 'handlers': {'h': {'class': 'logging.StreamHandler'}}, "
        "'root': {'handlers': ['h']}})"
    ),
    "logging, two handlers": (
        "logging.basicConfig(level=logging.INFO)\n"
        "logging.getLogger('mine').addHandler(logging.StreamHandler(sys.__stdout__))"
    ),
    "logging, a queue": (
        "import atexit, logging.handlers, queue\n"
        "records = queue.Queue()\n"
        "listener = logging.handlers.QueueListener(records, logging.StreamHandler())\n"
        "listener.start()\n"
        "atexit.register(listener.stop)\n"
        "logging.getLogger().addHandler(logging.handlers.QueueHandler(records))"
    ),
    "warnings to logging": "logging.captureWarnings(True)",
    "a library's logger": "logging.getLogger('mine').addHandler(logging.NullHandler())",
    "a handler of one logger": "logging.getLogger('mine').addHandler(logging.StreamHandler())",
    "reconfigure": "sys.stdout.reconfigure(encoding='utf-8', line_buffering=True)",
    "a wrapper": "import io; sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')",
    "two wrappers": (
        "import io; sys.stdout = io.TextIOWrapper(sys.stdout.buffer)\n"
        "sys.stdout = io.TextIOWrapper(sys.stdout.buffer)\n"
        "sys.stderr = io.TextIOWrapper(sys.stderr.buffer, line_buffering=True)"
    ),
    "detach": "import io; sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding='utf-8')",
    "codecs": "import codecs; sys.stdout = codecs.getwriter('utf-8')(sys.stdout.buffer)",
    "another encoding": "sys.stdout.reconfigure(encoding='gb18030')",
    "stderr is stdout": "sys.stderr = sys.stdout",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_each_line_arrives_once_with_its_request_whatever_the_script_set_up(tmp_path: Path, head: str) -> None:
    loguru = "logger.info('from loguru')" if "loguru" in head else "pass"
    lines = lines_of(tmp_path, SCRIPT.replace("HEAD", head).replace("LOGURU", loguru))

    wanted = ["printed", "to stderr", "from logging", "from a thread", *(["from loguru"] if "loguru" in head else [])]
    assert {text: ids_of(lines, text) for text in wanted} == {text: ["u1", "u2"] for text in wanted}, lines
    assert ids_of(lines, "from warnings") in (["u1"], ["u1", "u2"])
    assert [line for line in lines if "rror" in line.message] == []


def test_loguru_and_logging_keep_their_level_source_and_traceback(tmp_path: Path) -> None:
    lines = lines_of(
        tmp_path,
        """
        import logging
        from loguru import logger
        def divide(secret):
            1 / 0
        try:
            divide("hidden" + "value")
        except ZeroDivisionError:
            logger.exception("loguru failed")
            logging.getLogger("mine").exception("logging failed")
        """,
    )

    assert [(line.level, line.message, line.source.partition(":")[0]) for line in lines] == [
        ("ERROR", "loguru failed", "__main__"),
        ("ERROR", "logging failed", "mine"),
    ]
    assert [line.trace.count("Traceback") for line in lines] == [1, 1]
    assert not [line for line in lines if "hiddenvalue" in line.trace]


@pytest.mark.parametrize("setting", ["", "stream=sys.stdout, ", "format='%(levelname)s %(message)s', "])
def test_a_handler_of_the_authors_own_keeps_level_source_and_traceback(tmp_path: Path, setting: str) -> None:
    lines = lines_of(
        tmp_path,
        f"""
        import logging
        logging.basicConfig({setting}level=logging.DEBUG)
        log = logging.getLogger("mine")
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("first line\\nsecond line")
        log.warning("")
        log.debug("below the level of the service")
        log.info("x" * 100_000)
        """,
    )

    failed, *rest = lines
    assert failed.message.endswith("first line\nsecond line")
    assert (failed.level, failed.source.partition(":")[0]) == ("ERROR", "mine")
    assert failed.trace.count("Traceback") == 1
    assert failed.trace.endswith("ZeroDivisionError: division by zero")
    assert [line.level for line in rest[:1]] == ["WARNING"]
    assert "below the level of the service" in rest[1].message
    assert sum(line.message.count("x") for line in rest[2:]) == 100_000


def test_a_format_of_the_authors_own_is_kept(tmp_path: Path) -> None:
    lines = lines_of(
        tmp_path,
        """
        from loguru import logger
        logger.remove()
        logger.add(sys.stderr, format="{extra[user]} did {message}")
        logger.bind(user="Ann").info("it")
        """,
    )

    assert [line.message for line in lines] == ["Ann did it"]


def test_the_streams_are_complete_text_streams(tmp_path: Path) -> None:
    lines = lines_of(
        tmp_path,
        """
        import io
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            assert isinstance(stream, io.TextIOWrapper) and isinstance(stream, io.TextIOBase)
            assert (stream.fileno(), stream.buffer.fileno(), stream.buffer.raw.fileno()) == (number,) * 3
            assert (stream.isatty(), stream.writable(), stream.closed, stream.encoding) == (False, True, False, "utf-8")
            assert stream.name == stream.buffer.name == ("<stdout>", "<stderr>")[number - 1]
            assert (stream.mode, stream.errors, stream.newlines) == ("w", "backslashreplace", None)
        try:
            sys.stdout.write(b"bytes")
        except TypeError:
            print("TypeError")
        sys.stdout.buffer.write("字节\\n".encode())
        sys.stdout.writelines(["one\\n", "two\\n"])
        sys.stdout.write("lone \\ud800\\n")
        print("no end", end="")
        """,
    )

    assert [line.message for line in lines] == ["TypeError", "字节", "one", "two", "lone \\ud800", "no end"]


def test_what_a_child_prints_becomes_lines_of_the_log(tmp_path: Path) -> None:
    lines = lines_of(
        tmp_path,
        """
        import logging, subprocess
        with with_request_id("u1"):
            print("printed")
            sys.stderr.write("bar 10%\\rbar 20%\\r\\n")
            subprocess.run(["echo", "below python"], stdout=sys.stdout, check=True)
        logging.getLogger("theirs").error("%d items", "many: wrong arguments are no reason to lose a line")
        logging.getLogger("theirs").error("%(loss)d lost", {"found": "so are missing ones"})
        print("printed in the sink")
        print(bars)
        """,
    )

    shown = [(line.uuid, line.process, line.source.partition(":")[0], line.message) for line in lines]
    assert shown == [
        ("u1", "worker 1", "stdout", "printed"),
        ("u1", "worker 1", "stderr", "bar 20%"),
        ("-", "worker 1", "theirs", "%d items ('many: wrong arguments are no reason to lose a line',)"),
        ("-", "worker 1", "theirs", "%(loss)d lost {'found': 'so are missing ones'}"),
        ("-", "worker 1", "stdout", "printed in the sink"),
        ("-", "worker 1", "stdout", "['bar 10%']"),
        ("-", "pipe", "output", "below python"),
        ("-", "worker 1", "stdout", "inside"),
    ]


def test_lines_of_forked_processes_arrive_once_with_their_request(tmp_path: Path) -> None:
    lines = lines_of(
        tmp_path,
        """
        import logging, multiprocessing
        def work(number):
            print("working", number)
            logging.getLogger("mine").warning("logging %d", number)
            print("no end", number, end="")
        with with_request_id("u1"):
            print("begun, ", end="")
            process = multiprocessing.get_context("fork").Process(target=work, args=(1,))
            process.start()
            process.join()
            print("ended")
        """,
    )

    assert {line.message: line.uuid for line in lines} == {
        "begun, ended": "u1",
        "working 1": "u1",
        "logging 1": "u1",
        "no end 1": "u1",
    }
    assert len(lines) == 4


def test_a_forked_process_that_writes_to_a_file_of_its_own_writes_plain_text(tmp_path: Path) -> None:
    lines_of(
        tmp_path,
        """
        pid = os.fork()
        if not pid:
            os.dup2(os.open("own.txt", os.O_WRONLY | os.O_CREAT), 1)
            print("for the file")
            os._exit(0)
        os.waitpid(pid, 0)
        """,
    )

    assert (tmp_path / "own.txt").read_text() == "for the file\n"


def test_tasks_of_a_thread_pool_have_the_request_that_gave_them(tmp_path: Path) -> None:
    lines = lines_of(
        tmp_path,
        """
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(1)
        for uuid in ("u1", "u2"):
            with with_request_id(uuid):
                pool.submit(print, "in the pool").result()
        """,
    )

    assert ids_of(lines, "in the pool") == ["u1", "u2"]


def test_a_line_without_an_end_is_not_mixed_with_the_next_requests(tmp_path: Path) -> None:
    lines = lines_of(
        tmp_path,
        """
        for uuid in ("u1", "u2"):
            with with_request_id(uuid):
                print("of", uuid, end="")
        """,
    )

    assert [(line.uuid, line.message) for line in lines] == [("u1", "of u1"), ("u2", "of u2")]


def test_a_signal_handler_may_print_while_its_thread_prints(tmp_path: Path) -> None:
    lines = lines_of(
        tmp_path,
        """
        import signal
        signal.signal(signal.SIGALRM, lambda *_: sys.stdout.write("signal\\n"))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for number in range(3000):
            sys.stdout.write(f"line {number}\\n")
        signal.setitimer(signal.ITIMER_REAL, 0)
        """,
    )

    assert sorted(int(line.message.split()[1]) for line in lines if line.message.startswith("line")) == [*range(3000)]
    assert ids_of(lines, "signal")
    assert {line.message.split()[0] for line in lines} == {"line", "signal"}


def test_what_is_printed_at_exit_arrives(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, "atexit.register(print, 'at exit', end='')\nprint('last, ', end='')")

    assert [line.message for line in lines] == ["last, at exit"]


def test_control_characters_of_the_pipe_are_escaped() -> None:
    forged = line_of_pipe("\x1b[2Jred\x07", "train")
    assert (forged.message, forged.source, forged.process) == ("\\x1b[2Jred\\x07", "output", "train")
    assert line_of_pipe("\x1e[not a line", "train").message == "\\x1e[not a line"
    marked = line_of_pipe('\x1e[1.0,"INFO","\x1b[2J","u\\n1","worker 1"]'.replace("\x1b", "\\u001b"), "train")
    assert (marked.message, marked.uuid) == ("\\x1b[2J", "u?1")


FORKING = """
import os, sys
from mlpkit.injection import user_code

def train():
    pid = os.fork()
    if not pid:
        END
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

print("code", user_code(train))
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("return 7", 0), ("sys.exit(3)", 3), ("sys.exit('words')", 1), ("raise ValueError('mine')", 1), ("sys.exit()", 0)],
)
def test_a_process_that_user_code_forks_ends_with_the_users_function(end: str, code: int) -> None:
    script = FORKING.replace("END", end)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG, check=True)

    assert done.stdout == f"code {code}\n"
    assert ("ValueError: mine" in done.stderr, "words" in done.stderr) == ("mine" in end, "words" in end)
