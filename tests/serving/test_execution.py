"""Where handlers run: a thread per model, one context, no event loop; also without worker processes."""

from __future__ import annotations

import asyncio
import decimal
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
import sklearn

from mlpkit.errors import LoadFailed, PredictFailed, WorkerLost
from mlpkit.log import with_request_id
from mlpkit.serving import Models
from tests.servers import LONG, until
from tests.serving.conftest import OpenModels
from tests.serving.test_models import ask

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    """The settings of this process, which a script that is imported here changes."""
    with decimal.localcontext(), np.errstate(), sklearn.config_context():
        yield


both_ways = pytest.mark.parametrize("workers", [1, 0])
"""In a worker process, and in the server's own."""

SAME_THREAD = """
import asyncio, json, os, threading, time
app = App("same")

def here(what):
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        loop = False
    else:
        loop = True
    with open(os.environ["HERE"], "a") as file:
        file.write(json.dumps([what, threading.get_ident(), loop]) + "\\n")

@app.load{load}
def load():
    here("load")
    return 1

@app.predict
def predict(model, features):
    here("predict")
    time.sleep(features)

@app.unload
def unload():
    here("unload")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file into which the scripts of these tests write."""
    monkeypatch.setenv("HERE", str(tmp_path / "here"))
    return tmp_path / "here"


def written_at_all(here: Path) -> bool:
    return here.exists()


def written(here: Path) -> list[Any]:
    return [msgspec.json.decode(line) for line in here.read_text(encoding="utf-8").splitlines()]


async def ask_all(models: Models, *features: object) -> list[Any]:
    return [await ask(models, features=each) for each in features]


@both_ways
@pytest.mark.parametrize("load", ["", "(isolated=True)"])
async def test_load_predict_and_unload_run_in_one_thread_without_an_event_loop(
    open_models: OpenModels, here: Path, workers: int, load: str
) -> None:
    async with open_models(SAME_THREAD.format(load=load), workers=workers) as models:
        await models.load("same", "m")
        # Slow ones, quick ones, and several at a time.
        await ask_all(models, 0.05, 0, 0, 0.05, 0)
        await asyncio.gather(*(ask(models, features=0) for _ in range(20)))
        await models.unload("m")
    calls = written(here)
    assert [what for what, _, _ in calls] == ["load", *["predict"] * 25, "unload"]
    assert len({thread for _, thread, _ in calls}) == 1
    assert not any(loop for _, _, loop in calls)


@both_ways
async def test_each_model_has_a_thread_of_its_own_that_ends_with_it(
    open_models: OpenModels, here: Path, workers: int
) -> None:
    async with open_models(SAME_THREAD.format(load=""), workers=workers) as models:
        for number in range(20):
            await models.load("same", f"m{number}")
        assert len({thread for _, thread, _ in written(here)}) == 20
        # Servers that other tests have started are children of this process too.
        children = psutil.Process().children(recursive=True)
        pid = os.getpid() if workers == 0 else [child for child in children if child.name() == "mlpkit.serving"]
        before = _threads(pid)
        for number in range(20):
            await models.unload(f"m{number}")
        await until(lambda: _threads(pid) <= before - 20)


@both_ways
async def test_log_says_how_signals_work_to_who_uses_them_in_another_thread(
    open_models: OpenModels, workers: int, lines: io.StringIO
) -> None:
    script = """
import signal
app = App("alarm")

@app.load
def load():
    signal.signal(signal.SIGALRM, print)
"""
    async with open_models(script) as models:
        with pytest.raises(LoadFailed, match="signal only works in main thread"):
            await models.load("alarm", "m")
    assert "signals work there with @app.load(isolated=True)" in lines.getvalue()


def _threads(where: Any) -> int:
    if isinstance(where, int):
        return sum(thread.name.startswith("mlpkit-model") for thread in threading.enumerate())
    return int(max(process.num_threads() for process in where if process.is_running()))


@both_ways
async def test_isolated_model_runs_in_the_main_thread_so_that_signals_work(
    open_models: OpenModels, workers: int
) -> None:
    script = """
import signal, threading, time
app = App("alarm")

class Late(Exception):
    pass

def late(number, frame):
    raise Late("too late")

@app.load(isolated=True)
def load():
    signal.signal(signal.SIGALRM, late)
    return 1

@app.predict
def predict(model, features):
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    time.sleep(10)
"""
    async with open_models(script) as models:
        await models.load("alarm", "m")
        for _ in range(3):
            with pytest.raises(PredictFailed, match="too late"):
                await ask(models)
        await models.unload("m")


STATE = """
import decimal, threading
from contextvars import ContextVar
import numpy as np
import sklearn
app = App("state")
imported, started, loaded, counted = (ContextVar(name, default=0) for name in ("i", "s", "l", "c"))
local = threading.local()

imported.set(1)
decimal.getcontext().prec = 7
np.seterr(divide="raise")
sklearn.set_config(transform_output="pandas")

@app.on_start
{on_start}def start():
    started.set(2)

@app.load{options}
{load}def load(model_id):
    loaded.set(3)
    local.opened = True
    if model_id == "other":
        decimal.getcontext().prec = 3
        sklearn.set_config(transform_output="default")
    return 1

@app.predict{predict_options}
{predict}def predict(model, features):
    counted.set(counted.get() + 1)
    return [
        imported.get(), started.get(), loaded.get(), decimal.getcontext().prec,
        np.geterr()["divide"], sklearn.get_config()["transform_output"], getattr(local, "opened", False), counted.get(),
    ]
"""
KEPT = [1, 2, 3, 7, "raise", "pandas", True]


def state(**parts: str) -> str:
    return STATE.format(
        **{name: parts.get(name, "") for name in ("on_start", "options", "load", "predict_options", "predict")}
    )


@both_ways
@pytest.mark.parametrize("options", ["", "(isolated=True)"])
async def test_what_import_start_and_load_have_set_holds_in_every_prediction(
    open_models: OpenModels, workers: int, options: str
) -> None:
    async with open_models(state(options=options), workers=workers) as models:
        await models.load("state", "m")
        await models.load("state", "other")
        answers = await ask_all(models, *range(5))
        assert answers == [[*KEPT, number] for number in range(1, 6)]
        other = await ask(models, "other")
        assert other == [1, 2, 3, 3, "raise", "default", True, 1]


@both_ways
async def test_async_hooks_leave_their_context_to_plain_ones(open_models: OpenModels, workers: int) -> None:
    async with open_models(state(on_start="async ", load="async "), workers=workers) as models:
        await models.load("state", "m")
        answers = await ask_all(models, 0, 0)
    # What is local to a thread stays in that of the loop.
    assert answers == [[1, 2, 3, 7, "raise", "pandas", False, number] for number in (1, 2)]


async def test_async_predictions_begin_with_the_context_that_load_has_left(open_models: OpenModels) -> None:
    async with open_models(state(predict="async ")) as models:
        await models.load("state", "m")
        answers = await ask_all(models, 0, 0)
    assert [answer[:4] for answer in answers] == [KEPT[:4]] * 2
    assert [answer[-1] for answer in answers] == [1, 1], "one prediction does not see what another has set"


@both_ways
async def test_further_threads_begin_with_what_load_has_left(open_models: OpenModels, workers: int) -> None:
    script = state(predict_options="(threads=4)").replace(
        "counted.set(counted.get() + 1)", "together.wait(60); counted.set(threading.get_ident())"
    )
    script = script.replace("@app.load", "together = threading.Barrier(4)\n\n@app.load", 1)
    async with open_models(script, workers=workers) as models:
        await models.load("state", "m")
        # None ends before three others run at the same time.
        answers: list[Any] = await asyncio.gather(*(ask(models) for _ in range(12)))
    assert len({answer[-1] for answer in answers}) == 4
    assert {tuple(answer[:6]) for answer in answers} == {tuple(KEPT[:6])}


@both_ways
async def test_async_handlers_share_one_loop_in_a_thread_of_their_own(open_models: OpenModels, workers: int) -> None:
    script = """
import asyncio, threading
app = App("looped")

def here():
    return [threading.get_ident(), id(asyncio.get_running_loop())]

@app.load
async def load():
    return here()

begun = 0

@app.predict
async def predict(model, features):
    global begun
    begun += 1
    while begun < 20:  # None ends before all have begun.
        await asyncio.sleep(0.01)
    return [model, here(), threading.current_thread() is threading.main_thread()]
"""
    async with open_models(script, workers=workers) as models:
        await asyncio.gather(models.load("looped", "a"), models.load("looped", "b"))
        asked = asyncio.gather(*(ask(models, each) for each in "ab" * 10))
        answers: list[Any] = await asyncio.wait_for(asked, LONG)
    (place,) = {tuple(map(tuple, answer[:2])) for answer in answers}
    assert place[0] == place[1]
    assert not any(answer[2] for answer in answers)


@both_ways
async def test_asyncio_run_and_connections_of_sqlite_work_in_every_call(open_models: OpenModels, workers: int) -> None:
    script = """
import asyncio, sqlite3
app = App("plain")

@app.load
def load():
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (n int)")
    yield connection
    connection.close()

async def double(n):
    await asyncio.sleep(0)
    return 2 * n

@app.predict
def predict(model, features):
    model.execute("insert into t values (?)", [asyncio.run(double(features))])
    return [n for n, in model.execute("select n from t")]
"""
    async with open_models(script, workers=workers) as models:
        await models.load("plain", "m")
        assert await ask_all(models, 1, 2, 3) == [[2], [2, 4], [2, 4, 6]]
        await models.unload("m")


turns = 0
"""Of the event loop, while `count_turns` runs."""
went_on: list[str] = []
"""The handlers during which the event loop went on."""


async def count_turns() -> None:
    global turns
    while True:
        await asyncio.sleep(0.01)
        turns += 1


async def test_models_in_the_server_process_never_hold_up_its_loop(open_models: OpenModels) -> None:
    script = """
import time
from tests.serving import test_execution as test
app = App("waiting")

def wait_for_the_loop(handler):
    before = test.turns
    end = time.monotonic() + 20
    while test.turns < before + 3:
        assert time.monotonic() < end, "the loop stands still"
        time.sleep(0.01)
    test.went_on.append(handler)

@app.on_start
def start():
    wait_for_the_loop("on_start")

@app.load
def load():
    wait_for_the_loop("load")
    return 1

@app.predict
def predict(model):
    wait_for_the_loop("predict")
    return model

@app.on_stop
def stop():
    wait_for_the_loop("on_stop")
"""
    went_on.clear()
    counting = asyncio.ensure_future(count_turns())
    async with open_models(script, workers=0) as models:
        await models.load("waiting", "m")
        assert await ask(models) == 1
    counting.cancel()
    assert went_on == ["on_start", "load", "predict", "on_stop"]


async def test_item_of_a_batch_that_fails_after_predict_is_logged_with_its_own_uuid(
    open_models: OpenModels, lines: io.StringIO
) -> None:
    script = """
app = App("checked", kind="text_classification")

@app.load
def load():
    return 1

@app.predict(max_batch_size=8, max_wait_ms=50)
def predict(model, features: list) -> list:
    bad = {"kind": [{"label": 1}], "json": [object()], "good": [{"label": "a", "score": 1}]}
    return [bad[each] for each in features]
"""

    async def asked(what: str) -> object:
        with with_request_id(f"uuid-{what}"):
            try:
                return await ask(models, features=what)
            except PredictFailed as error:
                return error

    async with open_models(script) as models:
        await models.load("checked", "m")
        answers = await asyncio.gather(*map(asked, ("kind", "good", "json")))
        assert [isinstance(answer, PredictFailed) for answer in answers] == [True, False, True]
        await until(lambda: lines.getvalue().count("predict of model 'm' failed") == 2)
    for what in ("kind", "json"):
        assert any(f"[uuid-{what}]" in line and "failed" in line for line in lines.getvalue().splitlines()), what


async def test_worker_outlives_a_sigterm_but_a_process_that_its_model_has_forked_does_not(
    open_models: OpenModels,
) -> None:
    script = """
import multiprocessing, os, time
app = App("forking")

@app.load
def load():
    return multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)

@app.predict
def predict(model, features):
    if features == "start":
        model.start()
    if features == "end":
        model.terminate()
        model.join(20)
    return [os.getpid(), model.exitcode]
"""
    async with open_models(script) as models:
        await models.load("forking", "m")
        answer: Any = await ask(models, features="start")
        os.kill(answer[0], signal.SIGTERM)
        assert await ask(models, features="end") == [answer[0], -signal.SIGTERM]
        assert models.restarts == 0


async def test_sigterm_in_the_first_moment_of_a_forked_process_is_not_lost(open_models: OpenModels) -> None:
    script = """
import multiprocessing, time
app = App("forking")

@app.load
def load():
    return multiprocessing.get_context("fork")

@app.predict
def predict(model, features):
    codes = []
    for _ in range(20):
        process = model.Process(target=time.sleep, args=(600,), daemon=True)
        process.start()
        process.terminate()
        process.join(20)
        codes.append(process.exitcode)
        if process.exitcode is None:
            break
    return codes
"""
    async with open_models(script) as models:
        await models.load("forking", "m")
        assert await ask(models) == [-signal.SIGTERM] * 20


async def test_sigterm_ends_a_forked_process_that_works_in_c_code(open_models: OpenModels) -> None:
    script = """
import multiprocessing
app = App("forking")

def work(started):
    started.set()
    sum(range(10**12))

@app.load
def load():
    return multiprocessing.get_context("fork")

@app.predict
def predict(model, features):
    started = model.Event()
    process = model.Process(target=work, args=(started,), daemon=True)
    process.start()
    started.wait(20)
    process.terminate()
    process.join(20)
    return process.exitcode
"""
    async with open_models(script) as models:
        await models.load("forking", "m")
        assert await ask(models) == -signal.SIGTERM


async def test_prediction_that_closes_all_descriptors_is_lost_with_its_worker(open_models: OpenModels) -> None:
    script = """
import os
app = App("closing")

@app.load
def load():
    return 1

@app.predict
def predict(model, features):
    if features:
        os.closerange(3, 1000)  # as recipes for daemons do
    return model
"""
    async with open_models(script) as models:
        await models.load("closing", "m")
        with pytest.raises(WorkerLost, match="exited with code 1 while it held the request"):
            await asyncio.wait_for(ask(models, features="close"), LONG)
        assert await ask(models, features="") == 1


async def test_worker_runs_exit_handlers_when_it_is_stopped(open_models: OpenModels, here: Path) -> None:
    script = """
import atexit, os
from pathlib import Path
app = App("leaving")

@app.load
def load():
    atexit.register(Path(os.environ["HERE"]).touch)
    return 1
"""
    async with open_models(script) as models:
        await models.load("leaving", "m")
        assert not written_at_all(here)
    assert written_at_all(here)


async def test_process_pool_of_a_model_does_not_delay_the_stop(open_models: OpenModels) -> None:
    script = """
from concurrent.futures import ProcessPoolExecutor
app = App("pooling")

@app.load
def load():
    return ProcessPoolExecutor(1)

@app.predict
def predict(model, features):
    return model.submit(abs, -5).result()
"""
    async with open_models(script) as models:
        await models.load("pooling", "m")
        assert await ask(models) == 5
        begin = time.monotonic()
    # A worker that does not end by itself ends after five seconds.
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("options", ["", "(isolated=True)"])
def test_command_line_runs_a_model_as_a_worker_does(tmp_path: Path, options: str) -> None:
    script = tmp_path / "plain.py"
    script.write_text(
        f"""
import asyncio, threading
from contextvars import ContextVar
from mlpkit import App
app = App("plain")
opened = ContextVar("opened")

@app.load{options}
def load():
    opened.set(threading.get_ident())

async def one():
    return 1

@app.predict
def predict(model, features):
    in_main = threading.current_thread() is threading.main_thread()
    return [opened.get() == threading.get_ident(), in_main, asyncio.run(one())]
""",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "mlpkit", "predict", f"{script}:app", "--model", "m", "--features", "{}"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=LONG, check=True)
    assert msgspec.json.decode(found.stdout) == [True, bool(options), 1]


@pytest.mark.slow
async def test_a_thousand_models_in_two_workers_are_loaded_asked_and_unloaded(open_models: OpenModels) -> None:
    script = """
import threading
import time
app = App("small")

@app.load
def load(model_id):
    return [model_id, threading.get_ident()]

@app.predict
def predict(model):
    return [*model, threading.get_ident()]
"""
    async with open_models(script, workers=2) as models:
        names = [f"m{number}" for number in range(1000)]
        for start in range(0, 1000, 50):
            await asyncio.gather(*(models.load("small", name) for name in names[start : start + 50]))
        answers: list[Any] = [await ask(models, name) for name in names]
        assert [answer[0] for answer in answers] == names
        assert all(loaded == predicted for _, loaded, predicted in answers)
        for start in range(0, 1000, 50):
            await asyncio.gather(*(models.unload(name) for name in names[start : start + 50]))
        assert models.restarts == 0


async def test_a_quick_model_that_gets_slow_does_not_hold_up_the_load_of_another(open_models: OpenModels) -> None:
    script = """
import time
app = App("sleeper")

@app.load
def load():
    return 1

@app.predict
def predict(model, features):
    time.sleep(features["seconds"])
    return "slept"
"""
    async with open_models(script, workers=1) as models:
        await models.load("sleeper", "first")
        # Its thread reads the channel once it is known to be quick, and no more after it was slow.
        for seconds in (0, 0, 0, 0.1):
            assert await ask(models, "first", {"seconds": seconds}) == "slept"
        slow = asyncio.ensure_future(ask(models, "first", {"seconds": 3}))
        await asyncio.sleep(0)
        await models.load("sleeper", "second")
        assert await ask(models, "second", {"seconds": 0}) == "slept"
        assert not slow.done()
        assert await slow == "slept"
        for model_id in ("first", "second"):
            await models.unload(model_id)
        await models.load("sleeper", "first")
        assert await ask(models, "first", {"seconds": 0}) == "slept"
