"""The fakes: handlers called by hand, as plain functions."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpkit.errors import ArgumentError, DataError
from mlpkit.formats import ClassificationRow
from mlpkit.testing import (
    FakeTrainData,
    RecordedLog,
    RecordedProgress,
    fake_model_dir,
    fake_storage,
    fake_train_job,
)
from tests.servers import mood


def test_a_handler_is_called_by_hand_with_fakes(tmp_path: Path) -> None:
    log, progress, out = RecordedLog(), RecordedProgress(), fake_model_dir(tmp_path / "model")
    mood.train(mood.Course(steps=3), out, progress, log)
    progress.close()
    assert log.lines == [("info", "a line of the job")]
    assert progress.stages == ["count"]
    assert progress.metrics == {"accuracy": 0.5}
    assert progress.snapshots[-1].metrics == {"accuracy": 0.5}
    assert mood.predict(mood.load(out), mood.Sentence("a"))[0].score == 80.0


def test_train_data_of_a_fake_is_checked_as_in_a_job(tmp_path: Path) -> None:
    rows = [ClassificationRow(f"a {word} day {number}", word) for number in range(20) for word in ("good", "bad")]
    data = FakeTrainData(rows, test_rows=rows[:3], folder=tmp_path)
    data.check()
    assert data.test_report is not None
    assert {finding.code for finding in data.test_report.findings} >= {"in-both"}
    (tmp_path / "broken.tsv").write_text("no label\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1"):
        FakeTrainData(tmp_path / "broken.tsv").check()
    with pytest.raises(ArgumentError, match=r"needs folder= for data\.path and data\.check"):
        FakeTrainData(rows).check()


def test_train_data_is_made_from_rows(tmp_path: Path) -> None:
    rows = [ClassificationRow("a good day", "good"), ClassificationRow("rain", "good", False)]
    data = FakeTrainData(rows, folder=tmp_path)
    assert list(data.rows()) == rows
    assert data.path.read_text(encoding="utf-8").splitlines()[0] == "a good day\tgood\t1"
    assert list(FakeTrainData(data.path).rows()) == rows
    assert (data.dictionary(), data.extra(), data.pretrained()) == (None, None, None)


def test_train_data_has_the_test_rows_that_it_is_given(tmp_path: Path) -> None:
    rows = [ClassificationRow("a good day", "good"), ClassificationRow("rain", "bad")]
    data = FakeTrainData(rows[:1], test_rows=rows)
    for _ in range(2):
        assert list(data.test_rows()) == rows
    assert list(data.numbered_test_rows()) == [(1, rows[0]), (2, rows[1])]
    assert (data.test_source, data.test_seed, data.test_report) == ("data.test_location: test.tsv", None, None)
    from_file = FakeTrainData([], test_rows=FakeTrainData(rows, folder=tmp_path).path)
    assert list(from_file.test_rows()) == rows
    assert from_file.test_source == data.test_source
    assert list(from_file.rows()) == []
    with pytest.raises(ArgumentError, match="test: there is no file"):
        FakeTrainData([], test_rows=tmp_path / "missing.tsv")


def test_train_data_without_test_rows_has_none() -> None:
    data = FakeTrainData([ClassificationRow("a good day", "good")])
    assert list(data.test_rows()) == []
    assert (data.test_source, data.test_seed) == ("", None)


def test_train_data_says_what_it_needs_and_what_is_broken(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="folder="):
        _ = FakeTrainData([]).path
    (tmp_path / "broken.tsv").write_text("no label\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1"):
        list(FakeTrainData(tmp_path / "broken.tsv").rows())


def test_the_store_keeps_what_is_saved(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    storage = fake_storage(tmp_path / "home", "dictionaries")
    storage.save(tmp_path / "file", "dictionaries/key")
    assert storage.fetch("dictionaries/key").read_text() == "content"
    storage.close()


def test_a_job_has_what_it_is_given() -> None:
    job = fake_train_job(parameters={"c": 1.0})
    assert (job.model_id, job.parameters, job.data, job.attempt) == ("model", {"c": 1.0}, {}, 1)


def test_a_recorded_log_fills_in_its_arguments_as_the_real_one() -> None:
    log = RecordedLog()
    log.warning("{} of {}", 1, 2)
    log.debug("a brace { alone")
    log.exception("no")
    assert log.lines == [("warning", "1 of 2"), ("debug", "a brace { alone"), ("error", "no")]
