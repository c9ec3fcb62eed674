"""What is guaranteed of models: one load, clean failures, waiting unloads, replaced workers, bounded waiting."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from pathlib import Path

import msgspec
import psutil
import pytest

from mlpkit.errors import (
    ArgumentError,
    LoadFailed,
    ModelNotLoaded,
    Overloaded,
    PredictFailed,
    TimeLimitExceeded,
    WorkerLost,
)
from mlpkit.log import with_request_id
from mlpkit.serving import Models
from tests.servers import LONG, SOON, until
from tests.serving.conftest import OpenModels, prediction_of

pytestmark = pytest.mark.anyio

ECHO = """
import os
app = App("echo")

@app.load
def load(model_id):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"load {model_id}\\n")
    return model_id

@app.predict
def predict(model, features):
    return {"model": model, "features": features, "pid": os.getpid()}
"""


async def ask(models: Models, model_id: str = "m", features: object = None, params: object = None) -> object:
    answer = await prediction_of(models, model_id, msgspec.json.encode(features), msgspec.json.encode(params))
    return msgspec.json.decode(answer)


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


async def test_twenty_loads_of_one_model_at_once_run_load_once(open_models: OpenModels, calls: Path) -> None:
    async with open_models(ECHO, workers=2) as models:
        await asyncio.gather(*(models.load("echo", "m") for _ in range(20)))
        assert list(models.placement()) == ["m"]
    assert read(calls) == "load m\n"


async def test_features_and_answers_pass_as_json(open_models: OpenModels, calls: Path) -> None:
    async with open_models(ECHO) as models:
        await models.load("echo", "m")
        answer = await ask(models, features={"文": [1, None, 2**70, 0.1]})
        assert isinstance(answer, dict)
        assert answer["features"] == {"文": [1, None, 2**70, 0.1]}
        assert answer["pid"] != os.getpid()


async def test_models_are_spread_over_the_workers(open_models: OpenModels, calls: Path) -> None:
    async with open_models(ECHO, workers=2) as models:
        for number in range(4):
            await models.load("echo", f"m{number}")
        assert sorted(index for places in models.placement().values() for index in places) == [0, 0, 1, 1]


async def test_failed_load_leaves_nothing_behind_and_can_be_tried_again(
    open_models: OpenModels, tmp_path: Path
) -> None:
    script = f"""
import pathlib
app = App("late")

@app.load
def load():
    if not pathlib.Path({str(tmp_path / "there")!r}).exists():
        raise RuntimeError("not there yet")
    return 1

@app.predict
def predict(model):
    return model
"""
    async with open_models(script) as models:
        with pytest.raises(LoadFailed, match=r"^load fail not there yet$"):
            await models.load("late", "m")
        assert models.placement() == {}
        assert models.listed() == []
        with pytest.raises(ModelNotLoaded):
            await ask(models)
        (tmp_path / "there").touch()
        await models.load("late", "m")
        assert await ask(models) == 1


async def test_unload_waits_for_the_predictions_in_flight(open_models: OpenModels) -> None:
    script = """
import time
app = App("slow")

@app.load
def load():
    return 1

@app.predict
def predict(model, features):
    time.sleep(features)
    return model
"""
    async with open_models(script) as models:
        await models.load("slow", "m")
        running = asyncio.ensure_future(ask(models, features=0.5))
        await asyncio.sleep(0.1)
        await models.unload("m")
        assert running.done()
        assert await running == 1
        with pytest.raises(ModelNotLoaded):
            await ask(models)


async def test_generator_load_cleans_up_at_unload(open_models: OpenModels, tmp_path: Path) -> None:
    script = f"""
import pathlib
app = App("generator")
trace = pathlib.Path({str(tmp_path / "trace")!r})

@app.load
def load():
    trace.write_text("open")
    yield "model"
    trace.write_text("closed")

@app.predict
def predict(model):
    return model
"""
    async with open_models(script) as models:
        await models.load("generator", "m")
        assert await ask(models) == "model"
        assert (tmp_path / "trace").read_text() == "open"
        await models.unload("m")
        assert (tmp_path / "trace").read_text() == "closed"


async def test_unload_drops_the_last_reference_to_the_model(open_models: OpenModels, tmp_path: Path) -> None:
    script = f"""
import pathlib, weakref
app = App("weak")

class Model:
    def __init__(self):
        self.itself = self

@app.load
def load():
    model = Model()
    weakref.finalize(model, pathlib.Path({str(tmp_path / "gone")!r}).touch)
    return model

@app.predict
def predict(model):
    return 1

@app.unload
def unload(model):
    pass
"""
    async with open_models(script) as models:
        await models.load("weak", "m")
        await ask(models)
        await models.unload("m")
        await until((tmp_path / "gone").exists)


async def test_isolated_model_has_a_process_of_its_own_which_unload_ends(open_models: OpenModels, calls: Path) -> None:
    script = ECHO.replace("@app.load", "@app.load(isolated=True)")
    async with open_models(script) as models:
        await models.load("echo", "a")
        await models.load("echo", "b")
        pids = []
        for name in "ab":
            answer = await ask(models, name)
            assert isinstance(answer, dict)
            pids.append(answer["pid"])
        assert pids[0] != pids[1]
        await models.unload("a")
        await until(lambda: not psutil.pid_exists(pids[0]))
        assert psutil.pid_exists(pids[1])


async def test_killed_worker_is_replaced_and_reloads_its_models(open_models: OpenModels, calls: Path) -> None:
    script = ECHO.replace("return {", "import time; time.sleep((features or {}).get('sleep', 0)); return {")
    async with open_models(script) as models:
        await models.load("echo", "m")
        first = await ask(models, features={})
        assert isinstance(first, dict)
        in_flight = asyncio.ensure_future(ask(models, features={"sleep": LONG}))
        await until(lambda: models.listed()[0].in_flight == 1)
        os.kill(first["pid"], signal.SIGKILL)
        with pytest.raises(WorkerLost, match="SIGKILL"):
            await asyncio.wait_for(in_flight, SOON)
        assert models.problems()
        second = await asyncio.wait_for(ask(models, features={}), LONG)
        assert isinstance(second, dict)
        assert second["pid"] != first["pid"]
        assert models.problems() == []


async def test_other_models_do_not_notice_a_killed_worker(open_models: OpenModels, calls: Path) -> None:
    async with open_models(ECHO, workers=2) as models:
        await models.load("echo", "a")
        await models.load("echo", "b")
        victim = await ask(models, "a")
        assert isinstance(victim, dict)
        os.kill(victim["pid"], signal.SIGKILL)
        for _ in range(50):
            assert await ask(models, "b")


async def test_what_was_loaded_is_loaded_again_after_a_restart(open_models: OpenModels, calls: Path) -> None:
    async with open_models(ECHO) as models:
        await models.load("echo", "kept", "bucket/path")
        await models.load("echo", "dropped")
        await models.unload("dropped")
    async with open_models(ECHO) as models:
        await until(lambda: models.problems() == [])
        assert list(models.placement()) == ["kept"]
        assert models.listed()[0].model_path == "bucket/path"


async def test_preloaded_models_are_there_once_ready(open_models: OpenModels, calls: Path) -> None:
    script = ECHO.replace("@app.load", "@app.load(preload=['one', 'two'])")
    async with open_models(script) as models:
        await until(lambda: models.problems() == [])
        assert sorted(models.placement()) == ["one", "two"]


BATCHES = """
app = App("batches")

@app.load
def load():
    return []

@app.predict(max_batch_size=8, max_wait_ms=20)
def predict(model, features: list[int | dict], uuid) -> list:
    import time
    time.sleep(0.05)
    if any(each < 0 for each in features):
        raise ValueError("negative")
    return [{"value": each, "batch": len(features)} for each in features]
"""


async def test_requests_that_wait_together_are_answered_as_a_batch(open_models: OpenModels) -> None:
    async with open_models(BATCHES) as models:
        await models.load("batches", "m")
        answers = await asyncio.gather(*(ask(models, features=number) for number in range(17)))
        assert [each["value"] for each in answers if isinstance(each, dict)] == list(range(17))
        sizes = [each["batch"] for each in answers if isinstance(each, dict)]
        assert sizes == [8] * 16 + [1]


async def test_one_bad_item_fails_alone_never_its_batch(open_models: OpenModels) -> None:
    async with open_models(BATCHES) as models:
        await models.load("batches", "m")
        wanted: list[object] = [0, 1, -1, "no number", 4]
        answers = await asyncio.gather(*(ask(models, features=each) for each in wanted), return_exceptions=True)
        assert isinstance(answers[2], PredictFailed)
        assert str(answers[2]) == "predict fail negative"
        assert isinstance(answers[3], ArgumentError)
        assert [each["value"] for each in answers if isinstance(each, dict)] == [0, 1, 4]


async def test_lone_request_does_not_wait_for_company(open_models: OpenModels) -> None:
    script = BATCHES.replace("max_wait_ms=20", f"max_wait_ms={LONG * 1000}").replace("time.sleep(0.05)", "pass")
    async with open_models(script) as models:
        await models.load("batches", "m")
        for _ in range(5):
            await asyncio.wait_for(ask(models, features=1), SOON)


async def test_batch_as_large_as_the_last_one_does_not_wait_any_longer(open_models: OpenModels) -> None:
    script = BATCHES.replace("max_wait_ms=20", f"max_wait_ms={LONG * 10_000}")
    async with open_models(script) as models:
        await models.load("batches", "m")
        await asyncio.gather(*(ask(models, features=number) for number in range(3)))
        waiting = []
        for number in range(3):
            waiting.append(asyncio.ensure_future(ask(models, features=number)))
            await asyncio.sleep(0.01)
        answers = await asyncio.wait_for(asyncio.gather(*waiting), LONG)
        assert [answer["batch"] for answer in answers if isinstance(answer, dict)] == [3, 3, 3]


async def test_stuck_predict_is_ended_by_its_time_out_and_its_worker_replaced(open_models: OpenModels) -> None:
    script = """
import signal, time
app = App("stuck")

@app.load
def load():
    return 1

@app.predict(timeout=0.5)
def predict(model, features):
    if features == "stuck":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        while True:
            pass
    return features
"""
    async with open_models(script) as models:
        await models.load("stuck", "m")
        with pytest.raises(TimeLimitExceeded, match=r"0\.5 s"):
            await asyncio.wait_for(ask(models, features="stuck"), SOON)
        # What waited behind the stuck one may be late too; a new worker answers what comes then.
        await until(lambda: models.problems() == [])
        assert await ask(models, features="fine") == "fine"


async def test_full_waiting_room_refuses_at_once(open_models: OpenModels) -> None:
    script = """
import time
app = App("slow")

@app.load
def load():
    return 1

@app.predict(threads=2)
def predict(model):
    time.sleep(0.3)
    return model
"""
    async with open_models(script, max_waiting=5) as models:
        await models.load("slow", "m")
        await ask(models)
        taken = [prediction_of(models, "m", b"null") for _ in range(8)]
        with pytest.raises(Overloaded, match="5 predictions wait"):
            prediction_of(models, "m", b"null")
        assert await asyncio.gather(*taken) == [b"1"] * 8


async def test_replicas_share_the_work(open_models: OpenModels, calls: Path) -> None:
    script = ECHO.replace("@app.load", "@app.load(replicas=2)").replace(
        "return {", "import time; time.sleep(0.02); return {"
    )
    async with open_models(script, workers=2) as models:
        await models.load("echo", "m")
        answers = await asyncio.gather(*(ask(models) for _ in range(20)))
        pids = [each["pid"] for each in answers if isinstance(each, dict)]
        assert len(set(pids)) == 2
        assert min(pids.count(pid) for pid in set(pids)) >= 6


async def test_slow_model_does_not_hold_up_the_others_of_its_worker(open_models: OpenModels) -> None:
    script = """
import time
app = App("mixed")

@app.load
def load(model_id):
    return model_id

@app.predict
def predict(model, features):
    time.sleep(0.4 if model == "slow" else 0)
    return model
"""
    async with open_models(script) as models:
        await models.load("mixed", "slow")
        await models.load("mixed", "quick")
        await ask(models, "slow")
        slow = asyncio.ensure_future(ask(models, "slow"))
        await asyncio.sleep(0.05)
        assert await ask(models, "quick") == "quick"
        assert not slow.done()
        assert await slow == "slow"


async def test_async_handlers_of_one_model_run_together(open_models: OpenModels) -> None:
    script = """
import asyncio
app = App("async")

@app.load
async def load():
    return 1

begun = 0

@app.predict
async def predict(model, features):
    global begun
    begun += 1
    while begun < 10:  # None ends before all have begun.
        await asyncio.sleep(0.01)
    return features
"""
    async with open_models(script) as models:
        await models.load("async", "m")
        answers = asyncio.gather(*(ask(models, features=each) for each in range(10)))
        assert await asyncio.wait_for(answers, LONG) == list(range(10))


async def test_worker_that_dies_at_every_start_is_not_retried_in_a_tight_loop(
    open_models: OpenModels, calls: Path, lines: io.StringIO
) -> None:
    script = """
import os
app = App("dying")

@app.on_start
def start():
    with open(os.environ["CALLS"], "a") as calls:
        calls.write("start\\n")
    os._exit(7)

@app.load
def load():
    return 1
"""
    async with open_models(script) as models:
        await until(lambda: any("times in a row" in each for each in models.problems()))
        assert any("exited with code 7" in each for each in models.problems())
        await asyncio.sleep(1.0)
        assert read(calls).count("start") <= 6


async def test_uuid_is_in_the_lines_that_a_worker_logs(open_models: OpenModels, lines: io.StringIO) -> None:
    script = """
import logging, warnings
from loguru import logger
app = App("talking")

@app.load
def load():
    print("loading, printed")
    return 1

@app.predict
def predict(model):
    print("predicting, printed")
    logging.getLogger("user").warning("predicting, %s", "logged")
    logger.info("predicting, loguru")
    warnings.warn("predicting, warned")
    return 1
"""
    async with open_models(script) as models:
        with with_request_id("uuid-of-load"):
            await models.load("talking", "m")
        with with_request_id("uuid-of-predict"):
            await ask(models)
        await until(lambda: "predicting, warned" in lines.getvalue())
    found = lines.getvalue().splitlines()
    for text in ("printed", "logged", "loguru", "warned"):
        assert any(f"predicting, {text}" in line and "[uuid-of-predict]" in line for line in found), text
    assert any("loading, printed" in line and "[uuid-of-load]" in line for line in found)


async def test_user_traceback_is_in_the_log_and_not_in_the_message(open_models: OpenModels, lines: io.StringIO) -> None:
    script = """
app = App("raising")

@app.load
def load():
    return 1

@app.predict
def predict(model):
    return helper()

def helper():
    raise SystemExit(3)
"""
    async with open_models(script) as models:
        await models.load("raising", "m")
        with pytest.raises(PredictFailed, match=r"^predict fail SystemExit: 3$"):
            await ask(models)
        await until(lambda: "in helper" in lines.getvalue())
        assert "injection.py" not in lines.getvalue()
        assert models.problems() == []


async def test_hooks_run_in_a_worker(open_models: OpenModels) -> None:
    script = """
import os
app = App("hooks")

@app.load
def load():
    return 1

@app.status
def status(model_id, default: str):
    return f"{model_id} was {default}"

@app.model_id
def model_id(extend: dict):
    return extend["name"] + str(os.getpid())
"""
    async with open_models(script) as models:
        assert await models.call("hooks", "status", {"model_id": "m", "default": "init"}) == "m was init"
        made = await models.call("hooks", "model_id", {"extend": msgspec.Raw(b'{"name": "pid-"}')})
        assert made.startswith("pid-")
        assert made != f"pid-{os.getpid()}"


async def test_models_in_the_server_process_answer_alike(open_models: OpenModels, calls: Path) -> None:
    async with open_models(ECHO, workers=0) as models:
        await models.load("echo", "m")
        answer = await ask(models, features=[1])
        assert answer == {"model": "m", "features": [1], "pid": os.getpid()}
        await models.unload("m")
        with pytest.raises(ModelNotLoaded):
            await ask(models)


WEIGHED = """
from mlpkit import ModelDir

app = App("weighed")

@app.load
def load(model: ModelDir):
    return (model / "weights").read_text()

@app.predict
def predict(model, features):
    return model
"""


@pytest.mark.parametrize("path", ["models/here", "/models/here", "/models/here/"])
async def test_path_of_a_model_may_have_one_slash_first(open_models: OpenModels, tmp_path: Path, path: str) -> None:
    folder = tmp_path / "home" / "storage" / "models" / "here"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("heavy", encoding="utf-8")
    async with open_models(WEIGHED) as models:
        await models.load("weighed", "m", path)
        assert await ask(models) == "heavy"
        with pytest.raises((ArgumentError, LoadFailed), match="not a safe path"):
            await models.load("weighed", "other", "//models/here")
