"""An alias leads to a model: moves without a gap, one after the other, and over a restart."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from mlpkit.errors import ArgumentError, JournalError, LoadFailed, ModelInUse, ModelNotLoaded
from mlpkit.serving import Aliases, Models
from tests.servers import until
from tests.serving.conftest import OpenModels
from tests.serving.test_models import ask, read

pytestmark = pytest.mark.anyio

SCRIPT = """
import os, time
app = App("echo", kind="text_custom")
other = app.algorithm("other")

@app.load
@other.load
def load(model_id):
    if model_id == "broken":
        raise ValueError("as it was told")
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"load {model_id}\\n")
    time.sleep(0.3 if model_id.startswith("slow") else 0)
    return model_id

@app.predict
@other.predict
def predict(model, features):
    time.sleep(features["seconds"])
    return model

@app.unload
@other.unload
def unload(model_id):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"unload {model_id}\\n")
"""
NOW = {"seconds": 0}


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def aliases_of(models: Models, tmp_path: Path) -> Aliases:
    found = Aliases(models, tmp_path / "home", load_timeout=60)
    found.open()
    return found


async def test_a_move_loads_the_new_model_and_unloads_the_old_one(
    open_models: OpenModels, tmp_path: Path, calls: Path
) -> None:
    async with open_models(SCRIPT) as models:
        aliases = aliases_of(models, tmp_path)
        first = await aliases.move("echo", "current", "one")
        assert (first.name, first.model_id, first.previous) == ("echo@current", "one", None)
        assert await ask(models, "echo@current", NOW) == "one"

        second = await aliases.move("echo", "current", "two")
        assert second.previous == "one"
        assert await ask(models, "echo@current", NOW) == "two"
        await until(lambda: set(models.placement()) == {"two"})
        await until(lambda: read(calls).splitlines() == ["load one", "load two", "unload one"])


async def test_what_is_in_flight_ends_on_the_old_model(open_models: OpenModels, tmp_path: Path, calls: Path) -> None:
    async with open_models(SCRIPT) as models:
        aliases = aliases_of(models, tmp_path)
        await aliases.move("echo", "current", "one")
        before = [asyncio.ensure_future(ask(models, "echo@current", {"seconds": 0.1})) for _ in range(5)]
        await asyncio.sleep(0)
        await aliases.move("echo", "current", "two")
        assert await ask(models, "echo@current", NOW) == "two"
        assert await asyncio.gather(*before) == ["one"] * 5
        await until(lambda: "unload one" in read(calls))


async def test_a_model_that_somebody_else_wants_stays(open_models: OpenModels, tmp_path: Path, calls: Path) -> None:
    async with open_models(SCRIPT) as models:
        aliases = aliases_of(models, tmp_path)
        await aliases.move("echo", "current", "by-load")
        await models.load("echo", "by-load")
        await aliases.move("echo", "stable", "by-alias")
        for model_id in ("by-alias", "third"):
            await aliases.move("echo", "current", model_id)
        await aliases.remove("echo", "current")
        await until(lambda: "unload third" in read(calls))
        assert set(models.placement()) == {"by-load", "by-alias"}
        assert await ask(models, "echo@stable", NOW) == "by-alias"
        with pytest.raises(ModelNotLoaded):
            await ask(models, "echo@current", NOW)


async def test_a_move_that_fails_leaves_the_alias_as_it_was(
    open_models: OpenModels, tmp_path: Path, calls: Path
) -> None:
    async with open_models(SCRIPT) as models:
        aliases = aliases_of(models, tmp_path)
        await aliases.move("echo", "current", "one")
        await models.load("other", "others")

        async def refuse(alias: object) -> None:
            raise JournalError("nobody may know")

        with pytest.raises(LoadFailed, match="as it was told"):
            await aliases.move("echo", "current", "broken")
        with pytest.raises(ArgumentError, match=r"loaded with algorithm .other., not .echo."):
            await aliases.move("echo", "current", "others")
        with pytest.raises(JournalError, match="nobody may know"):
            await aliases.move("echo", "current", "two", refuse)
        assert await ask(models, "echo@current", NOW) == "one"
        await until(lambda: set(models.placement()) == {"one", "others"})


async def test_a_home_that_cannot_be_written_refuses_the_move(
    open_models: OpenModels, tmp_path: Path, calls: Path
) -> None:
    async with open_models(SCRIPT) as models:
        aliases = Aliases(models, tmp_path / "file" / "home", load_timeout=60)
        (tmp_path / "file").write_text("")
        with pytest.raises(JournalError, match=r"alias .echo@current. stays as it was"):
            await aliases.move("echo", "current", "one")
        assert aliases.listed() == []
        await until(lambda: models.placement() == {})


async def test_two_moves_at_once_follow_each_other(open_models: OpenModels, tmp_path: Path, calls: Path) -> None:
    async with open_models(SCRIPT) as models:
        aliases = aliases_of(models, tmp_path)
        moves = [aliases.move("echo", "current", model_id) for model_id in ("slow-1", "slow-2", "slow-1")]
        moved = await asyncio.gather(*moves)
        assert [alias.previous for alias in moved] == [None, "slow-1", "slow-2"]
        assert await ask(models, "echo@current", NOW) == "slow-1"
        await until(lambda: set(models.placement()) == {"slow-1"})


async def test_no_prediction_fails_while_an_alias_moves(open_models: OpenModels, tmp_path: Path, calls: Path) -> None:
    answers: list[object] = []
    async with open_models(SCRIPT, workers=2) as models:
        aliases = aliases_of(models, tmp_path)
        await aliases.move("echo", "current", "m0")
        moving = True

        async def call() -> None:
            while moving:
                answers.append(await ask(models, "echo@current", NOW))

        callers = [asyncio.ensure_future(call()) for _ in range(16)]
        for number in range(1, 11):
            await aliases.move("echo", "current", f"m{number % 3}")
        moving = False
        await asyncio.gather(*callers)
        assert set(answers) == {"m0", "m1", "m2"}
        await until(lambda: set(models.placement()) == {"m1"})


async def test_aliases_and_their_models_come_back_after_a_restart(
    open_models: OpenModels, tmp_path: Path, calls: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    # As if the last run was killed after the switch, before the old model was unloaded; `two` is not in its list.
    alias = {"algorithm": "echo", "alias": "current", "model_id": "two", "previous": "one", "since": 1.5}
    (home / "aliases.json").write_text(json.dumps([alias]))
    record = {"algorithm": "echo", "model_id": "one", "by_alias": True}
    (home / "models.json").write_text(json.dumps([record, {**record, "model_id": "asked", "by_alias": False}]))

    async with open_models(SCRIPT, first=lambda models: aliases_of(models, tmp_path)) as models:
        await until(lambda: set(models.placement()) == {"two", "asked"})
        assert await ask(models, "echo@current", NOW) == "two"
    kept = msgspec.json.decode((home / "models.json").read_bytes())
    assert {each["model_id"]: each["by_alias"] for each in kept} == {"two": True, "asked": False}


async def test_an_alias_whose_model_does_not_come_back_is_a_warning(
    open_models: OpenModels, tmp_path: Path, calls: Path
) -> None:
    (tmp_path / "home").mkdir()
    names = {"current": "two", "bad": "broken"}
    records = [{"algorithm": "echo", "alias": alias, "model_id": model_id} for alias, model_id in names.items()]
    (tmp_path / "home" / "aliases.json").write_text(json.dumps(records))
    opened: list[Aliases] = []

    async with open_models(SCRIPT, first=lambda models: opened.append(aliases_of(models, tmp_path))) as models:
        await until(lambda: set(models.placement()) == {"two"} and models.missing() != [])
        (warning,) = opened[0].warnings()
        assert warning.startswith("alias [echo@bad] leads to model [broken], which is not loaded: load fail as it was")
        await opened[0].move("echo", "bad", "two")
        # Not only while it is tried once more.
        await until(lambda: models.missing() == [] and set(models.states) == {"two"})
        assert opened[0].warnings() == []


async def test_a_model_that_an_alias_leads_to_is_not_unloaded(
    open_models: OpenModels, tmp_path: Path, calls: Path
) -> None:
    async with open_models(SCRIPT) as models:
        aliases = aliases_of(models, tmp_path)
        await models.load("echo", "one")
        await aliases.move("echo", "current", "one")
        with pytest.raises(ModelInUse, match=r"alias .echo@current. leads to model .one."):
            await models.unload("one")
        # The platform's table does not want it any more: it leaves with the alias.
        await models.leave_to_aliases("one")
        assert await ask(models, "echo@current", NOW) == "one"
        await aliases.move("echo", "current", "two")
        await until(lambda: set(models.placement()) == {"two"})


async def test_names_of_models_and_aliases_differ(open_models: OpenModels, tmp_path: Path, calls: Path) -> None:
    async with open_models(SCRIPT) as models:
        aliases = aliases_of(models, tmp_path)
        await models.load("echo", "echo@taken")
        with pytest.raises(ArgumentError, match="an alias needs another name"):
            await aliases.move("echo", "taken", "one")
        await aliases.move("echo", "current", "one")
        for call in (models.load("echo", "echo@current"), models.unload("echo@current")):
            with pytest.raises(ArgumentError, match="is an alias, not the id of a model"):
                await call


@pytest.mark.parametrize("content", [b"[{", b'[{"algorithm": "\xff"}]', b'[{"x":' + b"[" * 100_000])
async def test_a_broken_file_of_aliases_is_reported(
    open_models: OpenModels, tmp_path: Path, calls: Path, content: bytes
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "aliases.json").write_bytes(content)
    async with open_models(SCRIPT) as models:
        aliases = aliases_of(models, tmp_path)
        assert "cannot be read" in aliases.warnings()[0]
        await aliases.move("echo", "current", "one")
        assert aliases.warnings() == []
