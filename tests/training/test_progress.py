"""How far a job is: what handlers tell, and what progress bars show."""

from __future__ import annotations

import time

import msgspec
import pytest
from tqdm import tqdm

from mlpkit.log import LineStream
from mlpkit.training.progress import Progress, Snapshot, read_bar


def test_tracked_items_are_counted_with_an_estimate_of_the_rest() -> None:
    progress = Progress(lambda snapshot: None)
    items = progress.track([10, 20, 30, 40], "read")
    assert [next(items), next(items)] == [10, 20]
    time.sleep(0.01)
    assert next(items) == 30

    snapshot = progress.snapshot()

    assert (snapshot.stage, snapshot.done, snapshot.total, snapshot.fraction) == ("read", 2, 4, 0.5)
    assert snapshot.remaining is not None
    assert 0.009 < snapshot.remaining < 5
    assert list(items) == [40]
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
    deadline = time.monotonic() + 5
    while (not sent or sent[-1].fraction != 0.2) and time.monotonic() < deadline:
        time.sleep(0.01)

    assert sent[-1].fraction == 0.2
    progress.close()


def test_metrics_become_what_json_has() -> None:
    import numpy

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
            Snapshot(stage="fit", fraction=0.45, done=45, total=100, remaining=2.0),
        ),
        ("  0%|          | 0/3 [00:00<?, ?it/s]", Snapshot(fraction=0.0, done=0, total=3)),
        (
            "Epoch 1/3: loss 0.2:  50%|█████     | 1/2 [00:01<1:00:01,  2.0s/it, acc=0.9]",
            Snapshot(stage="Epoch 1/3: loss 0.2", fraction=0.5, done=1, total=2, remaining=3601.0),
        ),
        (
            "model.bin: 25%|██▌       | 1.00M/4.00M [00:01<00:03, 1.00MB/s]",
            Snapshot(stage="model.bin", fraction=0.25, done=10**6, total=4 * 10**6, remaining=3.0),
        ),
        ("\x1b[A45it [00:01, 40.10it/s]", Snapshot(done=45)),
        ("read: 45it [00:01, 40.10it/s]", Snapshot(stage="read", done=45)),
    ],
)
def test_line_of_a_progress_bar_is_understood(line: str, expected: Snapshot) -> None:
    assert read_bar(line) == expected


@pytest.mark.parametrize("line", ["", "100% sure", "loss 3/4", "50%|half|", "a [b, c]", "[00:01, 3it/s]", "|" * 5000])
def test_other_lines_are_no_progress_bar(line: str) -> None:
    assert read_bar(line) is None


@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("total", [40, None])
def test_every_line_that_tqdm_redraws_is_understood(ascii: bool, total: int | None) -> None:
    seen: list[Snapshot | None] = []
    stream = LineStream(lambda line, redrawn: seen.append(read_bar(line)))
    bar = tqdm(total=total, desc="fit", file=stream, ascii=ascii, mininterval=0, miniters=1)
    for _ in range(40):
        bar.update()
        bar.set_postfix(loss=0.5)
    bar.close()
    stream.close()

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
