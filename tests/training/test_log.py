"""The lines of a training process: where they come from, where they go, and how many are kept."""

from __future__ import annotations

import io
import re
import socket
import time

import anyio
import psutil
import pytest

from mlpkit.log import LogLine
from mlpkit.processes import BlockingChannel
from mlpkit.settings import Settings
from mlpkit.training import JobOutcome
from mlpkit.training.process import Dropped, Ended, Line, Reporter
from mlpkit.training.process import _decoder as decoder
from tests.conftest import Report as Show
from tests.servers import SOON, until
from tests.training.conftest import OpenQueue, end_of, job, reached, train

SCRIPT = """
import ctypes, logging, multiprocessing, os, subprocess, sys, threading, time, warnings
from loguru import logger
from mlpkit import App, Log, Progress

app = App("it")
loud = app.algorithm("loud")
bars = app.algorithm("bars")
nested = app.algorithm("nested")
forks = app.algorithm("forks")

@app.train
def train(log: Log):
    print("from print")
    print("from stderr", file=sys.stderr)
    logging.getLogger("mine").warning("from logging %d", 1)
    logger.info("from loguru")
    warnings.warn("from warnings")
    log.info("from {}", "Log")
    threading.Thread(target=print, args=("from a thread",)).start()
    ctypes.CDLL(None).puts(b"from C")
    ctypes.CDLL(None).fflush(None)
    subprocess.run(["echo", "from a command"])
    print("not ended by a line break", end="")

@loud.train
def loudly(parameters: dict):
    if "logged" in parameters:
        logger.info("{}", "x" * parameters["logged"])
    line = "x" * parameters["size"]
    for number in range(parameters["lines"]):
        print(line)
    for number in range(parameters.get("raw", 0)):
        os.write(1, line.encode() + b"\\n")
    raise ValueError("after all that")

@bars.train
def with_bar(progress: Progress):
    from tqdm import tqdm
    for _ in tqdm(range(50), desc="fit", mininterval=0.15):
        time.sleep(0.02)
    time.sleep(0.3)

@nested.train
def with_bars():
    from tqdm import tqdm
    for _ in tqdm(range(3), desc="epoch", mininterval=0):
        for _ in tqdm(range(10), desc="batch", leave=False, mininterval=0):
            time.sleep(0.05)

def say(number):
    for line in range(50):
        print(f"from fork {number}: {line} " + "x" * 2_000)
        logger.info("logged in fork {}", number)

@forks.train
def forking(progress: Progress):
    progress.update(0.5)
    def chatter():
        while not done.is_set():
            print("meanwhile")
    done = threading.Event()
    threads = [threading.Thread(target=chatter) for _ in range(4)]
    for each in threads:
        each.start()
    for _ in range(5):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            pool.map(say, range(4), chunksize=1)
    done.set()
"""

pytestmark = pytest.mark.anyio


async def test_every_line_has_the_uuid_in_both_logs(open_queue: OpenQueue, lines: io.StringIO) -> None:
    async with open_queue(SCRIPT) as queue:
        await train(queue, job("m"))
        own_log = queue.log_path("m").read_text()

    sources = ["print", "stderr", "logging 1", "loguru", "warnings", "Log", "a thread", "C", "a command"]
    for text in (own_log, lines.getvalue()):
        for source in sources:
            found = [line for line in text.splitlines() if f"from {source}" in line and "| " in line]
            assert found, source
            assert all("[uuid-of-m]" in line for line in found), source
        assert "not ended by a line break" in text
    stamped = re.compile(r"\d{4}-\d\d-\d\d .* \[uuid-of-m\] ")
    assert [line for line in own_log.splitlines() if not stamped.match(line) and not line.startswith(" ")] == []


async def test_forked_processes_log_through_the_pipe(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT, job_log_size=100 << 20) as queue:
        ended = await train(queue, job("m", "forks"))
        text = queue.log_path("m").read_text()

    assert ended.state == "completed", ended.message
    found = re.findall(r"\| from fork \d: \d+ (x+)\n", text)
    assert len(found) == 5 * 4 * 50
    assert {len(each) for each in found} == {2_000}
    assert len(re.findall(r"\[uuid-of-m\] train \S+ \| logged in fork", text)) == 5 * 4 * 50


async def test_full_log_counts_what_it_drops_and_keeps_the_reason(open_queue: OpenQueue, lines: io.StringIO) -> None:
    limit = 200_000
    async with open_queue(SCRIPT, job_log_size=limit) as queue:
        ended = await train(queue, job("m", "loud", lines=5000, size=100, raw=2000))
        path = queue.log_path("m")
        text = path.read_text()

    assert ended.message == "ValueError: after all that"
    assert path.stat().st_size < limit + 2_000
    assert len(lines.getvalue()) < limit + 2_000
    assert "ValueError: after all that" in text
    kept = text.count("x" * 100)
    dropped = re.search(r"([\d,]+) more lines \(([\d,]+) bytes\) were not kept", text)
    assert dropped is not None
    assert kept + int(dropped[1].replace(",", "")) == 7000


def test_lines_past_the_limit_do_not_cross_the_channel() -> None:
    ours, theirs = socket.socketpair()
    channel = BlockingChannel(theirs)
    report = Reporter(channel, "u", 1000)
    for _ in range(5000):
        report.line(LogLine(0.0, "INFO", "x" * 99))
    report.ended(JobOutcome("completed"))
    channel.close()

    with ours:
        received = BlockingChannel(ours)
        messages = []
        while (message := received.receive()) is not None:
            messages.append(decoder.decode(message))
    assert [type(each) for each in messages] == [Line] * 10 + [Dropped, Dropped, Ended]
    assert messages[-2] == Dropped(4990, 499_000)


async def test_endless_line_is_cut(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        await train(queue, job("m", "loud", lines=0, size=0, logged=3_000_000))
        text = queue.log_path("m").read_text()

    assert "3,000,000 characters" in text
    assert len(text) < 100_000


@pytest.mark.parametrize(
    ("logged", "raw"),
    [(0, 200_000), pytest.param(500_000, 500_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
    ids=["200 MB", "1 GB"],
)
async def test_flood_of_output_neither_grows_memory_nor_blocks_the_loop(
    open_queue: OpenQueue, report: Show, logged: int, raw: int
) -> None:
    still = worked = 0.0

    async def watch() -> None:
        """How long the loop stands still, and how much of that is work of its own, not of other processes."""
        nonlocal still, worked
        while True:
            before, work_before = time.monotonic(), time.thread_time()
            await anyio.sleep(0.01)
            still = max(still, time.monotonic() - before)
            worked = max(worked, time.thread_time() - work_before)

    async with open_queue(SCRIPT, log_level="warning") as queue:
        memory = psutil.Process().memory_info().rss
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            began = anyio.current_time()
            await queue.submit(job("m", "loud", lines=logged, raw=raw, size=1000))
            await until(lambda: (found := queue.job("m")) is not None and found.has_ended, 240)
            took = anyio.current_time() - began
            tasks.cancel_scope.cancel()
        ended, size = queue.job("m"), queue.log_path("m").stat().st_size

    grown = psutil.Process().memory_info().rss - memory
    report(
        f"{(logged + raw) // 1000:,} MB of output in {took:.1f} s: {size / 2**20:.1f} MiB kept, the loop stood still "
        f"for at most {still * 1e3:.0f} ms and worked for at most {worked * 1e3:.0f} ms at once, the server grew by "
        f"{grown / 2**20:.1f} MiB"
    )
    assert ended is not None
    assert ended.message == "ValueError: after all that"
    assert size < Settings().job_log_size + 10_000
    assert grown < 100 << 20
    assert worked < 1.0
    assert still < SOON


@pytest.mark.parametrize("level", ["info", "warning"])
async def test_bars_below_each_other_are_progress_at_each_level_of_the_log(open_queue: OpenQueue, level: str) -> None:
    async with open_queue(SCRIPT, log_level=level) as queue:
        await queue.submit(job("m", "nested"))
        seen = await reached(queue, "m", lambda each: each.progress is not None and len(each.progress.bars) > 1)

    assert seen.progress is not None
    assert [(bar.stage, bar.total) for bar in seen.progress.bars] == [("epoch", 3), ("batch", 10)]


async def test_bar_of_tqdm_is_the_jobs_progress(open_queue: OpenQueue) -> None:
    async with open_queue(SCRIPT) as queue:
        await queue.submit(job("m", "bars"))
        seen = await reached(queue, "m", lambda each: each.progress is not None and (each.progress.done or 0) > 0)
        ended = await end_of(queue, "m")

    assert seen.progress is not None
    assert (seen.state, seen.progress.stage, seen.progress.total) == ("training", "fit", 50)
    assert ended.progress is not None
    assert ended.progress.done == 50
    assert ended.progress.fraction == 1.0
