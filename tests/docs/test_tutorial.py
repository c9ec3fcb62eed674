"""Each chapter of the tutorial works as it is printed: its files, its commands, and what they print.

A block with a title is a file. A block of the language `sh` is typed into a shell, which lives as long as the
tutorial; one that ends with `mlpkit run` is typed into a terminal of its own. A block of the language `text` that
follows is what was printed, shortened: `…` stands for anything, and the values of ids, times and sizes do not count.
"""

from __future__ import annotations

import ast
import fcntl
import importlib
import importlib.util
import os
import pty
import re
import secrets
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.terminal import screen_of
from tests.docs.pages import DOCS, CodeBlock, read
from tests.docs.test_code_blocks import WIDEST
from tests.impossible import impossible
from tests.servers import LONG, S3Server, free_port, wait_until
from tests.servers.raycluster import ENVIRONMENT, is_installed, ray_cluster

TUTORIAL = DOCS / "tutorial"
CHAPTERS = re.findall(
    r"^\d+\. \[.*\]\(([a-z-]+)\.md\)", (TUTORIAL / "index.md").read_text(encoding="utf-8"), re.MULTILINE
)
CODE = {chapter: read(TUTORIAL / f"{chapter}.md").code for chapter in CHAPTERS}
FILES = {block.title for blocks in CODE.values() for block in blocks if block.title}
PORTS = ("8000", "8001", "8002", "8003", "8010")
"""The ports of the tutorial; a test uses free ones."""
STORE = "127.0.0.1:9000"
RAY = "127.0.0.1:6379"
OPTIONAL = {"torch", "ray"}
"""Packages of chapters that are only read if a machine lacks them."""
_ONLY_READ = re.compile(r"^(docker|pip|ray|weed) ", re.MULTILINE)
_SERVICE = re.compile(r"(\w+=\S+ )*mlpkit run .*(?<!&)")
_VALUES = re.compile(
    r"\b[0-9a-f]{32}_\d{14}\b"  # the id of a model
    r"|\b\d+:\d\d:\d\d(?:\.\d+)?\b"
    r"|\b\d+(?:\.\d+)? ?(?:ms|s|B|KiB|MiB|GiB)\b"
    r"|\b\d+\.\d\d(?= │)"  # seconds in a table
)
_VALUE = r"[\w.:-]+(?: ?(?:ms|s|B|KiB|MiB|GiB)\b)?"
_MLPKIT = """#!/bin/sh
# mlpkit, with a free port in the place of 8000
case "$1 $*" in
  *--port*|*--url*) ;;
  run*) set -- "$@" --port {port} ;;
  jobs*|status*|logs*|stack*|cancel*|models*|load*|unload*|alias*) set -- "$@" --url http://127.0.0.1:{port} ;;
esac
exec {program} "$@"
"""


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_scripts_of_the_tutorial_have_a_name_and_what_they_import(chapter: str) -> None:
    for block in CODE[chapter]:
        if block.language == "python":
            place = f"{chapter}.md, line {block.number}"
            assert block.title, f"{place}: a file without a name"
            assert missing(block.text) <= OPTIONAL, place


def missing(text: str) -> set[str]:
    """What a Python text imports and this machine does not have: packages, and names of mlpkit."""
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    found = set()
    for node in imports:
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        for package in {module.partition(".")[0] for module in modules}:
            if f"{package}.py" not in FILES and importlib.util.find_spec(package) is None:
                found.add(package)
        if isinstance(node, ast.ImportFrom) and modules[0].partition(".")[0] == "mlpkit":
            module = importlib.import_module(modules[0])
            found |= {f"{modules[0]}.{alias.name}" for alias in node.names if not hasattr(module, alias.name)}
    return found


@dataclass
class Reader:
    """Does what the chapters say, in one folder; use it in a `with` block."""

    folder: Path
    environment: Mapping[str, str]
    ports: Mapping[str, int]
    words: dict[str, str] = field(default_factory=dict)
    """What this machine has in the place of what is printed, such as the address of a store."""
    services: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    printed: str = ""

    def __enter__(self) -> Reader:
        self.terminal, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDEST, 0, 0))
        self.shell = subprocess.Popen(
            ["bash", "--norc"],
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.PIPE,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop_all()
        for file in self.folder.rglob("nginx.pid"):
            os.kill(int(file.read_text()), signal.SIGTERM)
        self.type("kill $(jobs -p); wait")
        self.shell.communicate(timeout=LONG)
        os.close(self.terminal)

    def follow(self, chapter: str) -> None:
        """Does what a chapter says; the services of the chapter before are stopped."""
        self.stop_all()
        blocks = CODE[chapter]
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            place = f"{chapter}.md, line {block.number}"
            is_printed = following is not None and following.language == "text" and not following.title
            if block.title:
                (self.place / block.title).write_text(self.here(block.text), encoding="utf-8")
            elif block.language == "text":
                self.compare(block, place)
            elif _SERVICE.fullmatch(block.lines[-1]):
                self.serve(block, place)
            elif not _ONLY_READ.search(block.text):
                code, self.printed = self.type(self.here(block.text))
                assert code == 0 or is_printed, f"{place}: {self.printed}"

    @property
    def place(self) -> Path:
        """The folder in which the shell is."""
        return Path(self.type("pwd")[1])

    def here(self, text: str) -> str:
        """A printed text with the ports and servers of this machine."""
        for printed, here in self.words.items():
            text = text.replace(printed, here)
        return re.sub(rf"\b({'|'.join(self.ports)})\b", lambda found: str(self.ports[found[1]]), text)

    def type(self, command: str) -> tuple[int, str]:
        """Types a command; its exit code and what is on the screen at its end."""
        assert self.shell.stdin is not None
        end = re.compile(rb"\nend of the command: (\d+)\r\n$")
        typed = f"{{ :\n{command}\n}} < /dev/null\nprintf '\\nend of the command: %s\\n' $?\n"
        self.shell.stdin.write(typed.encode())
        self.shell.stdin.flush()
        written = b""
        while (ended := end.search(written)) is None:
            ready, _, _ = select.select([self.terminal], [], [], LONG)
            assert ready, f"{command} does not end: {written.decode(errors='replace')}"
            written += os.read(self.terminal, 1 << 16)
        return int(ended[1]), "\n".join(screen_of(written[: ended.start()].decode()))

    def serve(self, block: CodeBlock, place: str) -> None:
        """Starts a service in another terminal; Ctrl-C ends the one that is there."""
        port = self.ports["8000"]
        self.stop(port)
        variables = dict(line.split("=", 1) for line in self.type("env")[1].splitlines() if "=" in line)
        log = self.folder / "service.log"
        with log.open("wb") as output:
            service = self.services[port] = subprocess.Popen(
                ["bash", "-c", self.here(block.text)],
                cwd=self.place,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(lambda: is_ready(port) or service.poll() is not None, f"the service of {place} is ready")
        self.printed = log.read_text(encoding="utf-8")
        assert service.poll() is None, f"{place}: {self.printed}"

    def stop(self, port: int) -> None:
        """Presses Ctrl-C in the terminal of a service."""
        service = self.services.pop(port, None)
        if service is not None and service.poll() is None:
            os.killpg(service.pid, signal.SIGINT)
            service.wait(LONG)

    def stop_all(self) -> None:
        """Presses Ctrl-C in all terminals of services."""
        for port in list(self.services):
            self.stop(port)

    def compare(self, block: CodeBlock, place: str) -> None:
        """Checks that what was printed has the lines of the block, in this order."""
        rest = [narrow(line) for line in self.printed.splitlines()]
        for line in self.here(block.text).splitlines():
            wanted = pattern(line)
            while rest and not wanted.fullmatch(rest[0]):
                del rest[0]
            assert rest, f"{place}: not printed: {line}\nPrinted:\n{self.printed}"


def pattern(line: str) -> re.Pattern[str]:
    """What a line may look like that is printed as it is here."""
    pieces = narrow(line).split("…")
    return re.compile(".*".join(_VALUE.join(map(re.escape, _VALUES.split(piece))) for piece in pieces))


def narrow(line: str) -> str:
    """A line without what depends on the widths of columns: spaces and rulers."""
    return re.sub(r"([━─])\1+", r"\1", " ".join(line.split()))


@pytest.mark.parametrize(
    ("printed", "is_alike"),
    [
        ("took 12.5 s  good  91.2", True),
        ("took 12.5 s  good  90.7", False),
        ("took 12.5 s  bad  91.2", False),
    ],
)
def test_times_and_shortened_parts_do_not_count_but_all_else_does(printed: str, is_alike: bool) -> None:
    assert (pattern("took 3 s  good  91.…").fullmatch(narrow(printed)) is not None) is is_alike


def is_ready(port: int) -> bool:
    """Whether a service answers there that it is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Somebody who follows the tutorial in an empty folder; free ports are in the place of 8000 and others."""
    ports = {port: free_port() for port in PORTS}
    programs = Path(sys.executable).parent
    own = tmp_path / "bin"
    own.mkdir()
    (own / "mlpkit").write_text(_MLPKIT.format(program=programs / "mlpkit", port=ports["8000"]))
    (own / "mlpkit").chmod(0o755)
    path = os.pathsep.join((str(own), str(programs), os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"))
    folder = tmp_path / "home"
    folder.mkdir()
    environment = {**os.environ, "PATH": path, "TERM": "xterm", "COLUMNS": str(WIDEST), "LC_ALL": "C.UTF-8"}
    with Reader(folder, environment, ports) as reader:
        yield reader


@pytest.mark.untraced
def test_first_chapter_works_as_printed(reader: Reader) -> None:
    reader.follow(CHAPTERS[0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_chapters_work_as_printed(reader: Reader, s3: S3Server) -> None:
    if shutil.which("nginx", path=reader.environment["PATH"]) is None:
        impossible("nginx is not installed (apt-get install nginx)")
    reader.words = {STORE: s3.endpoint, "tutorial-key": s3.access_key, "tutorial-secret": s3.secret_key}
    for chapter in CHAPTERS:
        lacks = {name for block in CODE[chapter] if block.language == "python" for name in missing(block.text)}
        if lacks or (chapter == "ray" and not is_installed()):
            print(f"{chapter}.md was only read: {' '.join(lacks) or chapter} is not installed")
        elif chapter == "ray":
            with ray_cluster([{"num_cpus": 2}]) as cluster:
                reader.words[RAY] = cluster.address
                reader.type("\n".join(f"export {name}={value}" for name, value in ENVIRONMENT.items()))
                reader.follow(chapter)
                reader.stop_all()
        else:
            if chapter == "container":
                # From here on the store is that of other tests too.
                own = secrets.token_hex(4)
                reader.type(f"export MLPKIT_MODEL_BUCKET=models-{own} MLPKIT_DATA_BUCKET=data-{own}")
            reader.follow(chapter)
