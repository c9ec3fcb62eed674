"""What the benchmark makes of its runs."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from tests.benchmarks import page
from tests.benchmarks.catalog import BARE, HOP, MLPKIT, PEERS
from tests.benchmarks.environments import Installed
from tests.benchmarks.goals import GOALS, Goal, outcomes
from tests.benchmarks.limit import Fed, Limit
from tests.benchmarks.load import Run, write_script
from tests.benchmarks.measure import TOGETHER, Figures, Idle, Sample, crowds, kept, quiet
from tests.benchmarks.pace import CONNECTIONS, Stream, pace
from tests.benchmarks.tails import Beside, Half, Neighbours, Spread, Tails
from tests.docs.pages import DOCS, read, without_code_spans
from tests.impossible import impossible


def run(rate: float = 1000.0, cpu: float = 50.0) -> Run:
    return Run(rate=rate, p50=1.0, p99=2.0, cpu=cpu, requests=1000, errors=0)


def sample(rate: float = 500.0, cpu: float = 100.0, before: float = 1000.0, after: float = 1000.0) -> Sample:
    return Sample(run(rate, cpu), run(before), run(after))


def test_ratios_refer_to_both_bare_runs_beside_a_run() -> None:
    found = sample(rate=500.0, cpu=100.0, before=800.0, after=1200.0)
    assert (found.ratio, found.cpu_ratio) == (0.5, 2.0)


def test_run_between_unsteady_bare_runs_is_left_out() -> None:
    steady, unsteady = sample(before=1000.0, after=760.0), sample(before=1000.0, after=740.0)
    assert kept([steady, unsteady, steady]) == [steady, steady]


def test_run_whose_cpu_per_request_is_off_the_median_is_left_out() -> None:
    usual, off = sample(cpu=100.0), sample(cpu=126.0)
    assert kept([usual, usual, off]) == [usual, usual]


def test_steadiest_run_stays_where_all_are_noisy() -> None:
    noisy, noisier = sample(after=600.0), sample(after=300.0)
    assert quiet([noisier, noisy]) == []
    assert kept([noisier, noisy]) == [noisy]


def test_few_servers_are_alive_at_a_time_and_those_that_never_rest_by_themselves() -> None:
    found = crowds(PEERS)
    assert sorted(peer.name for crowd in found for peer in crowd) == sorted(peer.name for peer in PEERS)
    assert max(map(len, found)) == TOGETHER
    assert all(len(crowd) == 1 for crowd in found if any(peer.alone for peer in crowd))


def test_bare_runs_alone_say_which_rounds_of_the_tails_count() -> None:
    own, bare = [Spread(1, p99) for p99 in (9, 2, 8)], [Spread(1, p99) for p99 in (3, 30, 4)]
    found = Beside(own, bare).steady()
    assert found == (Spread(1, 9), Spread(1, 4))


@pytest.mark.parametrize(
    ("goal", "good", "bad"),
    [(Goal("W1@16", "throughput", 0.6, 0.8), 0.6, 0.59), (Goal("W1@16", "CPU per request", 1.6, 1.3), 1.6, 1.61)],
)
def test_throughput_must_be_at_least_the_goal_and_cost_at_most(goal: Goal, good: float, bad: float) -> None:
    assert goal.holds(good)
    assert not goal.holds(bad)


def test_gate_is_on_cpu_alone() -> None:
    assert {goal.figure for goal in GOALS if goal.gate} == {"CPU per request"}


def test_goals_of_measured_cases_are_judged() -> None:
    figures = Figures(samples={"W2@16": {MLPKIT.name: [sample(rate=500.0)]}})
    assert [(goal.figure, value, goal.holds(value)) for goal, value in outcomes(figures, MLPKIT.name)] == [
        ("throughput", 0.5, False)
    ]


def test_goals_of_w1_are_figures_of_the_bare_hop() -> None:
    ours, hop = sample(rate=500.0, cpu=90.0), sample(rate=400.0, cpu=75.0)
    figures = Figures(samples={"W1@16": {MLPKIT.name: [ours], HOP.name: [hop]}})
    assert [(goal.figure, value, goal.holds(value)) for goal, value in outcomes(figures, MLPKIT.name)] == [
        ("throughput", 1.25, True),
        ("CPU per request", 1.2, False),
    ]
    del figures.samples["W1@16"][HOP.name]
    assert outcomes(figures, MLPKIT.name) == []


RIVAL = next(peer for peer in PEERS if peer.isolated).name


def some_figures() -> Figures:
    samples = {
        MLPKIT.name: [sample(rate=500.0)],
        RIVAL: [sample(rate=900.0)],
        HOP.name: [sample(rate=610.0), sample(after=600.0)],
    }
    return Figures({"W1@16": samples}, {"W1@16": [run()]}, absent={"Other in W1": "no wheel"})


def pages(found: page.Found, folder: Path) -> list[str]:
    """Both pages of what was found."""
    page.write(found, folder)
    return [(folder / name).read_text(encoding="utf-8") for name in ("benchmarks.md", "benchmarks.zh.md")]


def rows(text: str) -> list[list[str]]:
    """The numbers of every row of a table."""
    return [numbers(line) for line in text.splitlines() if line.lstrip().startswith("|")]


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?%?", text)


def test_page_names_who_is_ahead_and_who_is_absent(tmp_path: Path) -> None:
    text, chinese = pages(page.Found(some_figures(), machine={"CPU": "one"}), tmp_path)
    assert f"- W1@16: mlpkit 0.50; {RIVAL} 0.90, {HOP.name} 0.61." in text
    assert f"- W1@16, a model that does nothing: mlpkit 0.50, {RIVAL} 0.90." in text
    assert "- W1@16: throughput is 0.82; the goal is 1." in text
    assert "- Other in W1: `no wheel`" in text
    assert f"- W1@16：mlpkit 0.50；{RIVAL} 0.90，bare ASGI + 工作进程 0.61。" in chinese
    assert f"- W1@16，什么也不做的模型：mlpkit 0.50，{RIVAL} 0.90。" in chinese
    assert "- W1@16，吞吐量：0.82，目标是 1。" in chinese
    assert "- Other（W1）：`no wheel`" in chinese


def test_both_languages_show_all_that_was_found(tmp_path: Path) -> None:
    figures = some_figures()
    figures.idle[MLPKIT.name] = [Idle(0.47, 53.0, 4)]
    spreads = [Spread(p50, 2.75 * p50) for p50 in (0.21, 0.22, 0.23, 0.24)]
    found = page.Found(
        figures,
        {"CPU": "a name", "cores": "77", "length of a round": "7 s"},
        {MLPKIT.name: Installed(MLPKIT.pip, 39.0, 29)},
        Tails(Half(30817, 5, 16711, *spreads), Neighbours([0.45], [0.54])),
        Limit(23.4, [Fed(1, 865, 0.15), Fed(4, 3376, 0.29)]),
    )
    stored = msgspec.json.decode(msgspec.json.encode(found), type=page.Found)
    english, chinese = pages(stored, tmp_path)
    shown = (
        "77",
        "0.47",
        "53",
        "39",
        "29",
        "0.61",
        "30817",
        "16711",
        "0.24",
        "0.66",
        "0.54",
        "1.20",
        "23",
        "43",
        "98%",
    )
    assert set(shown) <= set(numbers(english))
    assert rows(english) == rows(chinese)
    assert not Counter(numbers(english)) - Counter(numbers(chinese))


@pytest.mark.parametrize("measured", [True, False])
def test_chinese_page_has_the_parts_of_the_english_one_and_no_english_words(measured: bool, tmp_path: Path) -> None:
    found = page.Found(some_figures(), dict.fromkeys(page.CHINESE_LABELS, "1")) if measured else page.Found()
    pages(found, tmp_path)
    english, chinese = (read(tmp_path / name) for name in ("benchmarks.md", "benchmarks.zh.md"))
    assert english.anchors == chinese.anchors
    assert re.findall(r"\b[a-z]+(?: [a-z]+)+\b", without_code_spans(chinese.prose)) == []


def test_pages_of_the_site_have_the_same_figures() -> None:
    english, chinese = ((DOCS / name).read_text(encoding="utf-8") for name in ("benchmarks.md", "benchmarks.zh.md"))
    assert len(rows(english)) > 100
    assert rows(english) == rows(chinese)
    assert not Counter(numbers(english)) - Counter(numbers(chinese))


async def sent(workload: str, folder: Path) -> list[bytes]:
    """The requests of one connection of `wrk` in a second, heads and bodies."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError), contextlib.closing(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
                requests.append(head + await reader.readexactly(length))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        script = write_script(BARE, workload, folder)
        wrk = ("wrk", "-t1", "-c1", "-d1s", "-s", str(script), f"http://127.0.0.1:{port}{BARE.path}")
        process = await asyncio.create_subprocess_exec(*wrk, stdout=asyncio.subprocess.DEVNULL)
        await asyncio.wait_for(process.wait(), 60)
    return requests


@pytest.fixture
def wrk() -> None:
    if shutil.which("wrk") is None:
        impossible("wrk is not installed")


@pytest.mark.usefixtures("wrk")
def test_every_label_of_the_machine_has_a_chinese_one() -> None:
    assert page.this_machine(1, 1).keys() == page.CHINESE_LABELS.keys()


@pytest.mark.usefixtures("wrk")
@pytest.mark.parametrize("workload", ["W1", "W2", "W4"])
def test_every_request_has_its_own_id_and_many_have_another_length(workload: str, tmp_path: Path) -> None:
    requests = asyncio.run(sent(workload, tmp_path))
    ids = {re.findall(rb"X-Request-ID: (\w{32})\r\n", request)[0] for request in requests}
    traces = {re.findall(rb"traceparent: (00-\w{32}-\w{16}-01)\r\n", request)[0] for request in requests}
    assert len(requests) > 200
    assert len(ids) == len(traces) == len(requests)
    assert len({len(request) for request in requests}) >= (2 if workload == "W2" else 100)
    assert all(msgspec.json.decode(request.partition(b"\r\n\r\n")[2])["model_id"] == "m" for request in requests)


@pytest.mark.usefixtures("wrk")
def test_w0_sends_the_same_bytes_again_and_again(tmp_path: Path) -> None:
    requests = asyncio.run(sent("W0", tmp_path))
    assert len(requests) > 200
    assert len(set(requests)) == 1


async def paced(answer: bytes, rate: float) -> Stream:
    """A fifth of a second of requests to a server that gives each answer after 50 ms."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while await reader.readline():
                while (await reader.readline()) != b"\r\n":
                    pass
                await reader.readexactly(2)
                await asyncio.sleep(0.05)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(answer), answer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        stream = Stream([{}], rate)
        await pace(server.sockets[0].getsockname()[1], [stream], 0.2)
        return stream


def test_latency_counts_from_when_a_request_was_due() -> None:
    stream = asyncio.run(paced(b'{"status": "success"}', rate=2 * CONNECTIONS / 0.05))
    assert (len(stream.latencies), stream.failures) == (512, 0)
    # Twice as much is asked as the connections can carry: the last request waits as long as all of them take.
    assert stream.percentile(1.0) > 150


def test_answers_that_are_no_success_are_counted() -> None:
    assert asyncio.run(paced(b'{"status": "fail"}', rate=50.0)).failures == 10
