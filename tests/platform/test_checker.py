"""A replica's models become those that the table wants, and nothing else changes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec
import pytest

from mlpkit.errors import MlpkitError
from mlpkit.platform.checker import DesiredModel
from mlpkit.service import Service
from mlpkit.storage import Manifest
from tests.platform.conftest import OpenPlatform, OpenReplica, Platform, predicted, until_ready
from tests.servers import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def loaded(replica: Service) -> set[str]:
    return set(replica.models.placement())


def desired(replica: Service, model_id: str) -> DesiredModel:
    assert replica.cluster is not None
    found = [each for each in replica.cluster.desired_models or [] if each.model_id == model_id]
    return found[0] if found else DesiredModel(model_id, "", None, wanted=False)


def warnings(replica: Service) -> str:
    return "\n".join(replica.state.warnings())


async def test_the_first_comparison_comes_before_readiness(open_replica: OpenReplica, platform: Platform) -> None:
    platform.put_model("a", path="bucket/a")
    platform.put_model("b", "other", status="error")
    platform.put_model("c", loaded=0)
    platform.note_change("2021-01-01 00:00:00")
    platform.note_change("2021-01-01 00:00:00", "other")

    async with open_replica(platform) as replica:
        assert replica.state.problems() != []
        await until_ready(replica)
        assert loaded(replica) == {"a", "b"}
        assert await predicted(replica, "a") == '"a from bucket/a"'
        assert replica.models.algorithm_of("b") == "other"


async def test_an_algorithm_without_a_record_is_left_alone(open_replica: OpenReplica, platform: Platform) -> None:
    platform.put_model("a")
    platform.put_model("b", "other")
    platform.note_change("2021-01-01 00:00:00")

    async with open_replica(platform) as replica:
        await until_ready(replica)
        assert loaded(replica) == {"a"}


async def test_a_change_is_followed_and_no_change_is_not(open_replica: OpenReplica, platform: Platform) -> None:
    platform.put_model("a")
    platform.note_change("2021-01-01 00:00:00")
    async with open_replica(platform) as replica:
        await until_ready(replica)
        await until_settled(replica)

        platform.put_model("a", loaded=0)
        platform.put_model("b")
        await passes(replica, 2)
        assert loaded(replica) == {"a"}

        platform.note_change("2021-01-01 00:00:01")
        await until(lambda: loaded(replica) == {"b"})


async def test_a_change_of_one_algorithm_leaves_the_models_of_another_alone(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    small_platform.put_model("b", "other")
    for algorithm in ("it", "other"):
        small_platform.note_change("2021-01-01 00:00:00", algorithm)
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        await until_settled(replica)
        small_platform.put_model("a")
        small_platform.note_change("2021-01-01 00:00:01")
        await until(lambda: "a" in loaded(replica))
        await passes(replica, 2)
        assert loaded(replica) == {"a", "b"}


async def test_a_second_change_within_one_second_is_followed(open_replica: OpenReplica, platform: Platform) -> None:
    platform.put_model("a")
    platform.note_change("2021-01-01 00:00:00")
    async with open_replica(platform) as replica:
        await until_ready(replica)
        platform.put_model("b")
        platform.note_change("2021-01-01 00:00:00")
        await until(lambda: loaded(replica) == {"a", "b"})


async def test_a_clock_that_goes_back_is_followed(open_replica: OpenReplica, small_platform: Platform) -> None:
    small_platform.put_model("a")
    small_platform.note_change("2021-01-01 00:00:00")
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        await until_settled(replica)
        small_platform.put_model("a", loaded=0)
        small_platform.note_change("2020-01-01 00:00:00")
        await until(lambda: loaded(replica) == set())


async def test_models_that_the_table_never_wanted_are_left_alone(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    small_platform.put_model("a")
    small_platform.put_model("row", loaded=0)
    small_platform.note_change("2021-01-01 00:00:00")
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        for model_id in ("mine", "row"):
            await replica.models.load("it", model_id)

        small_platform.put_model("a", loaded=0)
        small_platform.note_change("2021-01-01 00:00:01")
        await until(lambda: "a" not in loaded(replica))
        await passes(replica, 2)
        assert loaded(replica) == {"mine", "row"}


async def test_a_model_that_the_table_has_wanted_goes_when_it_does_not_want_it_any_more(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    small_platform.note_change("2021-01-01 00:00:00")
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        await replica.models.load("it", "mine")
        small_platform.put_model("mine")
        small_platform.note_change("2021-01-01 00:00:01")
        await until(lambda: desired(replica, "mine").wanted)
        small_platform.put_model("mine", loaded=0)
        small_platform.note_change("2021-01-01 00:00:02")
        await until(lambda: loaded(replica) == set())


async def test_what_was_loaded_for_the_table_is_unloaded_after_a_restart_too(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    small_platform.put_model("a")
    small_platform.note_change("2021-01-01 00:00:00")
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        await replica.models.load("it", "mine")

    # With a worker process the first look at the table comes before the models of the last run are back.
    small_platform.put_model("a", loaded=0)
    async with open_replica(small_platform, workers=1) as replica:
        await until_ready(replica)
        assert loaded(replica) == {"mine"}


async def test_a_model_whose_path_changes_is_loaded_from_the_new_one(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    small_platform.put_model("a")
    small_platform.note_change("2021-01-01 00:00:00")
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        small_platform.put_model("a", path="bucket/new")
        small_platform.note_change("2021-01-01 00:00:01")
        await until(lambda: desired(replica, "a").loaded_from == "bucket/new")
        assert await predicted(replica, "a") == '"a from bucket/new"'


async def test_a_model_that_is_gone_comes_back(open_replica: OpenReplica, small_platform: Platform) -> None:
    small_platform.put_model("a")
    small_platform.note_change("2021-01-01 00:00:00")
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        await replica.models.unload("a")
        await until(lambda: loaded(replica) == {"a"})


async def test_a_failed_load_is_tried_again_told_once_and_shown(
    open_replica: OpenReplica, small_platform: Platform, tmp_path: Path, log_lines: Callable[[], str]
) -> None:
    (tmp_path / "broken-a").touch()
    small_platform.put_model("a")
    small_platform.put_model("b")
    small_platform.note_change("2021-01-01 00:00:00")
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        await until(lambda: desired(replica, "a").failures >= 3)
        assert loaded(replica) == {"b"}
        assert "a is broken" in desired(replica, "a").error
        assert (desired(replica, "a").next_try or 0) > time.time() - 1
        assert "[a]" in warnings(replica)
        assert log_lines().count("a is broken; it is tried again") == 1
        assert log_lines().count("model 'a' of it could not be loaded: ") == 1

        (tmp_path / "broken-a").unlink()
        await until(lambda: loaded(replica) == {"a", "b"})
        assert desired(replica, "a").next_try is None
        assert warnings(replica) == ""


async def test_a_model_below_its_gate_is_not_loaded_until_a_better_one_is_stored(
    open_replica: OpenReplica, small_platform: Platform, tmp_path: Path
) -> None:
    store_model(tmp_path / "one", "ml-platform-model/bad", below_gate="the model has macro F1 0.5")
    store_model(tmp_path / "one", "elsewhere/moved", below_gate="the model has macro F1 0.6")
    store_model(tmp_path / "one", "ml-platform-model/good")
    for model_id, path in (("bad", None), ("path", "elsewhere/moved"), ("good", None), ("foreign", None)):
        small_platform.put_model(model_id, "stored", path=path)
    small_platform.note_change("2021-01-01 00:00:00", "stored")
    async with open_replica(small_platform, "one") as replica:
        await until_ready(replica)
        assert loaded(replica) == {"good", "foreign"}
        assert desired(replica, "bad").error == "it is below its gate: the model has macro F1 0.5"
        assert desired(replica, "path").error == "it is below its gate: the model has macro F1 0.6"
        assert "[bad]" in warnings(replica)

        store_model(tmp_path / "one", "ml-platform-model/bad")
        await until(lambda: loaded(replica) == {"good", "foreign", "bad"})
        await until(lambda: desired(replica, "bad").error == "")


async def test_a_model_whose_load_kills_its_worker_neither_starves_nor_stalls_the_others(
    open_replica: OpenReplica, small_platform: Platform, tmp_path: Path, log_lines: Callable[[], str]
) -> None:
    (tmp_path / "deadly-bad").touch()
    healthy = {f"m{number}" for number in range(20)}
    for model_id in ("bad", *healthy):
        small_platform.put_model(model_id)
    small_platform.note_change("2021-01-01 00:00:00")
    async with open_replica(small_platform, workers=1) as replica:
        await until(lambda: loaded(replica) == healthy)
        for model_id in healthy:
            assert await predicted(replica, model_id) == f'"{model_id} from None"'
        await until(lambda: desired(replica, "bad").failures >= 5, 60)

        async def longest_prediction() -> float:
            """The longest of one prediction of each healthy model, in seconds."""
            longest = 0.0
            for model_id in healthy:
                began = time.monotonic()
                await predicted(replica, model_id)
                longest = max(longest, time.monotonic() - began)
            return longest

        usual = max([await longest_prediction() for _ in range(5)])
        due = desired(replica, "bad").due
        small_platform.put_model("new")
        small_platform.note_change("2021-01-01 00:00:01")
        while "new" not in loaded(replica):
            assert await longest_prediction() < 1.0 + 10 * usual
        if time.monotonic() < due:
            assert desired(replica, "bad").due == due, "the change of another row does not end its pause"

        # Every try but the first has a process of its own: nobody else notices.
        await until(lambda: time.monotonic() > due)
        while desired(replica, "bad").failures < 6:
            await longest_prediction()
        assert loaded(replica) == healthy | {"new"}
        assert log_lines().count("worker 0 was killed by SIGKILL") == 1


async def test_a_path_that_does_not_exist_fails_alone(open_replica: OpenReplica, small_platform: Platform) -> None:
    small_platform.put_model("../a")
    small_platform.put_model("b")
    small_platform.note_change("2021-01-01 00:00:00")
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        assert "b" in loaded(replica)


async def test_rows_that_cannot_be_used_are_told_once_and_the_rest_goes_on(
    open_replica: OpenReplica, open_platform: OpenPlatform, log_lines: Callable[[], str]
) -> None:
    platform = open_platform("sqlite")
    platform.sql("DROP TABLE model")
    platform.sql("CREATE TABLE model (model_id TEXT, path TEXT, status TEXT, loaded INTEGER, algorithm TEXT)")
    for model_id, algorithm, path in [
        ("good", "it", None),
        ("twice", "it", "bucket/one"),
        ("twice", "it", "bucket/two"),
        ("x" * 65, "it", None),
        (None, "it", None),
        ("nobody", None, None),
        ("foreign", "elsewhere", None),
        ("case", "IT", None),
    ]:
        platform.sql(
            "INSERT INTO model (model_id, loaded, algorithm, path) VALUES (:model_id, 1, :algorithm, :path)",
            model_id=model_id,
            algorithm=algorithm,
            path=path,
        )
    platform.note_change("2021-01-01 00:00:00")

    async with open_replica(platform) as replica:
        await until_ready(replica)
        await until_settled(replica)
        platform.note_change("2021-01-01 00:00:01")
        await passes(replica, 3)
        assert loaded(replica) == {"good", "twice"}
        assert await predicted(replica, "twice") == '"twice from bucket/one"'
    for words in ("65 characters", "no model id", "'twice' has another", "'elsewhere'", "no algorithm", "'IT'"):
        assert log_lines().count(words) == 1, words


async def test_an_outage_changes_nothing_that_is_loaded_and_is_told_once(
    open_replica: OpenReplica, open_platform: OpenPlatform, log_lines: Callable[[], str]
) -> None:
    platform = open_platform("mariadb")
    assert platform.server is not None
    platform.put_model("a")
    platform.note_change("2021-01-01 00:00:00")
    async with open_replica(platform, db_timeout=1.0) as replica:
        await until_ready(replica)
        platform.server.stop()
        try:
            await until(lambda: "database could not" in warnings(replica))
            await passes(replica, 3, answered=False)
            assert loaded(replica) == {"a"}
            assert replica.state.problems() == []
            assert log_lines().count("could not read what has changed") == 1
        finally:
            platform.server.start()
        platform.put_model("b")
        platform.note_change("2021-01-01 00:00:01")
        await until(lambda: loaded(replica) == {"a", "b"})
        assert warnings(replica) == ""


async def test_a_restart_during_an_outage_keeps_what_was_wanted(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    small_platform.put_model("a", path="bucket/a")
    small_platform.note_change("2021-01-01 00:00:00")
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
    break_file(small_platform)
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        assert loaded(replica) == {"a"}
        assert await predicted(replica, "a") == '"a from bucket/a"'


async def test_without_a_database_from_the_start_a_replica_serves_what_it_is_told(
    open_replica: OpenReplica, small_platform: Platform
) -> None:
    break_file(small_platform)
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        await replica.models.load("it", "mine")
        assert loaded(replica) == {"mine"}
        assert "database could not" in warnings(replica)


async def test_the_checker_can_be_switched_off(open_replica: OpenReplica, small_platform: Platform) -> None:
    small_platform.put_model("a")
    small_platform.note_change("2021-01-01 00:00:00")
    async with open_replica(small_platform, checker=False) as replica:
        await until_ready(replica)
        assert replica.cluster is not None
        assert replica.cluster.desired_models is None
        assert loaded(replica) == set()


async def test_a_leader_makes_the_others_follow(open_replica: OpenReplica, platform: Platform) -> None:
    async with open_replica(platform, "one", sync="lead") as one, open_replica(platform, "two") as two:
        assert one.cluster is not None
        await until_ready(one)
        await until_ready(two)
        await one.models.load("it", "a", "bucket/a")
        await one.cluster.announce_load("a", "bucket/a")
        await until(lambda: loaded(two) == {"a"})
        assert await predicted(two, "a") == '"a from bucket/a"'

        await one.cluster.announce_unload("a")
        await one.models.unload("a")
        await until(lambda: loaded(one) == loaded(two) == set())


async def test_a_service_that_stops_loads_nothing_more(open_replica: OpenReplica, small_platform: Platform) -> None:
    small_platform.note_change("2021-01-01 00:00:00")
    async with open_replica(small_platform) as replica:
        await until_ready(replica)
        small_platform.put_model("a")
        await replica.drain()
        small_platform.note_change("2021-01-01 00:00:01")
        with pytest.raises(MlpkitError):
            await replica.models.load("it", "b")
        assert loaded(replica) == set()


def store_model(home: Path, place: str, *, below_gate: str = "") -> None:
    """Puts the manifest of a model into the store of a replica."""
    folder = home / "storage" / place
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(algorithm="it", kind="text_custom", model_id=folder.name, below_gate=below_gate)
    (folder / "mlpkit.json").write_bytes(msgspec.json.encode(manifest))


def break_file(platform: Platform) -> None:
    """Makes a SQLite database impossible to open."""
    file = Path(platform.environment["ML_CLIENT_MLP_DB_NAME"])
    file.rename(f"{file}.away")
    file.mkdir()


async def until_settled(replica: Service) -> None:
    """Waits until a change is not read a second time any more."""
    await anyio.sleep(1.0)  # The rule itself: for one second rows are read again.
    await passes(replica, 3)


async def passes(replica: Service, count: int, *, answered: bool = True) -> None:
    """Waits for so many looks of the checker."""
    cluster = replica.cluster
    assert cluster is not None
    if not answered:
        await anyio.sleep(0.2 * count)
        return
    for _ in range(count):
        before = cluster.looked
        await until(lambda before=before: cluster.looked != before)  # type: ignore[misc]
