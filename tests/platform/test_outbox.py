"""The table hears how every training ended, once, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from mlpkit.errors import JobConflict, ServiceStopping
from mlpkit.service import Service
from mlpkit.training import Job
from tests.platform.conftest import OpenPlatform, OpenReplica, Platform, until_ready
from tests.servers import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def submit(replica: Service, model_id: str, **parameters: Any) -> None:
    """Accepts a job, as `/train` does."""
    assert replica.cluster is not None
    job = Job(model_id, "it", parameters=json.dumps(parameters))
    async with replica.cluster.reporting(job):
        await replica.training.submit(job)


def has_ended(replica: Service, model_id: str) -> bool:
    job = replica.training.job(model_id)
    return job is not None and job.has_ended


async def test_a_training_ends_in_the_table_as_it_ended(open_replica: OpenReplica, platform: Platform) -> None:
    for model_id in ("good", "bad"):
        platform.put_model(model_id, status="training", loaded=0)
    async with open_replica(platform) as replica:
        await until_ready(replica)
        await submit(replica, "good")
        await submit(replica, "bad", fails=True)
        await until(lambda: platform.status_of("good") == "inactive" and platform.status_of("bad") == "error")


async def test_a_row_that_does_not_say_training_is_not_touched(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    small_platform.put_model("m", status="active", loaded=0)
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        await submit(replica, "m", fails=True)
        await until(lambda: has_ended(replica, "m") and not waiting(replica))
        assert small_platform.status_of("m") == "active"


async def test_a_row_that_is_made_after_the_end_is_written_too(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        await submit(replica, "m")
        await until(lambda: has_ended(replica, "m"))
        assert small_platform.sql("SELECT count(*) FROM model") == [(0,)]
        small_platform.put_model("m", status="training", loaded=0)
        await until(lambda: small_platform.status_of("m") == "inactive")


async def test_an_outage_delays_the_word_and_loses_nothing(
    open_replica: OpenReplica, open_platform: OpenPlatform, log_lines: Callable[[], str]
) -> None:
    platform = open_platform("mariadb")
    assert platform.server is not None
    for model_id in ("during", "before-restart"):
        platform.put_model(model_id, status="training", loaded=0)
    platform.server.stop()
    try:
        async with open_replica(platform, db_timeout=1.0) as replica:
            await until_ready(replica)
            await submit(replica, "before-restart", fails=True)
            await until(lambda: has_ended(replica, "before-restart"))
        assert "1 trainings ended and the database does not know" in log_lines()
        async with open_replica(platform, db_timeout=1.0) as replica:
            await until_ready(replica)
            await submit(replica, "during")
            await until(lambda: has_ended(replica, "during"))
            await until(lambda: "the ends of 2 trainings" in "\n".join(replica.state.warnings()))
            platform.server.start()
            await until(lambda: platform.status_of("during") == "inactive")
            await until(lambda: platform.status_of("before-restart") == "error")
            await until(lambda: not waiting(replica))
    finally:
        if platform.server.process is None:
            platform.server.start()


async def test_a_job_that_is_not_accepted_is_not_reported(open_replica: OpenReplica, small_platform: Platform) -> None:
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        await submit(replica, "m", seconds=1)
        with pytest.raises(JobConflict):
            await submit(replica, "m")
        small_platform.put_model("m", status="training", loaded=0)
        await until(lambda: small_platform.status_of("m") == "inactive")

        await replica.drain()
        for model_id in ("m", "late"):
            small_platform.put_model(model_id, status="training", loaded=0)
            with pytest.raises(ServiceStopping):
                await submit(replica, model_id)
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        await until(lambda: not waiting(replica))
        assert (small_platform.status_of("m"), small_platform.status_of("late")) == ("training", "training")


async def test_a_job_whose_caller_is_cancelled_after_its_acceptance_is_reported(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    async with open_replica(small_platform, sync="lead") as replica:
        await until_ready(replica)
        job = Job("m", "it", parameters=json.dumps({"seconds": 0.5}))
        accepted = asyncio.Event()

        async def submit_and_wait() -> None:
            assert replica.cluster is not None
            async with replica.cluster.reporting(job):
                await replica.training.submit(job)
                accepted.set()
                await asyncio.sleep(60)

        caller = asyncio.create_task(submit_and_wait())
        await accepted.wait()
        caller.cancel()
        await asyncio.wait([caller])
        await until(lambda: small_platform.status_of("m") == "inactive")


async def test_who_leads_makes_the_row_so_that_others_can_tell(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    async with (
        open_replica(small_platform, "one", sync="lead") as one,
        open_replica(small_platform, "two") as two,
    ):
        await until_ready(one)
        assert two.cluster is not None
        await submit(one, "m", seconds=0.5)
        await until(lambda: small_platform.status_of("m") == "training")
        assert await two.cluster.status("m") == "training"
        await until(lambda: small_platform.status_of("m") == "inactive")
        assert await two.cluster.status("m") == "completed"


async def test_the_notes_are_for_the_owner_only(open_replica: OpenReplica, small_platform: Platform) -> None:
    async with open_replica(small_platform) as replica:
        assert os.stat(replica.settings.home / "cluster.db").st_mode & 0o077 == 0


def waiting(replica: Service) -> bool:
    return any("the ends of" in each for each in replica.state.warnings())
