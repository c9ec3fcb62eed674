"""Cancel at the very end of a job, just before and just after: one outcome, and never a part of a model."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from mlpkit.errors import JobConflict, LoadFailed, TrainFailed
from mlpkit.settings import load_settings
from mlpkit.storage import open_storage
from tests.acceptance.service import RunningService
from tests.faults.conftest import Start, notes
from tests.servers import LONG, Relay, S3Server, wait_until

SCRIPT = Path(__file__).parent / "scripts" / "storing.py"
MIB = 1 << 20
BUCKETS: dict[int, str] = {}
"""The bucket of each service's models, by its port."""


@pytest.fixture
def on_s3(s3: S3Server, relay: Relay, tmp_path: Path) -> Iterator[RunningService]:
    """A service of the storing script, whose store is reached through the relay."""
    bucket = f"cancel-{secrets.token_hex(6)}"
    values = {
        **s3.environment,
        "MINIO_HOST": relay.endpoint,
        "MLPKIT_MODEL_BUCKET": bucket,
        "MLPKIT_DATA_BUCKET": bucket,
    }
    service = RunningService(f"{SCRIPT}:app", tmp_path / "home", {**values, "MLPKIT_UPLOAD": "on"})
    BUCKETS[service.port] = bucket
    try:
        service.wait_ready()
        yield service
    finally:
        service.stop()


def test_job_that_is_cancelled_while_its_model_is_stored_leaves_nothing(
    on_s3: RunningService, s3: S3Server, relay: Relay
) -> None:
    client = on_s3.client
    client.train("storing").wait(LONG)
    with relay.slowed(MIB // 2):
        job = client.train("storing", parameters={"size": 4 * MIB})
        wait_until(lambda: relay.count("PUT", f"/{job.model_id}/") > 0, "its files are sent")
        job.cancel()
        with pytest.raises(TrainFailed, match=r"^cancelled$"):
            job.wait(LONG)
    with pytest.raises(LoadFailed, match=r"there is no model|upload never finished"):
        client.load("storing", job.model_id)
    assert objects_of(s3, on_s3, job.model_id) == []
    again = client.train("storing", parameters={"size": MIB})
    again.wait(LONG)
    client.load("storing", again.model_id)


def test_model_that_is_deleted_while_it_is_stored_is_stored_whole(
    on_s3: RunningService, s3: S3Server, relay: Relay
) -> None:
    client = on_s3.client
    client.train("storing").wait(LONG)
    with relay.slowed(MIB):
        job = client.train("storing", parameters={"size": 2 * MIB})
        wait_until(lambda: relay.count("PUT", f"/{job.model_id}/") > 1, "its files are sent")
        with pytest.raises(JobConflict, match="is being stored: cancel the job"):
            client.delete("storing", job.model_id)
        job.wait(LONG)
    client.load("storing", job.model_id)
    client.delete("storing", job.model_id)
    assert objects_of(s3, on_s3, job.model_id) == []


def test_file_whose_caller_goes_away_while_it_is_stored_is_not_kept(
    on_s3: RunningService, s3: S3Server, relay: Relay
) -> None:
    on_s3.client.train("storing").wait(LONG)
    with relay.slowed(MIB), closing(HTTPConnection("127.0.0.1", on_s3.port, timeout=LONG)) as caller:
        caller.request("PUT", "/data/left/rows.tsv", b"x" * (2 * MIB))
        wait_until(lambda: relay.count("PUT", "/left/rows.tsv") > 0, "it is sent to the store")
    wait_until(lambda: not list((on_s3.home / "uploads").iterdir()), "the upload has ended")
    assert objects_of(s3, on_s3, "left") == []


def objects_of(s3: S3Server, service: RunningService, model_id: str) -> list[str]:
    """What the store has of a model, or below another folder."""
    bucket = BUCKETS[service.port]
    with closing(open_storage(load_settings({**s3.environment, "MLPKIT_HOME": str(service.home)}, None))) as storage:
        return [found.path for found in storage.list(f"{bucket}/{model_id}")]


def test_job_that_is_cancelled_when_it_has_ended_and_that_is_not_written_yet_stays_as_it_ended(
    start: Start, folder: Path
) -> None:
    service = start()
    client = service.client
    job = client.train("faulty")
    wait_until(lambda: bool(notes(folder / f"train {job.model_id}")), "it runs")
    with ExitStack() as exits:
        # Whoever else writes into the file holds up the service.
        journal = exits.enter_context(closing(sqlite3.connect(service.home / "jobs.db", isolation_level=None)))
        journal.execute("BEGIN IMMEDIATE")
        (folder / "go").touch()
        kept = service.home / "jobs"
        wait_until(lambda: bool(list(kept.glob("*.curves"))), "it has ended, with its curves")
        caller = exits.enter_context(closing(HTTPConnection("127.0.0.1", service.port, timeout=LONG)))
        fields = json.dumps({"algorithm": "faulty", "model_id": job.model_id})
        caller.request("POST", "/cancel", fields, {"Content-Type": "application/json"})
        # The service has read the one by the time that it has answered the others.
        assert all(client.live() for _ in range(3))
        assert job.status().status == "training"
        journal.execute("ROLLBACK")
        assert json.loads(caller.getresponse().read())["data"]["status"] == "completed"
    assert client.job_view(job.model_id).state == "completed"
    assert service.log.count(f"job [{job.model_id}] of faulty ended") == 1
