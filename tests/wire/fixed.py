"""What mlpkit answers where the original's answer is a defect (verdict `fix`), as section 8 of `PROTOCOL.md` says."""

from __future__ import annotations

from typing import Any


def _wrong_type(field: str, wanted: str) -> tuple[int, dict[str, Any]]:
    return 200, {"status": "arg_error", "message": f"expect [{field}] to be type [<class '{wanted}'>]"}


def _bad_id(shown: str) -> tuple[int, dict[str, Any]]:
    message = f"model_id of algorithm [custom_id] returned {shown}: it must be a string of 1 to 64 characters"
    return 200, {"status": "fail", "message": message, "trace": ""}


_NO_OBJECT = 400, {"status": "arg_error", "message": "the body must be a JSON object"}
_UNKNOWN = 200, {"status": "success", "data": {"status": "unknown"}}

FIXED: dict[str, tuple[int, dict[str, Any]]] = {
    "train-algorithm-object": _wrong_type("algorithm", "str"),
    "train-model_path-object": _wrong_type("model_path", "str"),
    "train-data-empty-string": _wrong_type("data", "dict"),
    "train-data-list-of-object": _wrong_type("data", "dict"),
    "train-data-list-of-list-of-pairs": _wrong_type("data", "dict"),
    "train-data-list-of-two-char-strings": _wrong_type("data", "dict"),
    "train-parameter-empty-string": _wrong_type("parameter", "dict"),
    "train-extend-empty-string": _wrong_type("extend", "dict"),
    "train-extend-list-of-object": _wrong_type("extend", "dict"),
    "train-extend-list-of-list-of-pairs": _wrong_type("extend", "dict"),
    "train-custom-id-int-status": _UNKNOWN,
    "train-custom-id-null": _bad_id("None"),
    "train-custom-id-object": _bad_id("{'a': 1}"),
    "train-custom-id-too-long": _bad_id(repr("x" * 65)),
    "status-empty-values": (200, {"status": "arg_error", "message": "algorithm [] not support"}),
    "predict-features-empty-string": _wrong_type("features", "dict"),
    "predict-features-list-of-object": _wrong_type("features", "dict"),
    "predict-features-list-of-list-of-pairs": _wrong_type("features", "dict"),
    "predict-feature-depth-5000": (400, {"status": "arg_error", "message": "the body is nested too deep"}),
    "predict-params-empty-string": _wrong_type("params", "dict"),
    "predict-query-string": _wrong_type("features", "dict"),
    "predict-user-raises-message-with-load-evicts": (
        200,
        {"status": "success", "data": {"predictions": [{"label": "fine", "score": 100}]}},
    ),
    "predict-system-exit": (200, {"status": "fail", "message": "predict fail SystemExit: 3", "trace": ""}),
    "predict-shape-nan": (200, {"status": "fail", "message": "predict fail <trace>", "trace": ""}),
    "predict-shape-none-key": (200, {"status": "fail", "message": "predict fail <trace>", "trace": ""}),
    "http-origin-on-get": _UNKNOWN,
    "http-origin-on-post": (200, {"status": "success"}),
    "http-json-list": _NO_OBJECT,
    "http-json-number": _NO_OBJECT,
    "http-json-false": _NO_OBJECT,
    "http-json-list-of-pairs": _NO_OBJECT,
    "common-uuid-object": _wrong_type("uuid", "str"),
    "common-uuid-list": _wrong_type("uuid", "str"),
}
"""HTTP status and body by case id; `<trace>` stands for any text."""

REFUSED: dict[str, tuple[int, dict[str, Any]]] = {
    "train-bare-accepted": (
        200,
        {"status": "arg_error", "message": "algorithm [bare] cannot be trained: its script has no @app.train"},
    ),
}
"""What the original accepts (verdict `keep`), although it can only fail, and mlpkit refuses immediately."""

ACCEPTED: dict[str, tuple[int, dict[str, Any]]] = {
    "predict-shape-set": (200, {"status": "success", "data": {"predictions": [1]}}),
}
"""What the original cannot write as JSON (verdict `keep`), and mlpkit can: answers are as wide as requests."""

NAMED: dict[str, tuple[int, dict[str, Any]]] = {
    "predict-user-raises-empty": (200, {"status": "fail", "message": "predict fail ValueError", "trace": ""}),
}
"""Failures that the original reports without a reason (verdict `keep`), and mlpkit by the exception's type."""

NEVER_STARTED = {"train-bare-status"}
"""The state of a job that the original accepts and mlpkit refuses: there is nothing to compare."""
