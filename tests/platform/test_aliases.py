"""All replicas let an alias lead to the model that the table of aliases names."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpkit.errors import DatabaseError
from mlpkit.service import Service
from tests.platform.conftest import OpenReplica, Platform, predicted, until_ready
from tests.platform.test_checker import store_model
from tests.servers import LONG, until

pytestmark = [pytest.mark.anyio]


async def move(replica: Service, model_id: str, alias: str = "current") -> None:
    assert replica.cluster is not None
    await replica.aliases.move("it", alias, model_id, replica.cluster.announce_alias)


def leads_to(replica: Service, alias: str = "it@current") -> str | None:
    return next((each.model_id for each in replica.aliases.listed() if each.name == alias), None)


async def test_all_replicas_follow_a_move(open_replica: OpenReplica, platform: Platform) -> None:
    async with open_replica(platform, "one") as one, open_replica(platform, "two") as two:
        await until_ready(two)
        await move(one, "a")
        await until(lambda: leads_to(two) == "a")
        assert await predicted(two, "it@current") == '"a from None"'

        await move(two, "b")
        await until(lambda: leads_to(one) == "b")
        assert await predicted(one, "it@current") == '"b from None"'
        await until(lambda: set(one.models.placement()) == set(two.models.placement()) == {"b"})
        assert platform.sql("SELECT algorithm, alias, model_id FROM model_alias") == [("it", "current", "b")]

        assert one.cluster is not None
        await one.aliases.remove("it", "current", one.cluster.announce_no_alias)
        await until(lambda: leads_to(two) is None)
        await until(lambda: not two.models.placement())


async def test_a_replica_that_starts_has_the_aliases_before_it_is_ready(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    async with open_replica(small_platform, "one") as one:
        await move(one, "a")
        async with open_replica(small_platform, "two") as two:
            await until_ready(two)
            assert await predicted(two, "it@current") == '"a from None"'


async def test_a_replica_whose_load_fails_keeps_the_old_model_and_says_so(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    async with open_replica(small_platform) as replica:
        await move(replica, "a")
        small_platform.sql("UPDATE model_alias SET model_id = 'bad'")
        (replica.settings.home.parent / "broken-bad").touch()
        await until(lambda: "alias [it@current] should lead to model [bad]" in "\n".join(replica.state.warnings()))
        assert await predicted(replica, "it@current") == '"a from None"'
        (replica.settings.home.parent / "broken-bad").unlink()
        await until(lambda: leads_to(replica) == "bad", LONG)
        await until(lambda: replica.state.warnings() == [])


async def test_a_replica_follows_no_alias_to_a_model_below_its_gate(
    open_replica: OpenReplica, small_platform: Platform, tmp_path: Path
) -> None:
    async with open_replica(small_platform, "one") as replica:
        assert replica.cluster is not None
        await replica.aliases.move("stored", "current", "a", replica.cluster.announce_alias)
        store_model(tmp_path / "one", "ml-platform-model/bad", below_gate="the model has macro F1 0.5")
        small_platform.sql("UPDATE model_alias SET model_id = 'bad'")
        await until(lambda: "below its gate: the model has macro F1 0.5" in "\n".join(replica.state.warnings()))
        assert await predicted(replica, "stored@current") == '"a from None"'
        assert set(replica.models.placement()) == {"a"}


async def test_a_model_that_the_table_wants_stays_when_its_alias_leaves(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    async with open_replica(small_platform) as replica:
        await move(replica, "a")
        small_platform.put_model("a")
        small_platform.note_change("2021-01-01 00:00:00")
        await until(lambda: not replica.models.is_wanted_by_aliases_only("a"))
        await move(replica, "b")
        await move(replica, "c")
        await until(lambda: set(replica.models.placement()) == {"a", "c"})

        await move(replica, "a")
        small_platform.put_model("a", loaded=0)
        small_platform.note_change("2021-01-01 00:00:01")
        await until(lambda: replica.models.is_wanted_by_aliases_only("a"))
        assert await predicted(replica, "it@current") == '"a from None"'
        await move(replica, "b")
        await until(lambda: set(replica.models.placement()) == {"b"})


async def test_a_database_that_is_away_refuses_moves_and_changes_no_alias(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    async with open_replica(small_platform) as replica:
        await move(replica, "a")
        small_platform.sql("ALTER TABLE model_alias RENAME TO gone")
        with pytest.raises(DatabaseError):
            await move(replica, "b")
        await until(lambda: "could not read the aliases" in "\n".join(replica.state.warnings()))
        assert await predicted(replica, "it@current") == '"a from None"'
        await until(lambda: set(replica.models.placement()) == {"a"})


async def test_a_database_from_before_aliases_is_no_fault_until_one_is_made(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    small_platform.sql("DROP TABLE model_alias")
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        assert replica.state.warnings() == []
        with pytest.raises(DatabaseError, match="`mlpkit db init` makes it"):
            await move(replica, "a")
