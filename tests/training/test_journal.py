"""The journal as a file: order, size, versions, faults. What survives a kill is in `test_restart.py`."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from mlpkit.errors import JobConflict, JournalError, SettingsError
from mlpkit.training import Job, JobFilter, Snapshot
from mlpkit.training.job import TRANSITIONS
from mlpkit.training.journal import Journal

FIRST_VERSION = """
CREATE TABLE job (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    model_id TEXT NOT NULL UNIQUE,
    algorithm TEXT NOT NULL,
    state TEXT NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX job_by_state ON job (state, number);
CREATE INDEX job_by_algorithm ON job (algorithm, number);
PRAGMA user_version = 1;
"""
"""The schema of mlpkit 0.1 before the requests had a table of their own."""


@pytest.fixture
def full_job() -> Job:
    progress = Snapshot("fit", 0.5, 1, 2, "half", {"f1": 0.5, "by": [1, None]}, 1.5, 2.5)
    return Job(
        "模型", "it", "b/k", '{"a": "\\u0000"}', "[1]", "null", "u", "l", "init", "why", progress, 2, 1.5, 2.5, 3.5
    )


def test_job_comes_back_as_it_was_written(tmp_path: Path, full_job: Job) -> None:
    journal = Journal(tmp_path)
    journal.add(full_job)
    journal.close()

    journal = Journal(tmp_path)
    assert journal.job("模型") == full_job
    assert journal.job("other") is None
    journal.close()


def test_request_is_not_read_to_list_jobs(tmp_path: Path, full_job: Job) -> None:
    journal = Journal(tmp_path)
    journal.add(full_job)
    brief = full_job.without_request()
    assert (brief.data, brief.parameters, brief.extend) == ("{}", "{}", "{}")
    assert journal.jobs() == [brief]
    assert journal.summary("模型") == brief
    journal.update(brief)
    assert journal.job("模型") == full_job
    journal.close()
    assert [row[0] for row in rows(tmp_path, "SELECT length(record) < 500 FROM job")] == [1]


def test_file_of_the_first_version_is_taken_over(tmp_path: Path, full_job: Job) -> None:
    others = [Job(f"m-{number}", "it", parameters='"' + "x" * 5000 + '"', state="completed") for number in range(5)]
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        connection.executescript(FIRST_VERSION)
        for job in (full_job, *others):
            connection.execute(
                "INSERT INTO job (model_id, algorithm, state, record) VALUES (?, ?, ?, ?)",
                (job.model_id, job.algorithm, job.state, msgspec.json.encode(job).decode()),
            )
    for _ in range(2):
        journal = Journal(tmp_path)
        assert journal.job("模型") == full_job
        assert journal.unfinished() == [full_job]
        assert journal.jobs(1)[0] == others[-1].without_request()
        assert journal.job("m-3") == others[3]
        journal.close()
    assert rows(tmp_path, "SELECT max(length(record)) < 1000 FROM job") == [(1,)]


def rows(home: Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(home / "jobs.db") as connection:
        return connection.execute(query).fetchall()


def test_job_that_is_submitted_again_goes_to_the_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for model_id in ("a", "b", "a"):
        journal.add(Job(model_id, "it"))
    assert [each.model_id for each in journal.unfinished()] == ["b", "a"]
    journal.update(Job("b", "it", state="error"))
    assert [each.model_id for each in journal.unfinished()] == ["a"]
    journal.close()


def test_questions_about_ten_thousand_jobs_look_at_few(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal._writer.execute("PRAGMA synchronous = OFF")
    for number in range(10_000):
        journal.add(Job(f"m-{number}", f"a-{number % 7}", parameters='"' + "x" * 500 + '"', state="completed"))
    journal.add(Job("waits", "it"))

    thousands: list[None] = []
    # SQLite takes several steps for each row that it looks at.
    journal._reader.set_progress_handler(lambda: thousands.append(None), 1000)
    assert journal.job("m-5000") is not None
    assert [each.model_id for each in journal.jobs(3)] == ["waits", "m-9999", "m-9998"]
    assert journal.jobs(1, chosen=JobFilter(state="completed", algorithm="a-3"))[0].model_id == "m-9999"
    assert [each.model_id for each in journal.unfinished()] == ["waits"]
    assert len(thousands) <= 1
    assert len(journal.jobs(100, 9000)) == 100
    assert len(thousands) < 100
    journal.close()


def test_file_of_a_newer_mlpkit_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(SettingsError, match="newer mlpkit"):
        Journal(tmp_path)
    with pytest.raises(SettingsError, match="newer mlpkit"):
        Journal(tmp_path)


def test_file_that_is_no_journal_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_text("no database at all" * 100)
    with pytest.raises(JournalError, match=r"jobs\.db cannot be opened"):
        Journal(tmp_path)


def test_only_a_full_disk_is_advised_to_be_freed(tmp_path: Path) -> None:
    (tmp_path / "fuller").write_text("no folder")
    with pytest.raises(JournalError, match="fuller") as caught:
        Journal(tmp_path / "fuller" / "home")
    assert "free some space" not in str(caught.value)


def test_home_is_private(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "home")
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "home" / "jobs.db").stat().st_mode & 0o777 == 0o600
    journal.close()


def test_only_the_moves_of_the_table_exist() -> None:
    for start, allowed in TRANSITIONS.items():
        for end in TRANSITIONS:
            job = Job("m", "it", state=start)
            if end in allowed:
                assert job.moved(end).state == end
            else:
                with pytest.raises(JobConflict):
                    job.moved(end)
    assert [state for state in TRANSITIONS if Job("m", "it", state=state).has_ended] == ["completed", "error"]
