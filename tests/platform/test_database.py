"""What is asked of the platform's tables and told to them, the same on every server, within the time-out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing

import anyio
import pytest

from mlpkit.errors import DatabaseError
from mlpkit.platform.database import Database, WantedModel, make_tables
from mlpkit.settings import Settings
from tests.platform.conftest import OpenPlatform, Platform
from tests.secret import new_secret
from tests.servers import LONG, SOON, closed_port

pytestmark = pytest.mark.anyio
WRONG = new_secret()


@pytest.fixture
async def database(platform: Platform) -> AsyncIterator[Database]:
    """The database of each kind, as a replica sees it."""
    opened = Database(platform.settings())
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ("active", "completed"),
        ("inactive", "completed"),
        ("error", "error"),
        ("training", "training"),
        ("whatever", "training"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
async def test_a_status_is_told_in_the_words_of_the_protocol(
    small_platform: Platform, status: str | None, word: str
) -> None:
    small_platform.put_model("m", status=status)

    with closing(Database(small_platform.settings())) as database:
        assert await database.status("m") == word


async def test_a_status_is_asked_of_exactly_this_id(database: Database, platform: Platform) -> None:
    platform.put_model("abc", status="active")

    assert await database.status("abc") == "completed"
    assert await database.status("ABC") == "unknown"
    assert await database.status("' or '1'='1") == "unknown"
    assert await database.status("模型 \N{GRINNING FACE}") == "unknown"


async def test_the_end_of_a_training_replaces_training_and_nothing_else(database: Database, platform: Platform) -> None:
    for status in ("training", "active", "error"):
        platform.put_model(status, status=status)

    assert [await database.end_training(each, "inactive") for each in ("training", "active", "error")] == [True] * 3
    assert [platform.status_of(each) for each in ("training", "active", "error")] == ["inactive", "active", "error"]


async def test_the_end_of_a_training_without_a_row_is_told_apart_and_makes_none(
    database: Database, platform: Platform
) -> None:
    assert await database.end_training("missing", "error") is False
    assert platform.sql("SELECT count(*) FROM model") == [(0,)]


async def test_a_change_is_noticed_forwards_backwards_and_by_a_second_row(
    database: Database, platform: Platform
) -> None:
    seen = []
    for instant in ("2021-01-01 00:00:00", "2021-01-01 00:00:01", "2020-12-31 23:59:59"):
        platform.note_change(instant)
        seen.append((await database.changes(["it", "other"]))["it"])
    platform.sql("INSERT INTO load_record (load_time, algorithm) VALUES ('2020-01-01 00:00:00', 'it')")
    seen.append((await database.changes(["it", "other"]))["it"])

    assert len(set(seen)) == 4
    assert seen[-1] == (await database.changes(["it"]))["it"]
    assert "other" not in await database.changes(["it", "other"])


async def test_change_is_noticed_beside_rows_of_the_future(database: Database, platform: Platform) -> None:
    insert = "INSERT INTO load_record (load_time, algorithm) VALUES (:instant, 'it')"
    for instant in ("2099-01-01 00:00:00", "2098-01-01 00:00:00", "2020-01-01 00:00:00"):
        platform.sql(insert, instant=instant)
    before = await database.changes(["it"])
    platform.sql("UPDATE load_record SET load_time = '2021-01-01 00:00:00' WHERE load_time < '2022-01-01 00:00:00'")
    after = await database.changes(["it"])

    assert before != after
    assert after == await database.changes(["it"])


async def test_an_empty_instant_is_no_change(database: Database, platform: Platform) -> None:
    platform.sql("INSERT INTO load_record (load_time, algorithm) VALUES (NULL, 'it')")

    assert await database.changes(["it"]) == {}


async def test_wanted_are_the_loaded_models_of_these_algorithms(database: Database, platform: Platform) -> None:
    platform.put_model("a", path="bucket/a", status="error")
    platform.put_model("b", loaded=0)
    platform.put_model("c", loaded=None)
    platform.put_model("d", algorithm="other")
    platform.put_model("e", algorithm=None)

    assert await database.wanted(["it"]) == [WantedModel("it", "a", "bucket/a")]
    assert await database.foreign(["it"]) == {"other": 1, None: 1}


async def test_who_leads_writes_what_others_follow(database: Database, platform: Platform) -> None:
    await database.want("m", "it", "bucket/m")
    first = await database.changes(["it"])
    assert await database.wanted(["it"]) == [WantedModel("it", "m", "bucket/m")]

    await database.want("m", "it", "bucket/m")
    await database.unwant("unknown")
    assert await database.changes(["it"]) == first

    await database.unwant("m")
    assert await database.wanted(["it"]) == []
    assert platform.sql("SELECT count(*) FROM load_record") == [(1,)]


async def test_tables_and_columns_may_have_other_names(platform: Platform) -> None:
    names = (("model", "ai_model"), ("model.model_id", "key_of"), ("load_record", "changes"))
    settings = platform.settings(db_names=names)
    assert make_tables(settings)[0] == ["ai_model", "changes"]
    database = Database(settings)

    await database.want("m", "it", None)

    assert platform.sql("SELECT key_of, loaded FROM ai_model") == [("m", 1)]
    assert await database.status("m") == "completed"
    database.close()


async def test_making_the_tables_again_changes_nothing(platform: Platform) -> None:
    platform.put_model("m")

    assert make_tables(platform.settings())[0] == []
    assert platform.sql("SELECT count(*) FROM model") == [(1,)]


async def test_a_missing_table_is_told_without_the_host_and_is_over_when_it_is_there(
    database: Database, platform: Platform
) -> None:
    platform.sql("ALTER TABLE load_record RENAME TO gone")
    with pytest.raises(DatabaseError) as caught:
        await database.changes(["it"])
    assert "127.0.0.1" not in str(caught.value)
    assert await database.status("m") == "unknown"
    assert database.problems() == [str(caught.value)]

    platform.sql("ALTER TABLE gone RENAME TO load_record")
    assert await database.changes(["it"]) == {}
    assert database.problems() == []


async def test_a_closed_port_is_an_error_at_once(open_platform: OpenPlatform) -> None:
    for kind in ("mysql", "postgresql"):
        with (
            closed_port() as port,
            closing(Database(Settings(db_type=kind, db_port=port, db_timeout=LONG))) as database,
        ):
            started = time.monotonic()
            with pytest.raises(DatabaseError):
                await database.status("m")
            assert time.monotonic() - started < SOON


@pytest.mark.parametrize("kind", ["mariadb", "postgres"])
async def test_a_wrong_password_is_an_error_that_does_not_show_it(
    open_platform: OpenPlatform, kind: str, log_lines: Callable[[], str]
) -> None:
    with (
        closing(Database(open_platform(kind).settings(db_password=WRONG))) as database,
        pytest.raises(DatabaseError) as caught,
    ):
        await database.status("m")

    assert "mlp" in log_lines()
    assert WRONG not in log_lines() + str(caught.value)


@pytest.mark.parametrize("kind", ["mariadb", "postgres"])
async def test_a_server_that_hangs_holds_nobody_up_beyond_the_time_out(open_platform: OpenPlatform, kind: str) -> None:
    platform = open_platform(kind)
    database = Database(platform.settings(db_timeout=3.0))
    platform.put_model("m", status="active")
    assert await database.status("m") == "completed"
    assert platform.server is not None

    platform.server.freeze()
    try:
        started = time.monotonic()
        results: list[object] = []

        async def ask() -> None:
            with pytest.raises(DatabaseError):
                results.append(await database.status("m"))
            results.append("refused")

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(ask)
        assert results == ["refused"] * 10
        # One after the other, they would take ten times the time-out.
        assert time.monotonic() - started < 5 * 3.0
    finally:
        platform.server.thaw()
    with anyio.fail_after(LONG):
        while not await answers(database):  # noqa: ASYNC110 - no event comes from there
            await anyio.sleep(0.1)
    assert database.problems() == []
    database.close()


async def answers(database: Database) -> bool:
    try:
        return await database.status("m") == "completed"
    except DatabaseError:
        return False
