"""How a call plan fills a handler's parameters: fields by name, services by type, dependencies by factory."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import attrs
import msgspec
import pydantic
import pydantic.dataclasses
import pytest

from mlpkit.errors import AnswerError, ArgumentError, DeclarationError, NotInRequest, UnsafePath, UserCodeError
from mlpkit.injection import (
    NULL,
    Depends,
    Plan,
    ProcessScope,
    async_user_code,
    compile_plan,
    service,
    split_batch,
    user_code,
    user_error,
)
from tests.servers import LONG


@service()
class Clock:
    """A service of every hook."""


@service("train")
class Ledger:
    """A service of train only."""


class SubClock(Clock):
    """A subclass of a service is none."""


def services(wanted: type) -> object:
    if wanted is Ledger:
        raise NotInRequest("the request has no ledger")
    return wanted()


def call(plan: Plan, scope: ProcessScope | None = None, **fields: object) -> Any:
    """Calls through the plan; str and None are taken as they are, all else as JSON."""
    raw = {
        name: value
        if value is None or isinstance(value, (str, msgspec.Raw))
        else msgspec.Raw(msgspec.json.encode(value))
        for name, value in fields.items()
    }
    return plan(raw, services, scope)


class HyperStruct(msgspec.Struct):
    c: float
    ngram: int = 3


@dataclass
class HyperDataclass:
    c: float
    ngram: int = 3


@attrs.define
class HyperAttrs:
    c: float
    ngram: int = 3


class HyperModel(pydantic.BaseModel):
    c: float = pydantic.Field(gt=0)
    ngram: int = 3


class HyperDict(TypedDict):
    c: float


@pytest.mark.parametrize("kind", [HyperStruct, HyperDataclass, HyperAttrs, HyperModel])
def test_a_field_is_decoded_into_the_annotated_class(kind: type[Any]) -> None:
    def train(parameters: Any) -> Any:
        return parameters

    train.__annotations__["parameters"] = kind
    plan = compile_plan(train, "train")

    assert call(plan, parameters={"c": 0.5, "unknown": 1}) == kind(c=0.5, ngram=3)
    with pytest.raises(ArgumentError, match=r"^\[parameter\] does not fit: .*\bc\b"):
        call(plan, parameters={"c": "much"})


def test_a_typed_dict_and_nested_models_are_decoded() -> None:
    def train(data: HyperDict, parameters: list[HyperModel]) -> Any:
        return data, parameters

    plan = compile_plan(train, "train")

    assert call(plan, data={"c": 1}, parameters=[{"c": 2}]) == ({"c": 1.0}, [HyperModel(c=2)])


def test_a_pydantic_mistake_is_one_line_without_the_input() -> None:
    def train(parameters: HyperModel) -> None: ...

    with pytest.raises(ArgumentError) as caught:
        call(compile_plan(train, "train"), parameters={"c": -1, "ngram": "secret"})

    assert "c: Input should be greater than 0; ngram: Input should be a valid integer" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pydantic.dataclasses.dataclass
class CheckedHyper:
    c: float = pydantic.Field(gt=0)
    name: str = pydantic.Field("x", max_length=3)

    @pydantic.field_validator("name")
    @classmethod
    def _upper(cls, name: str) -> str:
        return name.upper()


@pytest.mark.parametrize(
    ("annotation", "wrap"),
    [
        (CheckedHyper, lambda value: value),
        (CheckedHyper | None, lambda value: value),
        (list[CheckedHyper], lambda value: [value]),
        (dict[str, list[CheckedHyper]], lambda value: {"a": [value]}),
        (Annotated[CheckedHyper, "a note"], lambda value: value),
    ],
)
def test_a_pydantic_dataclass_is_checked_by_pydantic_wherever_it_is(annotation: Any, wrap: Any) -> None:
    def train(parameters: Any) -> Any:
        return parameters

    train.__annotations__["parameters"] = annotation
    plan = compile_plan(train, "train")

    assert call(plan, parameters=wrap({"c": 1, "name": "ab"})) == wrap(CheckedHyper(c=1, name="ab"))
    with pytest.raises(ArgumentError, match=r"^\[parameter\] does not fit: c: Input should be greater than 0; name: "):
        call(plan, parameters=wrap({"c": -5, "name": "too long"}))


def test_a_pydantic_dataclass_that_would_not_be_checked_is_refused_at_start_up() -> None:
    class Outer(msgspec.Struct):
        inner: list[CheckedHyper]

    def train(parameters: Any) -> None: ...

    train.__annotations__["parameters"] = Outer
    with pytest.raises(DeclarationError, match=r"pydantic would not check the dataclass 'CheckedHyper' inside"):
        compile_plan(train, "train")


def test_without_annotation_a_handler_gets_what_the_json_holds() -> None:
    def predict(features, params):  # type: ignore[no-untyped-def]
        return features, params

    assert call(compile_plan(predict, "predict"), features=[1, {"x": None}], params=NULL) == ([1, {"x": None}], None)


def test_the_old_names_of_fields_are_accepted() -> None:
    def train(data_config: dict[str, str], parameter: dict[str, int]) -> Any:
        return data_config, parameter

    assert call(compile_plan(train, "train"), data={"location": "x"}, parameters={"c": 1}) == (
        {"location": "x"},
        {"c": 1},
    )


def test_a_null_is_an_error_where_the_type_does_not_allow_it() -> None:
    def load(extend: dict[str, Any], uuid: str | None) -> Any:
        return uuid

    plan = compile_plan(load, "load")

    assert call(plan, extend={}, uuid=None) is None
    with pytest.raises(ArgumentError, match=r"\[extend\] does not fit: .*null"):
        call(plan, extend=NULL, uuid=None)


def test_a_default_stands_for_a_null_and_for_a_missing_field() -> None:
    def load(model_id: str, extend: int = 7) -> int:
        return extend

    plan = compile_plan(load, "load")

    assert [call(plan, model_id="m", extend=NULL), call(plan, model_id="m"), call(plan, model_id="m", extend=8)] == [
        7,
        7,
        8,
    ]


class Numbers(msgspec.Struct):
    c: float = 1.0
    trees: Annotated[int, msgspec.Meta(ge=1)] = 2
    flag: bool = False
    name: str = ""
    maybe: int | None = None
    either: int | str = 0
    sizes: list[int] = []
    inner: dict[str, float] = {}


class NumbersModel(pydantic.BaseModel):
    c: float = 1.0
    trees: int = 2
    flag: bool = False
    name: str = ""


@dataclass
class NumbersData:
    c: float = 1.0
    trees: int = 2
    flag: bool = False
    name: str = ""


@pytest.mark.parametrize("kind", [Numbers, NumbersModel, NumbersData])
@pytest.mark.parametrize(("hook", "field"), [("train", "parameters"), ("predict", "params")])
def test_numbers_and_bools_may_be_sent_as_text(kind: Any, hook: str, field: str) -> None:
    def handler(parameters: Any) -> Any:
        return parameters

    def handler_of_params(params: Any) -> Any:
        return params

    chosen = handler if field == "parameters" else handler_of_params
    chosen.__annotations__[field] = kind

    request: dict[str, Any] = {field: {"c": "2.5", "trees": "3", "flag": "true", "name": "7"}}
    found = call(compile_plan(chosen, hook), **request)

    assert (found.c, found.trees, found.flag, found.name) == (2.5, 3, True, "7")


def test_only_what_is_annotated_as_a_number_is_read_as_one() -> None:
    def train(parameters: Numbers) -> Any:
        return parameters

    plan = compile_plan(train, "train")
    texts = {"name": "true", "maybe": "5", "either": "5", "sizes": ["1", 2], "inner": {"a": "1e-3"}}

    found = call(plan, parameters=texts)

    assert found == Numbers(name="true", maybe=5, either="5", sizes=[1, 2], inner={"a": 0.001})
    assert call(plan, parameters={"c": "2", "name": "nan"}) == Numbers(c=2.0, name="nan")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"c": "much"}, r"Expected `float`, got `str` - at `\$.c`"),
        ({"c": "nan"}, r"Expected `float`, got `str` - at `\$.c`"),
        ({"c": "-Infinity", "trees": "3"}, r"Expected `float`, got `str` - at `\$.c`"),
        ({"trees": "0"}, r"Expected `int` >= 1 - at `\$.trees`"),
        ({"trees": "2.5"}, r"Expected `int`, got `str` - at `\$.trees`"),
        ({"flag": "yes"}, r"Expected `bool`, got `str` - at `\$.flag`"),
        ({"name": 5}, r"Expected `str`, got `int` - at `\$.name`"),
        ({"sizes": ["1", "x"]}, r"Expected `int`, got `str` - at `\$.sizes\[1\]`"),
    ],
)
def test_text_that_is_not_such_a_number_is_the_callers_error(value: object, problem: str) -> None:
    def train(parameters: Numbers) -> None: ...

    with pytest.raises(ArgumentError, match=rf"\[parameter\] does not fit: {problem}"):
        call(compile_plan(train, "train"), parameters=value)


def test_other_fields_take_numbers_only_as_numbers() -> None:
    def predict(features: Numbers) -> None: ...

    with pytest.raises(ArgumentError, match="Expected `float`, got `str`"):
        call(compile_plan(predict, "predict"), features={"c": "2"})


@pytest.mark.parametrize("kind", [Any, dict[str, str], HyperModel, CheckedHyper])
@pytest.mark.parametrize(
    "text", [b'{"c": "\\ud83d"}', b'{"c": "\\uDE00 x"}', b'{"c": "\xed\xa0\xbd"}', b'{"c": "\xff"}']
)
def test_text_that_is_not_unicode_is_the_callers_error(kind: Any, text: bytes) -> None:
    def predict(features: Any) -> None: ...

    predict.__annotations__["features"] = kind
    with pytest.raises(ArgumentError, match=r"half of a surrogate pair|is not valid UTF-8"):
        call(compile_plan(predict, "predict"), features=msgspec.Raw(text))


def test_json_that_is_nested_too_deeply_is_the_callers_error() -> None:
    def predict(features: Any) -> None: ...

    deep = msgspec.Raw(b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(ArgumentError, match="features"):
        call(compile_plan(predict, "predict"), features=deep)


def test_a_fault_in_the_users_type_is_the_users_error() -> None:
    class Broken(msgspec.Struct):
        x: int

        def __post_init__(self) -> None:
            raise KeyError("inside the type")

    def train(data: Any) -> None: ...

    train.__annotations__["data"] = Broken
    with pytest.raises(UserCodeError, match="inside the type"):
        call(compile_plan(train, "train"), data={"x": 1})


def test_the_model_is_handed_on_as_it_is() -> None:
    model = object()

    def predict(model: list[int]) -> Any:
        return model

    assert compile_plan(predict, "predict")({"model": model}, services) is model


def test_a_batch_handler_decodes_one_item_at_a_time() -> None:
    def predict(features: list[HyperStruct], uuid: list[str | None], model_id: str = "none") -> None: ...

    plan = compile_plan(predict, "predict", batch=True)

    assert plan.decode({"features": msgspec.Raw(b'{"c": 2}'), "uuid": None}) == {
        "features": HyperStruct(2.0),
        "uuid": None,
    }
    assert [each.batched for each in plan.fields] == [True, True, False]


def pick(params: dict[str, int]) -> None: ...


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("ab", "it must answer a list, not str"),
        ({"a": 1, "b": 2}, "it must answer a list, not dict"),
        (None, "it must answer a list, not NoneType"),
        ([1], "predict answered 1 items to a batch of 2"),
        (iter([1, 2, 3]), "predict answered 3 items to a batch of 2"),
    ],
)
def test_what_does_not_answer_each_item_of_a_batch_is_refused(answers: object, message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        split_batch(answers, 2)


def test_a_dependency_cannot_take_what_belongs_to_one_item_of_a_batch() -> None:
    def predict(features: list[int], x: Annotated[None, Depends(pick)]) -> None: ...

    with pytest.raises(DeclarationError, match="a dependency cannot take 'params'"):
        compile_plan(predict, "predict", batch=True)


def test_a_service_comes_by_its_annotation_whatever_the_name() -> None:
    def load(model_id: Clock, other: Annotated[Clock, "a note"]) -> Any:
        return model_id, other

    assert [type(each) for each in call(compile_plan(load, "load"))] == [Clock, Clock]


def test_a_service_that_the_request_lacks_is_none_where_none_is_allowed() -> None:
    def lenient(book: Ledger | None) -> Any:
        return book

    def strict(book: Ledger) -> None: ...

    assert call(compile_plan(lenient, "train")) is None
    with pytest.raises(NotInRequest, match="no ledger"):
        call(compile_plan(strict, "train"))


def test_a_service_that_the_request_asks_for_wrongly_is_not_taken_for_one_that_it_lacks() -> None:
    def lenient(book: Ledger | None) -> Any:
        return book

    def refusing(wanted: type) -> object:
        raise UnsafePath("'..' is not allowed")

    with pytest.raises(UnsafePath):
        compile_plan(lenient, "train")({}, refusing)


def test_a_subclass_of_a_service_is_no_service() -> None:
    def load(clock: SubClock) -> None: ...

    with pytest.raises(DeclarationError, match="no field 'clock'"):
        compile_plan(load, "load")


EVENTS: list[str] = []


def connect(model_id: str) -> Iterator[str]:
    EVENTS.append(f"connect {model_id}")
    yield "connection"
    EVENTS.append("disconnect")


def begin(connection: Annotated[str, Depends(connect)], clock: Clock) -> Iterator[str]:
    EVENTS.append("begin")
    yield f"transaction on {connection}"
    EVENTS.append("end")


def nested(one: Annotated[str, Depends(connect)], two: Annotated[str, Depends(begin)]) -> str:
    EVENTS.append("handler")
    return f"{one}, {two}"


def test_dependencies_are_made_once_a_call_and_closed_last_made_first() -> None:
    EVENTS.clear()

    assert call(compile_plan(nested, "load"), model_id="m1") == "connection, transaction on connection"
    assert EVENTS == ["connect m1", "begin", "handler", "end", "disconnect"]


def outer() -> Iterator[str]:
    try:
        yield "outer"
    except KeyError as error:
        EVENTS.append(f"outer saw {error}")
        raise
    finally:
        EVENTS.append("outer closed")


def inner(above: Annotated[str, Depends(outer)]) -> Iterator[str]:
    try:
        yield "inner"
        EVENTS.append("inner committed")
    finally:
        EVENTS.append("inner closed")


def broken_handler(x: Annotated[str, Depends(inner)]) -> None:
    raise KeyError("the handler")


def test_dependencies_see_the_exception_of_the_handler_and_are_closed() -> None:
    EVENTS.clear()

    with pytest.raises(UserCodeError, match="the handler") as caught:
        call(compile_plan(broken_handler, "load"))

    assert EVENTS == ["inner closed", "outer saw 'the handler'", "outer closed"]
    assert caught.value.kind == "KeyError"


def swallow() -> Iterator[None]:
    with contextlib.suppress(KeyError):
        yield


def swallowed(x: Annotated[None, Depends(swallow)]) -> None:
    raise KeyError("stands")


def test_a_dependency_cannot_swallow_the_error_of_the_handler() -> None:
    with pytest.raises(UserCodeError, match="stands"):
        call(compile_plan(swallowed, "load"))


def fail() -> None:
    raise RuntimeError("no connection")


def needs_failing(one: Annotated[str, Depends(outer)], two: Annotated[None, Depends(fail)]) -> None: ...


def test_when_a_factory_fails_the_others_are_closed() -> None:
    EVENTS.clear()

    with pytest.raises(UserCodeError, match="no connection"):
        call(compile_plan(needs_failing, "load"))

    assert EVENTS == ["outer closed"]


def leaky() -> Iterator[int]:
    yield 1
    raise OSError("cannot close")


def uses_leaky(x: Annotated[int, Depends(leaky)]) -> int:
    return x


def test_a_clean_up_that_fails_is_the_users_error() -> None:
    with pytest.raises(UserCodeError, match="cannot close"):
        call(compile_plan(uses_leaky, "load"))


class Pool:
    def __init__(self, clock: Clock) -> None:
        EVENTS.append("pool made")
        self.clock = clock


def pool(inside: Annotated[Pool, Depends(Pool, scope="process")]) -> Iterator[Pool]:
    EVENTS.append("pool opened")
    threading.Event().wait(0.05)  # long enough for another thread to come by
    yield inside
    EVENTS.append("pool closed")


def uses_pool(x: Annotated[Pool, Depends(pool, scope="process")]) -> Pool:
    return x


def test_a_process_wide_dependency_is_made_once_also_by_threads() -> None:
    EVENTS.clear()
    scope, plan = ProcessScope(services, {}), compile_plan(uses_pool, "predict")
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(call(plan, scope))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)

    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    assert EVENTS == ["pool made", "pool opened"]

    scope.close()
    assert EVENTS == ["pool made", "pool opened", "pool closed"]


def real() -> str:
    return "real"


def fake() -> str:
    return "fake"


def around_real(inside: Annotated[str, Depends(real)]) -> str:
    return f"fake around {inside}"


def uses_real(x: Annotated[str, Depends(real)], y: Annotated[str, Depends(real, scope="process")]) -> list[str]:
    return [x, y]


def test_an_override_stands_for_its_factory() -> None:
    plan = compile_plan(uses_real, "load")

    assert call(plan, ProcessScope(services, {})) == ["real", "real"]
    assert call(plan, ProcessScope(services, {real: fake})) == ["fake", "fake"]


def uses_real_once(x: Annotated[str, Depends(real)], y: Annotated[str, Depends(real)]) -> list[str]:
    return [x, y]


def test_an_override_may_depend_on_what_it_stands_for() -> None:
    scope = ProcessScope(services, {real: around_real})

    assert call(compile_plan(uses_real_once, "load"), scope) == ["fake around real"] * 2


def test_an_override_with_a_mistake_is_told() -> None:
    def shorter(model_id: str) -> str:
        return model_id

    scope = ProcessScope(services, {real: shorter})

    with pytest.raises(DeclarationError, match="once per process"):
        call(compile_plan(uses_real, "load"), scope, model_id="m")


def test_a_context_manager_is_a_generator() -> None:
    closed = []

    @contextlib.contextmanager
    def load(model_id: str) -> Iterator[str]:
        yield model_id
        closed.append(model_id)

    plan = compile_plan(load, "load")

    assert plan.is_generator
    assert not plan.is_async
    generator = plan.function(model_id="m")
    assert next(generator) == "m"
    assert next(generator, None) is None
    assert closed == ["m"]


def test_an_async_context_manager_is_an_async_generator() -> None:
    @contextlib.asynccontextmanager
    async def load(model_id: str) -> AsyncIterator[str]:
        yield model_id

    plan = compile_plan(load, "load")

    assert plan.is_generator
    assert plan.is_async


def test_a_factory_may_be_a_context_manager() -> None:
    notes = []

    @contextlib.contextmanager
    def opened() -> Iterator[str]:
        yield "open"
        notes.append("closed")

    def load(handle: Any) -> Any:
        return handle

    load.__annotations__["handle"] = Annotated[str, Depends(opened)]

    assert call(compile_plan(load, "load")) == "open"
    assert notes == ["closed"]


class AsyncObject:
    async def __call__(self, model_id: str) -> str:
        return f"{model_id}!"


def test_an_object_whose_call_is_async_is_an_async_handler() -> None:
    plan = compile_plan(AsyncObject(), "load")

    assert plan.is_async
    assert call(plan, model_id="m") == "m!"


def test_arguments_of_a_partial_are_not_fields() -> None:
    def load(folder: str, model_id: str, suffix: str = "") -> str:
        return folder + model_id + suffix

    assert call(compile_plan(functools.partial(load, "models/", suffix=".bin"), "load"), model_id="m") == "models/m.bin"


def test_an_async_handler_is_run_to_its_end() -> None:
    async def train(model_id: str) -> str:
        return model_id

    assert call(compile_plan(train, "train"), model_id="m1") == "m1"


def test_a_users_exception_keeps_its_text_and_its_first_own_frame() -> None:
    with pytest.raises(UserCodeError) as caught:
        user_code(fail)

    error = caught.value
    assert str(error) == "no connection"
    assert error.kind == "RuntimeError"
    assert error.trace.splitlines()[1].endswith("in fail")


@pytest.mark.parametrize("bad", [SystemExit(3), KeyboardInterrupt(), GeneratorExit("x")])
def test_what_is_no_exception_is_caught_and_named(bad: BaseException) -> None:
    def run() -> None:
        raise bad

    with pytest.raises(UserCodeError, match=type(bad).__name__):
        user_code(run)


def test_an_exception_without_a_text_that_can_be_sent_is_made_sendable() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert "Unspeakable" in str(user_error(Unspeakable()))
    msgspec.json.encode(str(user_error(ValueError("\ud800"))))


def test_a_cancellation_goes_through_an_async_handler() -> None:
    import asyncio

    async def main() -> bool:
        task = asyncio.get_running_loop().create_task(async_user_code(asyncio.sleep, 60))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        return task.cancelled()

    assert asyncio.run(main())
