"""Makes the screenshots and the recording of the documentation from real services: `make docs-pictures`.

It needs Chromium with its driver, a font with Chinese characters, and the package pyte, which is a terminal in memory.
"""

from __future__ import annotations

import base64
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.request import urlopen

import pyte
from selenium import webdriver

from mlpkit.client import Client

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "docs" / "assets"
COLUMNS = 88
CELL = 7.8
LINE = 17
LONGEST_PAUSE = 1.2
"""Seconds: in the recording nobody waits longer for a line."""
AFTER_COMMAND = 1.4
COLORS = {
    "default": "#d6d8de",
    "black": "#6b7080",
    "red": "#f07178",
    "green": "#9ccc65",
    "brown": "#ffcb6b",
    "blue": "#82aaff",
    "magenta": "#c792ea",
    "cyan": "#7fdbca",
    "white": "#eceff4",
    "brightblack": "#7a8090",
}
STYLE = (
    "text{font:13px ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono','WenQuanYi Zen Hei Mono',monospace;"
    "white-space:pre}.b{font-weight:700}"
    ".l{opacity:0;animation:on 1ms linear var(--a) forwards,off 1ms linear var(--b,9999s) forwards}"
    "@keyframes on{to{opacity:1}}@keyframes off{to{opacity:0}}"
    "@media(prefers-reduced-motion:reduce){.l{animation-delay:0s,0s}}"
)

Run = tuple[int, str, str, bool]
"""A part of a line: its first column, text, colour, and whether it is bold."""


def line_of(screen: pyte.Screen, row: int) -> tuple[Run, ...]:
    """The line as runs of one style; characters of two columns stand in runs of their own."""
    runs: list[tuple[int, str, str, bool, bool]] = []
    for column in range(COLUMNS):
        char = screen.buffer[row][column]
        if char.data == "":
            continue
        wide = ord(char.data[0]) > 0x2E80
        style = (char.fg, char.bold, wide)
        if runs and runs[-1][2:] == style:
            first, text, *_ = runs[-1]
            runs[-1] = (first, text + char.data, *style)
        else:
            runs.append((column, char.data, *style))
    while runs and not runs[-1][1].strip():
        runs.pop()
    return tuple(
        (first, text.rstrip() if index == len(runs) - 1 else text, fg, bold)
        for index, (first, text, fg, bold, _) in enumerate(runs)
    )


@dataclass
class Recording:
    """A terminal in memory, and what its lines were at each time."""

    rows: int
    now: float = 0.0
    seen: list[tuple[float, list[tuple[Run, ...]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.screen = pyte.Screen(COLUMNS, self.rows)
        self.stream = pyte.ByteStream(self.screen)

    def feed(self, data: bytes) -> None:
        self.stream.feed(data)
        lines = [line_of(self.screen, row) for row in range(self.rows)]
        if not self.seen or self.seen[-1][1] != lines:
            self.seen.append((self.now, lines))

    def run(self, shown: str, folder: Path, hidden: str = "") -> None:
        """Types a command, runs it in a terminal, and keeps what it prints; `hidden` is run after it."""
        self.feed(b"\x1b[32m$\x1b[0m ")
        for first in range(0, len(shown), 4):
            self.feed(shown[first : first + 4].replace("\n", "\r\n\x1b[32m>\x1b[0m ").encode())
            self.now += 0.12
        self.feed(b"\r\n")
        last = time.monotonic()
        for data in output_of(f"{shown}\n{hidden}", folder, self.rows):
            self.now += min(time.monotonic() - last, LONGEST_PAUSE)
            last = time.monotonic()
            self.feed(data)
        self.now += AFTER_COMMAND

    def clear(self) -> None:
        self.feed(b"\x1b[2J\x1b[H")

    def svg(self, *, moving: bool) -> str:
        """The last screen, or all of them with the times at which their lines appear and go."""
        parts = []
        for row in range(self.rows):
            appeared = 0.0
            present: tuple[Run, ...] = ()
            for when, lines in [*self.seen, (self.now + 1, [()] * self.rows)]:
                if lines[row] == present and when <= self.now:
                    continue
                gone = when if when <= self.now else None
                if present and (moving or gone is None):
                    parts.append(self._line(row, present, appeared if moving else None, gone))
                appeared = when
                present = lines[row]
        height = (1 + max(row for _, lines in self.seen for row in range(self.rows) if lines[row])) * LINE + 20
        width = COLUMNS * CELL + 24
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}"><style>{STYLE}</style>'
            f'<rect width="100%" height="100%" rx="8" fill="#1e2129"/>{"".join(parts)}</svg>\n'
        )

    def _line(self, row: int, runs: tuple[Run, ...], begin: float | None, end: float | None) -> str:
        spans = []
        for first, text, fg, bold in runs:
            color = COLORS.get(fg, f"#{fg}" if len(fg) == 6 else COLORS["default"])
            cells = sum(2 if ord(char) > 0x2E80 else 1 for char in text)
            spans.append(
                f'<tspan x="{12 + first * CELL:g}" fill="{color}" textLength="{cells * CELL:g}"'
                f"{' class=' + chr(34) + 'b' + chr(34) if bold else ''}>{escape(text)}</tspan>"
                if text.strip()
                else ""
            )
        times = (
            ""
            if begin is None
            else f' class="l" style="--a:{begin:.2f}s{f";--b:{end:.2f}s" if end is not None else ""}"'
        )
        return f'<text y="{row * LINE + 24}"{times}>{"".join(spans)}</text>'


def output_of(command: str, folder: Path, rows: int) -> Iterator[bytes]:
    """What a command prints to a terminal, as it comes."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TERM": "xterm-256color",
        "COLUMNS": str(COLUMNS),
        "LINES": str(rows),
        "COLORTERM": "",
        "MLPKIT_LOG_LEVEL": "error",
    }
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe("bash", ["bash", "-c", f"test -f .env.sh && . ./.env.sh\n{command}"], environment)
    while True:
        if not select.select([terminal], [], [], 300)[0]:
            os.kill(pid, signal.SIGKILL)
            raise TimeoutError(command)
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        yield data
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"exit code {os.waitstatus_to_exitcode(status)}: {command}")


def record_quickstart(folder: Path) -> None:
    """From a script and its data to a prediction: docs/assets/recording.svg."""
    shutil.copy(ROOT / "docs" / "snippets" / "home.py", folder / "topics.py")
    rows = [("the match ended with two goals", "sport"), ("our team won the cup", "sport")]
    rows += [("the goalkeeper saved a penalty", "sport"), ("rates rise and shares fall", "money")]
    rows += [("the bank lends at lower rates", "money"), ("shares of the bank recover", "money")]
    (folder / "topics.tsv").write_text("".join(f"{sentence}\t{label}\t1\n" for sentence, label in rows))
    recording = Recording(rows=32)
    recording.run("cat topics.py", folder)
    recording.now += 12
    recording.clear()
    recording.run("mlpkit data check topics.tsv --kind text_classification", folder)
    recording.now += 5
    train = "MODEL=$(mlpkit train topics.py --data topics.tsv --parameters '{\"C\": 10}')"
    recording.run(train, folder, hidden='echo "MODEL=$MODEL" > .env.sh')
    predict = 'mlpkit predict topics.py --model "$MODEL" \\\n'
    predict += """  --features '{"sentence": "the team saved a goal"}' --params '{"top_n": 1}'"""
    recording.run(predict, folder)
    recording.now += 4
    (ASSETS / "recording.svg").write_text(recording.svg(moving=True), encoding="utf-8")
    print(f"the recording takes {recording.now:.0f} s")


def show_commands(folder: Path) -> None:
    """The last screens of `mlpkit train` and `mlpkit check`."""
    for name in ("sentiment.tsv", "sentiment-test.tsv"):
        shutil.copy(ROOT / "examples" / "data" / name, folder)
    shutil.copy(ROOT / "examples" / "sentiment.py", folder)
    for name, command in (
        ("train", "mlpkit train sentiment.py --data sentiment.tsv --test sentiment-test.tsv"),
        ("check", "mlpkit check sentiment.py --data sentiment.tsv"),
    ):
        recording = Recording(rows=48)
        recording.run(command, folder)
        (ASSETS / f"{name}.svg").write_text(recording.svg(moving=False), encoding="utf-8")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a service with some jobs, models and requests."""
    port = 8765
    shutil.copy(ROOT / "examples" / "sentiment.py", folder)
    data = folder / "home" / "storage" / "ml-platform-data"
    data.mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "data" / "sentiment.tsv", data)
    environment = os.environ | {"MLPKIT_HOME": str(folder / "home"), "MLPKIT_LOG_LEVEL": "warning"}
    command = [sys.executable, "-m", "mlpkit", "run", "sentiment.py", "--port", str(port), "--workers", "2"]
    process = subprocess.Popen(command, cwd=folder, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urlopen(f"{address}/health/ready", timeout=5).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        with Client(address) as client:
            for parameters in ({"c": 0.5}, {"c": 1.0}, {"c": 4.0}):
                job = client.train("sentiment", data="sentiment.tsv", parameters=parameters)
                job.wait()
                client.load("sentiment", job.model_id)
                for _ in range(200):
                    client.predict(job.model_id, {"sentence": "味道很好，下次还来。"})
        yield address
    finally:
        process.terminate()
        process.wait(60)


def photograph(folder: Path) -> None:
    """The page of a running service, in both languages."""
    with served(folder) as address:
        time.sleep(25)  # the charts have a point every 10 seconds
        for language, name in (("en", "page.webp"), ("zh", "page.zh.webp")):
            options = webdriver.ChromeOptions()
            options.binary_location = "/usr/bin/chromium"
            for option in (
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--lang={language}",
            ):
                options.add_argument(option)
            options.add_experimental_option("prefs", {"intl.accept_languages": language})
            driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
            try:
                size = {"width": 1200, "height": 860, "deviceScaleFactor": 1.5, "mobile": False}
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                driver.get(address)
                time.sleep(4)
                shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "webp", "quality": 70})
                (ASSETS / name).write_bytes(base64.b64decode(shot["data"]))
            finally:
                driver.quit()


def main() -> None:
    """Makes the pictures that are named, or all: recording, commands, page."""
    makers = {"recording": record_quickstart, "commands": show_commands, "page": photograph}
    for name in sys.argv[1:] or makers:
        with tempfile.TemporaryDirectory() as folder:
            makers[name](Path(folder))
    for file in sorted([*ASSETS.glob("*.svg"), *ASSETS.glob("*.webp")]):
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
