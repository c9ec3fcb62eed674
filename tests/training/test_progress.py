"""How far a job is: what handlers tell, and what progress bars show."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from decimal import Decimal

import msgspec
import numpy
import pytest
from tqdm import tqdm

from mlpkit.processes.output import LineSplitter, LineStream
from mlpkit.training.progress import BarLines, BarState, Progress, Snapshot, depth_of, read_bar
from tests.servers import LONG


def test_tracked_items_are_counted_with_an_estimate_of_the_rest() -> None:
    progress = Progress(lambda snapshot: None)
    items = progress.track([10, 20, 30, 40], "read")
    began = time.monotonic()
    assert [next(items), next(items)] == [10, 20]
    time.sleep(0.01)
    assert next(items) == 30

    snapshot = progress.snapshot()

    assert (snapshot.stage, snapshot.done, snapshot.total, snapshot.fraction) == ("read", 2, 4, 0.5)
    assert snapshot.remaining is not None
    assert 0.009 < snapshot.remaining <= time.monotonic() - began
    assert list(items) == [40]
    progress.close()


def test_rest_of_a_job_that_continues_is_reckoned_from_what_it_has_done_itself() -> None:
    progress = Progress(lambda snapshot: None)
    items = progress.track(range(90, 100), "fit", total=100, done=90)
    next(items)
    assert (progress.snapshot().fraction, progress.snapshot().remaining) == (0.9, None)
    time.sleep(0.01)
    next(items)
    remaining = progress.snapshot().remaining
    assert remaining is not None
    # One of ten is done: the others need nine times as long.
    assert remaining >= 9 * 0.01
    assert progress.snapshot().fraction == 0.91
    assert list(items) == list(range(92, 100))
    progress.close()


def test_rows_of_the_data_stay_in_the_progress_of_a_completed_job() -> None:
    progress = Progress(lambda snapshot: None)
    progress.note_rows(7)
    assert progress.snapshot().rows == 7
    assert progress.snapshot().completed().rows == 7
    progress.close()


def test_total_is_unknown_where_the_items_have_no_length() -> None:
    progress = Progress(lambda snapshot: None)
    items = progress.track(iter(range(3)).__iter__(), "read", total=None)
    unsized = progress.track((each for each in range(3)), "count")
    next(unsized)
    next(unsized)

    assert (progress.snapshot().done, progress.snapshot().fraction) == (1, None)
    assert list(items) == [0, 1, 2]
    progress.close()


def test_inner_stage_is_shown_and_the_outer_one_comes_back() -> None:
    progress = Progress(lambda snapshot: None)
    with progress.stage("fit"):
        with progress.stage("epoch 1"):
            assert progress.snapshot().stage == "epoch 1"
        assert progress.snapshot().stage == "fit"
    assert progress.snapshot().stage == ""
    progress.close()


def test_many_changes_are_few_messages_and_the_last_one_is_among_them() -> None:
    sent: list[Snapshot] = []
    progress = Progress(sent.append)
    started = time.monotonic()
    for number in progress.track(range(200_000), "read"):
        progress.update(loss=number)
    progress.update(1.0, "ready", loss=0.25)
    took = time.monotonic() - started
    progress.close()

    assert len(sent) <= took * 10 + 3
    assert (sent[-1].message, sent[-1].fraction, sent[-1].metrics) == ("ready", 1.0, {"loss": 0.25})


def test_last_change_is_sent_although_nothing_follows_it() -> None:
    sent: list[Snapshot] = []
    progress = Progress(sent.append)
    progress.update(0.1)
    progress.update(0.2)
    deadline = time.monotonic() + LONG
    while (not sent or sent[-1].fraction != 0.2) and time.monotonic() < deadline:
        time.sleep(0.01)

    assert sent[-1].fraction == 0.2
    progress.close()


def test_metrics_become_what_json_has() -> None:
    progress = Progress(lambda snapshot: None)
    progress.update(f1=numpy.float32(0.5), per_label=numpy.array([1, 2]), by={1: {"x"}}, other=object)

    metrics = progress.metrics

    assert metrics["f1"] == 0.5
    assert type(metrics["f1"]) is float
    assert metrics["per_label"] == [1, 2]
    assert metrics["by"] == {"1": ["x"]}
    assert isinstance(metrics["other"], str)
    progress.close()


def test_whatever_a_handler_tells_can_be_sent() -> None:
    sent: list[bytes] = []
    progress = Progress(lambda snapshot: sent.append(msgspec.msgpack.encode(snapshot)))
    for total in (2.5, float("inf"), float("nan"), 2**70):
        assert list(progress.track([1, 2], 7, total=total)) == [1, 2]  # type: ignore[arg-type]
    with progress.stage("\udcff"):
        progress.update(0.5, "\ud800", large=2**70, half="\ud800", deep=[{"x": -(2**70)}])
    progress.redrawn("\udcff: 50%|#    | " + "9" * 400 + "/" + "9" * 30 + f" [00:01<{'9' * 400}:01, 1it/s]")
    progress.close()

    told = [msgspec.msgpack.decode(each, type=Snapshot) for each in sent]

    assert told
    assert told[-1].metrics == {"large": str(2**70), "half": "\\ud800", "deep": str([{"x": -(2**70)}])}


def test_total_that_is_no_whole_number_is_rounded_up() -> None:
    progress = Progress(lambda snapshot: None)
    items = progress.track([1, 2, 3], "fit", total=5 / 2)
    next(items)

    assert progress.snapshot().total == 3
    assert len(list(items)) == 2
    progress.close()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "fit:  45%|####5     | 45/100 [00:01<00:02, 50.00it/s]",
            BarState(stage="fit", fraction=0.45, done=45, total=100, remaining=2.0),
        ),
        ("  0%|          | 0/3 [00:00<?, ?it/s]", BarState(fraction=0.0, done=0, total=3)),
        (
            "Epoch 1/3: loss 0.2:  50%|█████     | 1/2 [00:01<1:00:01,  2.0s/it, acc=0.9]",
            BarState(stage="Epoch 1/3: loss 0.2", fraction=0.5, done=1, total=2, remaining=3601.0),
        ),
        (
            "model.bin: 25%|██▌       | 1.00M/4.00M [00:01<00:03, 1.00MB/s]",
            BarState(stage="model.bin", fraction=0.25, done=10**6, total=4 * 10**6, remaining=3.0),
        ),
        ("\x1b[A45it [00:01, 40.10it/s]", BarState(done=45)),
        ("read: 45it [00:01, 40.10it/s]", BarState(stage="read", done=45)),
    ],
)
def test_line_of_a_progress_bar_is_understood(line: str, expected: BarState) -> None:
    assert read_bar(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        "100% sure",
        "loss 3/4",
        "50%|half|",
        "a [b, c]",
        "[00:01, 3it/s]",
        "|" * 5000,
        "fit: 45%|####5     | 45/100 [00:01<00:02, 50.00it/s]epoch 1 has ended",
    ],
)
def test_other_lines_are_no_progress_bar(line: str) -> None:
    assert read_bar(line) is None


@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("total", [40, None])
def test_every_line_that_tqdm_redraws_is_understood(ascii: bool, total: int | None) -> None:
    stream = io.StringIO(newline="")
    bar = tqdm(total=total, desc="fit", file=stream, ascii=ascii, mininterval=0, miniters=1)
    for _ in range(40):
        bar.update()
        bar.set_postfix(loss=0.5)
    bar.close()
    splitter = LineSplitter()
    lines = splitter.feed(stream.getvalue().encode()) + splitter.close()

    seen = [read_bar(text) for text, _ in lines]
    assert len(seen) >= 40
    assert [each for each in seen if each is None or each.stage != "fit"] == []
    last = seen[-1]
    assert last is not None
    assert (last.done, last.total) == (40, total)


def test_bar_does_not_overwrite_what_the_handler_counts() -> None:
    progress = Progress(lambda snapshot: None)
    progress.redrawn(" 50%|#####     | 1/2 [00:01<00:01, 1.0it/s]")
    assert progress.snapshot().fraction == 0.5
    for _ in progress.track(range(4), "read"):
        progress.redrawn("100%|##########| 9/9 [00:01<00:00, 1.0it/s]")
        assert progress.snapshot().total == 4
    progress.close()


NAN, INF = float("nan"), float("inf")


class Broken:
    def __str__(self) -> str:
        raise ValueError("no text")


def circle() -> list[object]:
    made: list[object] = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (NAN, None),
        (-INF, None),
        ([1.0, NAN, {"deep": (INF, 2)}], [1.0, None, {"deep": [None, 2]}]),
        (numpy.float32("nan"), None),
        (numpy.float64(0.5), 0.5),
        (
            {"nested": numpy.float64("inf"), "right": [numpy.int64(3), numpy.bool_(True)]},
            {"nested": None, "right": [3, True]},
        ),
        (numpy.array([[1.0, numpy.nan]]), [[1.0, None]]),
        (numpy.datetime64("NaT"), None),
        (Decimal("NaN"), "NaN"),
        (2 + 1j, "(2+1j)"),
        (10**5000, "<int>"),
        (Broken(), "<Broken>"),
        ({Broken(): 1, (1, 2): 2}, None),
        (circle(), "[[...]]"),
        ("x" * 5_000_000, "x" * 1000),
    ],
    ids=lambda value: repr(type(value)),
)
def test_metric_of_any_kind_can_be_answered_as_json(value: object, expected: object) -> None:
    progress = Progress(lambda snapshot: None)
    progress.update(value=value)
    found = progress.metrics["value"]
    progress.close()

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    if expected is not None or found is None:
        assert found == expected
        assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [(NAN, None), (INF, 1.0), (-INF, 0.0), (numpy.float32("nan"), None), (2, 1.0), (5e-324, 5e-324)],
)
def test_fraction_is_never_more_than_was_said(fraction: float, shown: float | None) -> None:
    progress = Progress(lambda snapshot: None)
    progress.update(0.25)
    progress.update(fraction)
    snapshot = progress.snapshot()
    progress.close()

    assert snapshot.fraction == shown
    json.dumps(msgspec.to_builtins(snapshot), allow_nan=False)


def test_completed_job_says_nothing_about_what_was_under_way() -> None:
    half = Snapshot("fit", 0.1, 1, 10, "half asleep", {"loss": 0.5}, 3.0, 27.0, (BarState("a"), BarState("b")))
    assert half.completed() == Snapshot(fraction=1.0, metrics={"loss": 0.5}, seconds=3.0, remaining=0.0)
    whole = Snapshot("fit", 1.0, 10, 10)
    assert whole.completed() == Snapshot(fraction=1.0, done=10, total=10, remaining=0.0)


def nested_bars(epochs: int, batches: int, lines: list[str], *, leave: bool) -> None:
    """What two bars of tqdm, one below the other, write in a job's process."""
    stream = LineStream(lambda line, redrawn: lines.append(line), sys.stdout)
    often = {"file": stream, "mininterval": 0, "miniters": 1}
    for _ in tqdm(range(epochs), desc="epoch", **often):
        for _ in tqdm(range(batches), desc="batch", leave=leave, **often):
            pass
    stream.close()


@pytest.mark.parametrize("leave", [True, False])
def test_several_bars_are_shown_as_several_bars(leave: bool) -> None:
    lines: list[str] = []
    nested_bars(4, 10, lines, leave=leave)
    progress = Progress(lambda snapshot: None)
    seen = []
    for line in lines:
        progress.redrawn(line)
        snapshot = progress.snapshot()
        seen.append((snapshot.stage, [(bar.stage, bar.done, bar.total) for bar in snapshot.bars]))
    progress.close()

    assert {stage for stage, _ in seen} == {"epoch"}
    shown = [bars for _, bars in seen if bars]
    assert ("batch", 7, 10) in [bars[1] for bars in shown]
    assert all([stage for stage, _, _ in bars] == ["epoch", "batch"] for bars in shown)
    assert [bars[0][1:] for bars in shown][-1] == (4, 4)


@pytest.mark.parametrize("leave", [True, False])
def test_bars_do_not_fill_the_log_and_other_lines_stay(leave: bool) -> None:
    written: list[str] = []
    bars = BarLines(written.append, 10_000)
    lines: list[str] = []
    nested_bars(20, 50, lines, leave=leave)
    others = [line for line in [*lines, "a real line", "epoch 1: loss 0.5"] if not bars.take(line)]
    bars.flush()

    assert others == ["a real line", "epoch 1: loss 0.5"]
    assert [read_bar(line) is not None for line in written] == [True] * len(written)
    assert 2 <= len(written) <= 6
    assert any(line.startswith("epoch: 100%") and "20/20" in line for line in written)


def test_bars_take_no_more_of_the_log_than_their_room() -> None:
    written: list[str] = []
    bars = BarLines(written.append, 100)
    for number in range(100):
        assert bars.take(f"fit: 50%|#####     | {number}/200 [00:01<00:01, 1.0it/s]")
        bars.flush()
    assert 0 < sum(map(len, written)) <= 100


def test_depth_of_a_bar_is_read_from_its_line() -> None:
    assert [depth_of(line) for line in ("a", "a\x1b[A", "a\\x1b[A\\x1b[A", "a\x1b[3A")] == [0, 1, 2, 3]


def test_forked_process_does_not_speak_for_the_job() -> None:
    sent: list[Snapshot] = []
    progress = Progress(sent.append)
    child = os.fork()
    if child == 0:
        try:
            progress.update(0.5, "from the child", loss=1)
            progress.redrawn("fit: 50%|#####     | 1/2 [00:01<00:01, 1.0it/s]")
            os._exit(0 if progress.snapshot().fraction is None and not sent and progress._sender is None else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    progress.close()
