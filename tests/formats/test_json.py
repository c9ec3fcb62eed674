"""JSON of any answer: the rules of the platform's protocol, section 1.4 (predict)."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from array import array
from collections import ChainMap, UserDict, deque, namedtuple
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpkit.formats import Entity, Info, Label, plain, to_json
from tests.servers import LONG

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner), max_leaves=20
)


class Serializable:
    def serialize(self) -> dict[str, Any]:
        return {"ser": (1, Serialized())}


class Serialized:
    def serialize(self) -> str:
        return "inner"


@dataclasses.dataclass
class Point:
    x: int
    when: date


class Tagged(msgspec.Struct, tag="t", rename="camel", omit_defaults=True):
    some_score: float
    some_list: list[int] = []
    some_text: str | None = None
    unset: int | msgspec.UnsetType = msgspec.UNSET


class Colour(str, Enum):
    RED = "red"


class Shape(Enum):
    ROUND = "round"


class Size(IntEnum):
    LARGE = 3


Pair = namedtuple("Pair", "left right")


def read(answer: object) -> Any:
    return json.loads(to_json(answer))


@given(_VALUES)
def test_plain_values_come_back_as_json_dumps_would_write_them(value: Any) -> None:
    assert read(value) == json.loads(json.dumps(value))


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, None),
        ((1, (2, 3)), [1, [2, 3]]),
        ({1: "a", 2: {"x": None}}, {"1": "a", "2": {"x": None}}),
        ({True: 1}, {"true": 1}),
        ({1.5: 1}, {"1.5": 1}),
        (123456789012345678901234567890, 123456789012345678901234567890),
        (["男", "😀", "\u2028"], ["男", "😀", "\u2028"]),
        ('a\0b\n\t"\\/', 'a\0b\n\t"\\/'),
        ({"label": "\ud800x"}, {"label": "\ud800x"}),
        ([0.1, 1e300, 1e-7, 100.0], [0.1, 1e300, 1e-7, 100.0]),
        (datetime(2021, 8, 31, 2, 53, 38), "2021-08-31 02:53:38"),
        (datetime(2021, 8, 31, 2, 53, 38, 999), "2021-08-31 02:53:38"),
        (datetime(2021, 8, 31, 2, 53, 38, tzinfo=timezone(timedelta(hours=8))), "2021-08-31 02:53:38+08:00"),
        (date(2021, 8, 31), "2021-08-31"),
        (Serializable(), {"ser": [1, "inner"]}),
        (Point(1, date(2021, 8, 31)), {"x": 1, "when": "2021-08-31"}),
        (Tagged(1.0), {"type": "t", "someScore": 1.0}),
        (Tagged(1.0, [1], "x", 2), {"type": "t", "someScore": 1.0, "someList": [1], "someText": "x", "unset": 2}),
        ([Colour.RED, Size.LARGE], ["red", 3]),
        (Pair(1, date(2021, 8, 31)), [1, "2021-08-31"]),
        (Label("a", 1.5), {"label": "a", "score": 1.5}),
        (Label("a", 1.5, [Info("k", (1,))]), {"label": "a", "score": 1.5, "other_info": [{"key": "k", "value": [1]}]}),
    ],
)
def test_an_answer_is_written_as_the_protocol_says(value: Any, written: Any) -> None:
    assert read([value]) == [written]
    assert read(value) == written


@pytest.mark.parametrize(
    "wrong",
    [b"x", bytearray(b"x"), memoryview(b"x"), object(), 1j, int, iter(()), Fraction(1, 2), ValueError("x"), ...],
)
def test_what_json_does_not_have_is_refused_with_the_words_of_json_dumps_and_its_path(wrong: Any) -> None:
    for answer, path in (
        (wrong, ""),
        ([wrong], "predictions[0]: "),
        ({"a": (1, wrong)}, "predictions.a[1]: "),
        (Label("x", 1.0, [Info("k", wrong)]), "predictions.other_info[0].value: "),
    ):
        with pytest.raises(TypeError) as raised:
            to_json(answer)
        assert str(raised.value) == f"{path}Object of type {type(wrong).__name__} is not JSON serializable"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (Shape.ROUND, "round"),
        (Size.LARGE, 3),
        (Colour.RED, "red"),
        (Decimal("1.50"), 1.5),
        (Decimal("99"), 99),
        (Decimal("1E+2"), 100.0),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (time(1, 2), "01:02:00"),
        (timedelta(seconds=5), "PT5S"),
        (PurePosixPath("/a/b"), "/a/b"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset(("b", "a")), ["a", "b"]),
        ({Shape.ROUND}, ["round"]),
        (deque([1, (2,)]), [1, [2]]),
        (range(3), [0, 1, 2]),
        ({"a": 1}.keys(), ["a"]),
        ({"a": 1}.values(), [1]),
        (MappingProxyType({"a": {1}}), {"a": [1]}),
        (ChainMap({"a": 1}), {"a": 1}),
        (UserDict(a=1), {"a": 1}),
        ({Shape.ROUND: 1, UUID(int=1): 2}, {"round": 1, "00000000-0000-0000-0000-000000000001": 2}),
        ({date(2021, 8, 31): 1}, {"2021-08-31": 1}),
        (array("d", [1.5]), [1.5]),
    ],
)
def test_an_answer_may_have_the_types_that_a_request_may_have(value: Any, written: Any) -> None:
    assert read(value) == written
    assert read([{"x": value}]) == [{"x": written}]


def test_what_a_request_of_such_a_type_holds_comes_back_in_an_answer() -> None:
    class Everything(msgspec.Struct):
        shape: Shape
        amount: Decimal
        id: UUID
        at: time
        took: timedelta
        day: date
        tags: set[str]

    sent = {
        "shape": "round",
        "amount": 1.5,
        "id": "00000000-0000-0000-0000-000000000001",
        "at": "01:02:03",
        "took": "PT5S",
        "day": "2021-08-31",
        "tags": ["a", "b"],
    }
    assert read(msgspec.convert(sent, Everything)) == sent


@pytest.mark.parametrize("wrong", [Decimal("NaN"), Decimal("Infinity")])
def test_a_decimal_that_is_not_a_number_is_refused_with_its_path(wrong: Decimal) -> None:
    with pytest.raises(ValueError, match=r"^predictions\[0\]\.score: (NaN|Infinity) is not a number in JSON$"):
        to_json([{"score": wrong}])


def test_long_doubles_become_numbers_and_long_complex_numbers_are_refused() -> None:
    numpy = pytest.importorskip("numpy")
    assert read([numpy.longdouble(0.5), numpy.array([0.5], dtype="longdouble")]) == [0.5, [0.5]]
    with pytest.raises(TypeError, match=r"^predictions\[0\]: Object of type \w+ is not JSON serializable$"):
        to_json([numpy.clongdouble(1j)])


def test_numpys_dates_and_times_are_written_as_pythons() -> None:
    numpy = pytest.importorskip("numpy")
    assert read(numpy.datetime64("2021-08-31")) == "2021-08-31"
    assert read(numpy.datetime64("2021-08-31T02:53:38", "ns")) == "2021-08-31 02:53:38"
    assert read(numpy.array(["2021-08-31", "2021-09-01"], dtype="datetime64[D]")) == ["2021-08-31", "2021-09-01"]
    assert read(numpy.timedelta64(5, "s")) == "PT5S"
    assert read({numpy.datetime64("2021-08-31"): 1}) == {"2021-08-31": 1}


@pytest.mark.parametrize("unit", ["D", "ns"])
def test_a_missing_time_is_an_error_with_its_path_and_never_text(unit: str) -> None:
    numpy = pytest.importorskip("numpy")
    for missing in (numpy.datetime64("NaT", unit), numpy.array(["2021-08-31", "NaT"], dtype=f"datetime64[{unit}]")):
        with pytest.raises(ValueError, match=r"^predictions\[0\]\.at: NaT is not a time in JSON$"):
            to_json([{"at": missing}])


def test_a_datetime_that_does_not_equal_itself_is_missing_as_pandas_has_it() -> None:
    class NaT(datetime):
        def __ne__(self, other: object) -> bool:
            return True

    with pytest.raises(ValueError, match=r"^predictions\[0\]\.at: NaT is not a time in JSON$"):
        to_json([{"at": NaT(2021, 8, 31)}])


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_with_their_path(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"^predictions\[1\]\.score: (nan|-?inf) is not a number in JSON$"):
        to_json([{"score": 1}, {"score": wrong}])
    with pytest.raises(ValueError, match=r"^predictions\[1\]\.score: "):
        to_json([Label("a", 1.0), Label("b", wrong)])
    with pytest.raises(ValueError, match=r"^predictions\[20\]: "):
        to_json([1.0] * 20 + [wrong])


@pytest.mark.parametrize("key", [None, (1, 2), math.nan, b"x"])
def test_a_key_that_is_no_text_is_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="cannot be a key of a JSON object"):
        to_json({key: 1})


def test_two_keys_that_become_one_are_refused_because_a_value_would_be_lost() -> None:
    with pytest.raises(ValueError, match="two keys become '1'"):
        to_json({1: "a", "1": "b"})


def test_a_value_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested too deeply, or contains itself"):
        to_json(endless)


def test_numpy_scalars_and_arrays_become_numbers_and_lists() -> None:
    numpy = pytest.importorskip("numpy")
    answer = [{"label": numpy.str_("a"), "score": numpy.float32(99.5), "ids": numpy.arange(3), "ok": numpy.bool_(True)}]
    assert read(answer) == [{"label": "a", "score": 99.5, "ids": [0, 1, 2], "ok": True}]
    assert read(numpy.eye(2)) == [[1.0, 0.0], [0.0, 1.0]]
    assert read({numpy.int64(7): numpy.float64(0.5)}) == {"7": 0.5}
    assert read([Label("a", numpy.float32(50))]) == [{"label": "a", "score": 50.0}]
    with pytest.raises(ValueError, match=r"^predictions\[0\]\[1\]: nan"):
        to_json([numpy.array([1.0, numpy.nan])])
    assert read(numpy.datetime64("2021-08-31", "ns")) == "2021-08-31 00:00:00"


def test_anything_with_tolist_is_an_array_so_torch_tensors_are() -> None:
    class Tensor:
        def tolist(self) -> list[float]:
            return [0.5, 1.5]

    assert read({"scores": Tensor()}) == {"scores": [0.5, 1.5]}


def test_importing_formats_imports_neither_numpy_nor_torch() -> None:
    code = "import sys, mlpkit.formats as f; f.to_json({1: (2,)}); print({'numpy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG, check=True)
    assert done.stdout.strip() == "set()"


def test_pydantic_models_become_objects() -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", when=(date, ...), score=(float, ...))
    assert read(model(when=date(2021, 8, 31), score=1)) == {"when": "2021-08-31", "score": 1.0}


def test_plain_leaves_nothing_but_dicts_lists_and_atoms() -> None:
    assert plain((Entity("特朗普", 0, 3, "PER"),)) == [
        {"name": "特朗普", "start_pos": 0, "end_pos": 2, "label": "PER", "score": 100.0}
    ]
