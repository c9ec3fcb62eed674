"""What an App holds after its script has been read, and that reading it starts nothing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mlpkit.algorithm import LoadOptions, PredictOptions, TrainOptions
from mlpkit.app import App
from mlpkit.errors import DeclarationError
from mlpkit.formats import KINDS
from tests.servers import LONG


def train(data: dict[str, Any]) -> str:
    return f"trained with {data}"


def load(model_id: str) -> str:
    return model_id


def predict(model: str, features: list[dict[str, str]]) -> list[str]:
    return [model + each["word"] for each in features]


def start() -> None: ...


def stop() -> None: ...


def test_a_decorator_returns_the_function_unchanged() -> None:
    app = App("a")

    assert app.train(train) is train
    assert app.load(replicas=2)(load) is load
    assert app.predict(max_batch_size=4)(predict) is predict
    assert train({"x": 1}) == "trained with {'x': 1}"


def test_every_decorator_records_its_hook() -> None:
    app = App("a")
    for each in (app.train, app.load, app.unload, app.delete, app.status):
        each(load)
    app.model_id(start)

    assert list(app.hooks) == ["train", "load", "unload", "delete", "status", "model_id"]


def test_options_are_kept_in_units_of_bytes_and_seconds() -> None:
    app = App("a")
    app.train(cpus=2, gpus=1, memory="1.5GiB", timeout=60, max_attempts=3)(train)
    app.load(isolated=True, replicas=2, preload=["m1", "m2"], memory=4096)(load)
    app.predict(max_batch_size=8, max_wait_ms=2, threads=4, timeout=0.5)(predict)

    app.build()

    assert app.train_options == TrainOptions(2, 1, 3 << 29, 60, 3)
    assert app.load_options == LoadOptions(True, 2, ("m1", "m2"), 4096, None)
    assert app.predict_options == PredictOptions(8, 2, 4, 0.5)


def test_without_options_there_are_defaults() -> None:
    app = App("a")

    assert app.train_options == TrainOptions()
    assert app.load_options == LoadOptions()
    assert app.predict_options == PredictOptions()


@pytest.mark.parametrize(
    ("hook", "options"),
    [
        ("train", {"cpus": True}),
        ("train", {"gpus": -1}),
        ("train", {"memory": 0}),
        ("train", {"memory": 1.5}),
        ("train", {"timeout": float("inf")}),
        ("train", {"max_attempts": 0}),
        ("load", {"isolated": "yes"}),
        ("load", {"replicas": 0}),
        ("load", {"preload": [1]}),
        ("load", {"preload": {"m1": 1}}),
        ("load", {"placement": "clutser"}),
        ("load", {"placement": True}),
        ("predict", {"max_batch_size": 0}),
        ("predict", {"max_wait_ms": -1}),
        ("predict", {"max_wait_ms": float("nan")}),
        ("predict", {"threads": 1.5}),
    ],
)
def test_an_option_that_cannot_be_used_is_a_mistake(hook: str, options: dict[str, Any]) -> None:
    app = App("a")
    getattr(app, hook)(**options)(start)

    with pytest.raises(DeclarationError, match=f"@app.{hook} has {next(iter(options))}="):
        app.build()


def test_the_own_algorithm_exists_only_where_it_has_functions() -> None:
    app = App("nlp")
    app.algorithm("ner").train(train)

    assert list(app.build()) == ["ner"]


def test_an_app_that_includes_others_has_their_algorithms() -> None:
    first, second = App("first"), App("second")
    first.train(train)
    second.train(train)
    second.algorithm("third").train(train)

    app = App("all").include(first, second)

    assert list(app.build()) == ["first", "second", "third"]


def test_an_app_included_twice_counts_once() -> None:
    shared = App("shared")
    shared.train(train)
    shared.on_start(start)

    app = App("all").include(App("one").include(shared), App("two").include(shared))

    assert list(app.build()) == ["shared"]
    assert len(app.lifecycle("on_start")) == 1


def test_mistakes_deep_inside_an_included_app_are_found() -> None:
    inner = App("inner", kind="none")
    app = App("all").include(App("middle").include(inner))
    app.train(train)

    with pytest.raises(DeclarationError, match="no kind 'none'"):
        app.build()


def test_functions_of_included_apps_start_before_the_own() -> None:
    inner, outer = App("inner"), App("outer")
    outer.include(inner)
    outer.on_start(stop)
    inner.on_start(start)

    assert [hook.function for hook in outer.lifecycle("on_start")] == [start, stop]
    assert outer.lifecycle("on_stop") == []


def test_an_own_override_goes_before_an_included_one() -> None:
    inner, outer = App("inner"), App("outer")
    outer.include(inner)
    inner.dependency_overrides[start] = load
    outer.dependency_overrides[start] = stop

    assert outer.overrides() == {start: stop}


def test_the_kinds_are_those_of_the_platform() -> None:
    assert set(KINDS) == {
        "text_classification",
        "text_sequence_labeling",
        "text_cluster",
        "text_generation",
        "relation_extraction",
        "text_custom",
    }


def test_batching_changes_the_plan_of_predict() -> None:
    app = App("a")
    app.load(load)
    app.predict(max_batch_size=2)(predict)

    plan = app.build()["a"].plan("predict")

    assert plan is not None
    assert plan.batch
    assert plan.field_type("features") == dict[str, str]
    assert app.plan("train") is None


QUIET = """
import os, sys, threading
import psutil
here = psutil.Process()
def seen():
    return threading.enumerate(), here.num_fds(), here.children(), here.net_connections(), sorted(os.listdir())
before = seen()
import script
script.app.build()
assert seen() == before, (before, seen())
print("quiet")
"""


def test_importing_and_building_a_script_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """
            from mlpkit import App, Log, ModelDir, Progress, Storage, TrainData

            app = App("quiet", kind="text_classification")

            @app.train(cpus=1)
            def train(data: TrainData, out: ModelDir, progress: Progress, log: Log) -> None: ...

            @app.load(preload=["m1"])
            def load(files: ModelDir, storage: Storage) -> int: ...

            @app.predict(max_batch_size=8, threads=2)
            def predict(model: int, features: list[dict]) -> list[int]: ...
            """
        )
    )

    done = subprocess.run(
        [sys.executable, "-B", "-c", QUIET], cwd=tmp_path, capture_output=True, text=True, timeout=LONG, check=False
    )

    assert (done.stdout, done.returncode) == ("quiet\n", 0), done.stderr
