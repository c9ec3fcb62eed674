"""The scripted algorithms that the recorded cases assume (`algorithms.md`), as an mlpkit script.

Handlers run in several processes, so what one tells the other stands in files of the folder WIRE_STATE.
WIRE_PRELOAD names the models that are loaded at the start: `algorithm:id,id`.
"""

from __future__ import annotations

import datetime
import json
import os
import time
import uuid as uuids
from pathlib import Path
from typing import Any

from mlpkit import App

STATE = Path(os.environ["WIRE_STATE"])


def preload(algorithm: str) -> list[str]:
    """The ids that WIRE_PRELOAD names for this algorithm."""
    name, _, ids = os.environ.get("WIRE_PRELOAD", "").partition(":")
    return ids.split(",") if name == algorithm and ids else []


def note(file: str, entry: Any) -> None:
    """Adds a line to a file that all processes share."""
    with (STATE / file).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(entry) + "\n")


def noted(file: str) -> list[Any]:
    """All lines of a file that all processes share, oldest first."""
    path = STATE / file
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


app = App("wire")
echo = app.algorithm("echo")
inspect = app.algorithm("inspect")
boom = app.algorithm("boom")
shapes = app.algorithm("shapes")
slow = app.algorithm("slow")
custom_id = app.algorithm("custom_id")
custom_id_fails = app.algorithm("custom_id_fails")
bare = app.algorithm("bare")
bare_predictor = app.algorithm("bare_predictor")


@echo.train
@shapes.train
def train_nothing() -> None:
    time.sleep(0.2)


@echo.load(preload=preload("echo"))
@custom_id.load
@custom_id_fails.load
@shapes.load
@bare_predictor.load
def load_nothing() -> str:
    return "a model"


@echo.predict
@custom_id.predict
@custom_id_fails.predict
def echo_predict(features: dict[str, Any]) -> Any:
    return [{"label": features["sentence"], "score": 100}]


@echo.unload
def echo_unload(model_id: str) -> None:
    note("calls", ["echo.unload", model_id])


@echo.delete
def echo_delete(model_id: str) -> None:
    note("calls", ["echo.delete", model_id])


@inspect.train
def inspect_train(model_id: str, model_path: str, data: Any, parameters: Any, extend: Any, uuid: str | None) -> None:
    time.sleep(0.2)
    got = {"model_path": model_path, "data": data, "parameter": parameters, "extend": extend, "uuid": uuid}
    note("seen", [model_id, got])


@inspect.load
def inspect_load(model_id: str, model_path: str | None) -> dict[str, str | None]:
    note("calls", ["inspect.load", model_id])
    return {"model_id": model_id, "model_path": model_path}


@inspect.predict
def inspect_predict(model: Any, features: Any, params: Any, uuid: str | None) -> Any:
    if features is not None and "trained" in features:
        return [{"seen": dict(noted("seen")).get(features["trained"])}]
    if features is not None and "calls" in features:
        return [call for call in noted("calls") if call[1] == features["calls"]]
    return [{"model": model, "features": features, "params": params, "uuid": uuid}]


@inspect.unload
def inspect_unload(model_id: str) -> None:
    note("calls", ["inspect.unload", model_id])


@inspect.delete
def inspect_delete(model_id: str) -> None:
    note("calls", ["inspect.delete", model_id])


@boom.model_id
def boom_model_id(extend: dict[str, Any]) -> str:
    if extend.get("id") == "raise":
        raise ValueError("boom in generate_model_id")
    return f"{uuids.uuid4().hex}_{time.strftime('%Y%m%d%H%M%S')}"


@boom.train
def boom_train(parameters: dict[str, Any]) -> object:
    time.sleep(0.2)
    mode = parameters.get("mode")
    if mode == "raise":
        raise ValueError("boom in train")
    if mode == "exit":
        raise SystemExit(3)
    return {"false": False, "zero": 0, "true": True, "string": "my-own-id"}.get(str(mode))


@boom.load
def boom_load(model_path: str | None) -> str | None:
    if model_path == "raise":
        raise RuntimeError("boom in load")
    return None if model_path == "none" else "a model"


@boom.predict
def boom_predict(features: dict[str, Any]) -> Any:
    mode = features["mode"]
    errors: dict[str, BaseException] = {
        "raise": ValueError("boom in predict"),
        "raise_load": ValueError("bad payload"),
        "raise_empty": ValueError(),
        "exit": SystemExit(3),
        "unicode": ValueError("预测失败"),
    }
    if mode in errors:
        raise errors[mode]
    return [{"label": mode, "score": 100}]


@boom.unload
def boom_unload(model_id: str) -> None:
    if model_id.startswith("stuck"):
        raise RuntimeError("boom in unload")


@boom.status
def boom_status(model_id: str, default: str) -> str | None:
    if model_id.startswith("raise"):
        raise RuntimeError("boom in status")
    if model_id.startswith("null"):
        return None
    return "my own words" if model_id.startswith("custom") else default


@boom.delete
def boom_delete(model_id: str) -> dict[str, str]:
    if model_id.startswith("value"):
        return {"deleted": model_id}
    raise RuntimeError("boom in delete")


class Ser:
    """An object that tells its own JSON."""

    def serialize(self) -> dict[str, int]:
        return {"ser": 1}


@shapes.predict
def shapes_predict(features: dict[str, Any]) -> Any:
    shapes: dict[str, Any] = {
        "none": None,
        "empty_list": [],
        "empty_dict": {},
        "string": "text",
        "number": 1.5,
        "true": True,
        "tuple": (1, (2, 3)),
        "int_keys": {1: "a", 2: {"x": None}},
        "nan": [float("nan")],
        "inf": [float("inf")],
        "big_int": 123456789012345678901234567890,
        "unicode": ["男", "\U0001f600", "\u2028"],
        "datetime": datetime.datetime(2021, 8, 31, 2, 53, 38),
        "date": datetime.date(2021, 8, 31),
        "set": {1},
        "bytes": b"x",
        "object": Ser(),
        "nested": {"a": [{"b": [1, None, {"c": False}]}]},
        "bool_key": {True: 1},
        "none_key": {None: 1},
        "float_key": {1.5: 1},
        "tuple_key": {(1, 2): 1},
        "float": [0.1, 1e300, 1e-7, 100.0],
        "control": 'a\0b\n\t"\\/',
    }
    return shapes[features["shape"]]


@slow.train
def slow_train(parameters: dict[str, Any]) -> None:
    time.sleep(0.2 + min(5.0, float(parameters["seconds"])))


@slow.load
def slow_load(model_id: str, model_path: str | None) -> str:
    time.sleep(min(5.0, float(model_path or 0)))
    note("calls", ["slow.load", model_id])
    return "a model"


@slow.predict
def slow_predict(features: dict[str, Any]) -> Any:
    time.sleep(float(features["seconds"]))
    return [{"label": True, "score": 100}]


@custom_id.model_id
@custom_id_fails.model_id
def custom_model_id(extend: dict[str, Any]) -> Any:
    return extend["want_id"]


@custom_id.train
def custom_id_train(model_id: str) -> None:
    time.sleep(0.2)
    note("seen", [model_id, {"model_id": model_id}])


@custom_id_fails.train
def custom_id_fails_train() -> None:
    time.sleep(0.2)
    raise ValueError("boom in train")
