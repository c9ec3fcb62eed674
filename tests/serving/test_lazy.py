"""Models that predictions ask for: loaded once, with clear errors, and evicted when memory is short."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from mlpkit.errors import (
    BelowGate,
    LoadFailed,
    MlpkitError,
    ModelNotLoaded,
    Overloaded,
    ServiceStopping,
    TimeLimitExceeded,
)
from mlpkit.serving import Aliases, Models
from mlpkit.settings import Settings
from mlpkit.storage import Manifest, Storage, delete_model, open_storage, save_model
from tests.servers import until
from tests.serving.conftest import OpenModels
from tests.serving.test_models import ask, read

pytestmark = pytest.mark.anyio

SCRIPT = """
import os, signal, time
from mlpkit import ModelDir
app = App("echo")
eager = app.algorithm("eager")

@app.load(lazy=True, memory="10MiB")
@eager.load(memory="10MiB")
def load(files: ModelDir | None, model_id):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"load {model_id}\\n")
    if model_id.startswith("slow"):
        time.sleep(0.3)
    if model_id.startswith("broken"):
        raise ValueError("as it was told")
    if model_id.startswith("deadly") and not os.path.exists(os.environ["CALLS"] + " " + model_id):
        open(os.environ["CALLS"] + " " + model_id, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return model_id

@app.predict
@eager.predict
def predict(model, features):
    while features and not os.path.exists(features["until"]):
        time.sleep(0.01)
    return model

@app.unload
@eager.unload
def unload(model_id):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"unload {model_id}\\n")
"""
Open = Callable[..., AbstractAsyncContextManager[Models]]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "calls").touch()
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(Settings(home=tmp_path / "home"))


@pytest.fixture
def open_lazy(open_models: OpenModels, storage: Storage, calls: Path) -> Open:
    """Opens the models of the script, with the store in which `store` stores."""

    def opened(script: str = SCRIPT, **settings: Any) -> AbstractAsyncContextManager[Models]:
        return open_models(script, storage=storage, **settings)

    return opened


@pytest.fixture
def store(storage: Storage, tmp_path: Path) -> Callable[..., None]:
    """Stores models of an algorithm by their ids."""

    def stored(*model_ids: str, algorithm: str = "echo", **more: Any) -> None:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "weights").write_bytes(b"x" * 100)
        for model_id in model_ids:
            manifest = Manifest(algorithm=algorithm, kind="text_custom", model_id=model_id, **more)
            save_model(storage, folder, f"{Settings().model_bucket}/{model_id}", manifest)

    return stored


Store = Callable[..., None]


def aliases_of(models: Models, tmp_path: Path) -> Aliases:
    found = Aliases(models, tmp_path / "home", load_timeout=60)
    found.open()
    return found


async def test_fifty_callers_at_once_load_a_stored_model_once(open_lazy: Open, store: Store, calls: Path) -> None:
    store("slow")
    async with open_lazy() as models:
        assert await asyncio.gather(*(ask(models, "slow") for _ in range(50))) == ["slow"] * 50
        (view,) = models.listed()
        assert (view.lazy, view.predictions) == (True, 50)
        assert models.loads["echo"].lazy == 1
    assert read(calls).count("load slow") == 1


@pytest.mark.parametrize("model_id", ["unknown", "../else", "eager-one"])
async def test_model_that_may_not_be_loaded_is_refused(
    open_lazy: Open, store: Store, calls: Path, model_id: str
) -> None:
    store("eager-one", algorithm="eager")
    async with open_lazy() as models:
        outcomes = await asyncio.gather(*(ask(models, model_id) for _ in range(5)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ModelNotLoaded] * 5
        assert models.listed() == []
    assert read(calls) == ""


async def test_model_that_is_stored_later_is_found(open_lazy: Open, store: Store) -> None:
    async with open_lazy() as models:
        with pytest.raises(ModelNotLoaded):
            await ask(models, "later")
        store("later")
        await until_answered(models, "later")


async def test_model_below_its_gate_is_loaded_only_by_load(open_lazy: Open, store: Store) -> None:
    store("poor", below_gate="F1 is 0.5, min_f1 is 0.8")
    async with open_lazy() as models:
        with pytest.raises(BelowGate, match=r"model \[poor\] is below its gate: F1 is 0\.5"):
            await ask(models, "poor")
        await models.load("echo", "poor")
        assert await ask(models, "poor") == "poor"


@pytest.mark.parametrize("event", ["the worker dies", "the service restarts"])
async def test_model_that_was_trained_again_below_its_gate_comes_back_only_after_load(
    open_lazy: Open, store: Store, tmp_path: Path, event: str
) -> None:
    by_whom = ("alias", "table", "load")
    store(*by_whom, algorithm="eager")
    async with open_lazy() as models:
        await aliases_of(models, tmp_path).move("eager", "current", "alias")
        await models.load("eager", "table", by_table=True)
        await models.load("eager", "load")
        store(*by_whom, algorithm="eager", below_gate="F1 is 0.5, min_f1 is 0.8")
        if event == "the worker dies":
            (worker,) = models.workers()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            await until(lambda: models.restarts == 1)
            await until(lambda: sum("gate" in each.problem for each in models.listed()) == 2)
            reasons = {each.model_id: each.problem for each in models.listed()}
            assert await ask(models, "load") == "load"
    if event == "the service restarts":
        opened: list[Aliases] = []
        async with open_lazy(first=lambda models: opened.append(aliases_of(models, tmp_path))) as models:
            await until(lambda: not models.problems())
            reasons = {each.model_id: each.reason for each in models.missing()}
            assert set(models.placement()) == {"load"}
            (warning,) = opened[0].warnings()
            assert warning.startswith("alias [eager@current] leads to model [alias], which is not loaded: ")
            # It is tried again: a model that reaches its gate comes back by itself.
            store("alias", algorithm="eager")
            await until(lambda: "alias" in models.placement())
            assert await ask(models, "eager@current") == "alias"
    for model_id in ("alias", "table"):
        assert f"model [{model_id}] is below its gate: F1 is 0.5, min_f1 is 0.8" in reasons[model_id]


@pytest.mark.parametrize("path", [None, "of/../the/author", "nowhere"])
async def test_store_is_not_asked_for_the_gate_of_models_that_are_not_folders_in_it(
    open_models: OpenModels, tmp_path: Path, path: str | None
) -> None:
    script = """
from mlpkit import Storage
app = App("own")

@app.load
def load(storage: Storage, model_path):
    return model_path

@app.predict
def predict(model):
    return model
"""
    async with open_models(script) as models:
        await models.load("own", "m", path, by_table=True)
        assert await ask(models, "m") == path
        await aliases_of(models, tmp_path).move("own", "current", "n")
        assert await ask(models, "own@current") is None


async def test_load_that_fails_gives_each_caller_the_error_and_is_not_tried_at_once_again(
    open_lazy: Open, store: Store, calls: Path
) -> None:
    store("broken")
    async with open_lazy() as models:
        for _ in range(2):
            outcomes = await asyncio.gather(*(ask(models, "broken") for _ in range(10)), return_exceptions=True)
            assert {(type(outcome), str(outcome)) for outcome in outcomes} == {(LoadFailed, "load fail as it was told")}
        assert read(calls) == "load broken\n"
        # It is tried again after a pause.
        await until_refused_again(models, "broken", calls)


async def test_model_that_was_deleted_meanwhile_is_an_error(
    open_lazy: Open, store: Store, storage: Storage, tmp_path: Path, calls: Path
) -> None:
    store("m", "n")
    async with open_lazy(model_memory=10 << 20) as models:
        await models.load("echo", "m")
        assert await ask(models, "n") == "n"
        assert [evicted.model_id for evicted in models.evicted()] == ["m"]
        delete_model(storage, Settings(home=tmp_path / "home"), "m")
        before = read(calls)
        with pytest.raises(MlpkitError, match=r"there is no model .*/m"):
            await ask(models, "m")
        assert read(calls).removeprefix(before) == "unload n\n"


async def test_worker_that_dies_in_a_lazy_load_is_an_error_and_the_next_try_succeeds(
    open_lazy: Open, store: Store
) -> None:
    store("deadly", "bystander")
    async with open_lazy() as models:
        with pytest.raises(LoadFailed, match="worker-0 was killed by SIGKILL"):
            await ask(models, "deadly")
        await until_answered(models, "deadly")
        assert await ask(models, "bystander") == "bystander"


async def test_worker_that_died_brings_lazily_loaded_models_back(open_lazy: Open, store: Store) -> None:
    store("m")
    async with open_lazy() as models:
        await ask(models, "m")
        (worker,) = models.workers()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: models.restarts == 1)
        assert await ask(models, "m") == "m"


async def test_caller_waits_at_most_its_time_limit_and_the_load_goes_on(open_lazy: Open, store: Store) -> None:
    store("slow")
    async with open_lazy(predict_timeout=0.1) as models:
        with pytest.raises(TimeLimitExceeded, match=r"model \[slow\] was not loaded within 0\.1 s"):
            await ask(models, "slow")
        await until(lambda: "slow" in models.placement())
        assert await ask(models, "slow") == "slow"


async def test_too_many_callers_are_refused_while_a_model_is_loaded(open_lazy: Open, store: Store) -> None:
    store("slow")
    async with open_lazy(max_waiting=5) as models:
        outcomes = await asyncio.gather(*(ask(models, "slow") for _ in range(8)), return_exceptions=True)
        assert outcomes[:5] == ["slow"] * 5
        assert [type(outcome) for outcome in outcomes[5:]] == [Overloaded] * 3


async def test_callers_are_told_that_the_service_stops(open_lazy: Open, store: Store) -> None:
    store("slow")
    async with open_lazy() as models:
        asked = asyncio.ensure_future(ask(models, "slow"))
        await asyncio.sleep(0)
        await models.drain(0)
        with pytest.raises(ServiceStopping):
            await asked


async def test_models_that_only_predictions_asked_for_are_gone_after_a_restart(open_lazy: Open, store: Store) -> None:
    store("asked", "loaded", "both")
    async with open_lazy() as models:
        for model_id in ("asked", "both"):
            await ask(models, model_id)
        for model_id in ("loaded", "both"):
            await models.load("echo", model_id)
    async with open_lazy() as models:
        await until(lambda: not models.problems())
        assert set(models.placement()) == {"loaded", "both"}
        assert await ask(models, "asked") == "asked"


async def test_least_recently_used_models_leave_first(open_lazy: Open, store: Store, calls: Path) -> None:
    store("a", "b", "c", "d")
    async with open_lazy(model_memory=30 << 20) as models:
        for model_id in ("a", "b", "c", "a", "d"):
            assert await ask(models, model_id) == model_id
        assert set(models.placement()) == {"a", "c", "d"}
        assert models.loads["echo"].evictions == 1
        assert [(evicted.model_id, evicted.lazy) for evicted in models.evicted()] == [("b", True)]
        # It comes back, and the one that was not used for the longest time leaves.
        assert await ask(models, "b") == "b"
        assert set(models.placement()) == {"a", "b", "d"}
    assert [line for line in read(calls).splitlines() if line.startswith("unload")][:2] == ["unload b", "unload c"]


async def test_model_that_was_evicted_comes_back_as_it_was_loaded(open_lazy: Open, store: Store) -> None:
    store("one", "two", algorithm="eager")
    async with open_lazy(model_memory=10 << 20) as models:
        await models.load("eager", "one")
        await models.load("eager", "two")
        assert list(models.placement()) == ["two"]
        # Though its algorithm is not lazy.
        assert await ask(models, "one") == "one"
        assert [(evicted.model_id, evicted.lazy) for evicted in models.evicted()] == [("two", False)]
        assert not models.listed()[0].lazy
    async with open_lazy(model_memory=10 << 20) as models:
        await until(lambda: not models.problems())
        assert list(models.placement()) == ["one"]
        assert [evicted.model_id for evicted in models.evicted()] == ["two"]
        assert await ask(models, "two") == "two"
        await models.unload("one")
        with pytest.raises(ModelNotLoaded):
            await ask(models, "one")
        assert models.evicted() == []


async def test_model_with_predictions_in_flight_is_not_evicted(
    open_lazy: Open, store: Store, tmp_path: Path, calls: Path
) -> None:
    store("a", "b")
    async with open_lazy(model_memory=10 << 20, workers=2) as models:
        await ask(models, "a")
        running = asyncio.ensure_future(ask(models, "a", {"until": str(tmp_path / "end")}))
        waiting = asyncio.ensure_future(ask(models, "b"))
        await until(lambda: {view.model_id for view in models.listed()} == {"a", "b"})
        # Longer than between two looks for room.
        await asyncio.sleep(0.2)
        assert {view.model_id: view.state for view in models.listed()} == {"a": "loaded", "b": "loading"}
        (tmp_path / "end").touch()
        assert await running == "a"
        assert await waiting == "b"
    assert read(calls).splitlines()[:3] == ["load a", "unload a", "load b"]


async def test_idle_models_stay_if_their_room_is_too_little_while_another_is_in_use(
    open_lazy: Open, store: Store, tmp_path: Path, calls: Path
) -> None:
    script = SCRIPT.replace('@eager.load(memory="10MiB")', '@eager.load(memory="20MiB")')
    store("used", "idle")
    store("large", algorithm="eager")
    async with open_lazy(script, model_memory=25 << 20, workers=2) as models:
        await ask(models, "used")
        await ask(models, "idle")
        running = asyncio.ensure_future(ask(models, "used", {"until": str(tmp_path / "end")}))
        waiting = asyncio.ensure_future(models.load("eager", "large"))
        await until(lambda: len(models.listed()) == 3)
        # Longer than between two looks for room.
        await asyncio.sleep(0.2)
        states = {view.model_id: view.state for view in models.listed()}
        assert states == {"used": "loaded", "idle": "loaded", "large": "loading"}
        (tmp_path / "end").touch()
        assert await running == "used"
        await waiting
        assert list(models.placement()) == ["large"]


async def test_models_that_an_alias_or_the_table_names_stay(open_lazy: Open, store: Store, tmp_path: Path) -> None:
    store("named", "in-table", "other")
    async with open_lazy(model_memory=25 << 20) as models:
        aliases = aliases_of(models, tmp_path)
        await aliases.move("echo", "current", "named")
        models.claims.in_table = frozenset({"in-table"})
        await models.load("echo", "in-table")
        match = (
            r"needs 10\.0 MiB of memory, and MLPKIT_MODEL_MEMORY allows 25\.0 MiB, of which models .* take 20\.0 MiB"
        )
        with pytest.raises(LoadFailed, match=match):
            await ask(models, "other")
        assert set(models.placement()) == {"named", "in-table"}
        models.claims.in_table = frozenset()
        await models.load("echo", "other")
        assert set(models.placement()) == {"named", "other"}
        assert await ask(models, "echo@current") == "named"


async def test_model_that_had_no_room_for_a_while_is_loaded_soon_after_there_is_some(
    open_lazy: Open, store: Store, tmp_path: Path
) -> None:
    store("named", "other")
    async with open_lazy(model_memory=15 << 20) as models:
        aliases = aliases_of(models, tmp_path)
        await aliases.move("echo", "current", "named")
        asked = 0
        begin = time.monotonic()
        # Long enough for a pause of eight seconds, if each were twice as long as the one before.
        while time.monotonic() < begin + 7.5:
            with pytest.raises(LoadFailed, match="that must stay take"):
                await ask(models, "other")
            asked += 1
            await asyncio.sleep(0.05)
        assert asked > 10
        await aliases.remove("echo", "current")
        freed = time.monotonic()
        await until_answered(models, "other")
        assert time.monotonic() < freed + 6


@pytest.mark.parametrize("memory", ['memory="10MiB"', ""])
async def test_limit_below_one_model_is_refused_with_figures(
    open_lazy: Open, store: Store, calls: Path, memory: str
) -> None:
    script = SCRIPT.replace('memory="10MiB"', memory).replace("return model_id", "return model_id, bytearray(20 << 20)")
    store("m")
    async with open_lazy(script, model_memory=5 << 20) as models:
        for load in (ask(models, "m"), models.load("echo", "m")):
            with pytest.raises(
                LoadFailed, match=r"needs [\d.]+ MiB of memory, and MLPKIT_MODEL_MEMORY allows 5\.0 MiB"
            ):
                await load
        assert models.listed() == []


async def test_what_models_were_seen_to_take_counts(open_lazy: Open, store: Store) -> None:
    script = SCRIPT.replace('memory="10MiB"', "").replace("return model_id", "return model_id, bytearray(40 << 20)")
    script = script.replace("    return model\n", "    return model[0]\n")
    ids = [f"m{number}" for number in range(4)]
    store(*ids)
    async with open_lazy(script, model_memory=100 << 20) as models:
        for model_id in ids:
            assert await ask(models, model_id) == model_id
        await until(lambda: set(models.placement()) == {"m2", "m3"})


async def until_answered(models: Models, model_id: str) -> None:
    """Asks until the pause after a failure is over and the model answers."""
    for _ in range(600):
        try:
            assert await ask(models, model_id) == model_id
        except MlpkitError:
            await asyncio.sleep(0.1)
        else:
            return
    raise AssertionError(f"{model_id} does not answer")


async def until_refused_again(models: Models, model_id: str, calls: Path) -> None:
    before = read(calls)
    for _ in range(600):
        with pytest.raises(LoadFailed):
            await ask(models, model_id)
        if read(calls) != before:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"the load of {model_id} is not tried again")
