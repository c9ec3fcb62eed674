"""Algorithm: a name, a kind, and the functions that decorators record.

Nothing is started or written here.

Decorators return the function unchanged. They never raise: mistakes are kept, and `App.build` reports all of them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, get_args, get_origin, overload

from mlpkit.errors import DeclarationError, did_you_mean
from mlpkit.formats import kind_names, kind_of
from mlpkit.injection import (
    FIELDS,
    OBJECTS,
    FieldParameter,
    Plan,
    calling_place,
    compile_plan,
    fits_request,
    is_importing,
    where,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

F = TypeVar("F", bound=Callable[..., Any])
O = TypeVar("O", bound="TrainOptions | LoadOptions | PredictOptions")  # noqa: E741 - a type variable
_LONGEST_NAME = 32
_LEAST_SHARE = 0.01
"""The smallest share of a GPU."""


def _option(default: Any, read: Callable[[Any], object]) -> Any:
    return field(default=default, metadata={"read": read})


def _whole(least: int) -> Callable[[Any], object]:
    def read(value: Any) -> object:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"a whole number of at least {least}")
        return value

    return read


def _gpus(value: Any) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError("a number of GPUs, or a share of one such as 0.5")
    if (value > 1 and value != int(value)) or 0 < value < _LEAST_SHARE:
        raise ValueError(f"a whole number of GPUs, or a share of one from {_LEAST_SHARE} to 1")
    return value


def _number(fits: Callable[[float], bool], words: str) -> Callable[[Any], object]:
    def read(value: Any) -> object:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits(value):
            raise ValueError(words)
        return value

    return read


_seconds = _number(lambda value: 0 < value < math.inf, "a number of seconds above 0")
_milliseconds = _number(lambda value: 0 <= value < math.inf, "a number of at least 0")
_share = _number(lambda value: 0 < value < 1, "a share above 0 and below 1, such as 0.1")
_figure = _number(lambda value: 0 < value <= 1, "a number above 0 and at most 1, such as 0.8")


def _memory(value: Any) -> object:
    from mlpkit.settings import size  # only if the option is used: `from mlpkit import App` need not load all settings

    amount = size(value) if isinstance(value, str) else value
    if isinstance(amount, bool) or not isinstance(amount, int) or amount < 1:
        raise ValueError('a number of bytes, or a size such as "512MiB" or "2GiB"')
    return amount


def _flag(value: Any) -> object:
    if not isinstance(value, bool):
        raise ValueError("True or False")
    return value


def _placement(value: Any) -> object:
    if value not in ("local", "cluster"):
        raise ValueError('"local" or "cluster"')
    return value


def _ids(value: Any) -> object:
    if isinstance(value, str):
        raise ValueError(f"a list of model ids: [{value!r}]")
    if not isinstance(value, (list, tuple)) or not all(isinstance(model_id, str) and model_id for model_id in value):
        raise ValueError("a list of model ids")
    return tuple(value)


@dataclass(frozen=True)
class TrainOptions:
    """What a training job may use.

    `memory` is in bytes, `timeout` in seconds; None means no limit. `keep_checkpoint`: the checkpoint of a completed
    job stays with the model. `test` is the share of the rows that the model is tested with, `min_f1` the F1 that it
    must reach then.
    """

    cpus: int | None = _option(None, _whole(1))
    gpus: float = _option(0, _gpus)
    memory: int | None = _option(None, _memory)
    timeout: float | None = _option(None, _seconds)
    max_attempts: int = _option(1, _whole(1))
    keep_checkpoint: bool = _option(False, _flag)
    test: float | None = _option(None, _share)
    test_seed: int = _option(0, _whole(0))
    min_f1: float | None = _option(None, _figure)


@dataclass(frozen=True)
class LoadOptions:
    """Where models live.

    `isolated`: each alone in a process. `replicas`: in how many workers. `preload`: which from the start.
    `memory` is what one copy needs, in bytes; None means what it needed when it was last loaded. `warm_up`: predict the
    examples before the model counts as loaded. `lazy`: a prediction for a stored model loads it. `gpus`: how many
    devices each copy sees, or which share of one it has. `placement`: on the machine of the service, or on the nodes of
    a Ray cluster. A model with GPUs or on a cluster is isolated.
    """

    isolated: bool = _option(False, _flag)
    replicas: int = _option(1, _whole(1))
    preload: tuple[str, ...] = _option((), _ids)
    memory: int | None = _option(None, _memory)
    timeout: float | None = _option(None, _seconds)
    warm_up: bool = _option(True, _flag)
    lazy: bool = _option(False, _flag)
    gpus: float = _option(0, _gpus)
    placement: Literal["local", "cluster"] = _option("local", _placement)

    def __post_init__(self) -> None:
        """Isolates models with GPUs: a process keeps its devices for life."""
        if self.gpus or self.placement == "cluster":
            object.__setattr__(self, "isolated", True)


@dataclass(frozen=True)
class PredictOptions:
    """How predictions run.

    `max_wait_ms` is how long a batch waits for further requests. `timeout` is in seconds.
    """

    max_batch_size: int = _option(1, _whole(1))
    max_wait_ms: float = _option(0.5, _milliseconds)
    threads: int = _option(1, _whole(1))
    timeout: float | None = _option(None, _seconds)


Options = TrainOptions | LoadOptions | PredictOptions


class _TrainKeywords(TypedDict, total=False):
    """What `@app.train(...)` takes."""

    cpus: int | None
    gpus: float
    memory: int | str | None
    timeout: float | None
    max_attempts: int
    keep_checkpoint: bool
    test: float | None
    test_seed: int
    min_f1: float | None


class _LoadKeywords(TypedDict, total=False):
    """What `@app.load(...)` takes."""

    isolated: bool
    replicas: int
    preload: list[str] | tuple[str, ...]
    memory: int | str | None
    timeout: float | None
    warm_up: bool
    lazy: bool
    gpus: float
    placement: Literal["local", "cluster"]


class _PredictKeywords(TypedDict, total=False):
    """What `@app.predict(...)` takes."""

    max_batch_size: int
    max_wait_ms: float
    threads: int
    timeout: float | None


def _read_options(kind: type[O], given: Mapping[str, object]) -> tuple[O, list[str]]:
    """The options that an author gave, and what is wrong with them.

    A wrong option has its default.
    """
    known = {option.name: option for option in fields(kind)}
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for name, value in given.items():
        if name not in known:
            mistakes.append(f"no option {name!r}{did_you_mean(name, known)}\n  options: {', '.join(known)}")
            continue
        try:
            values[name] = value if value is known[name].default else known[name].metadata["read"](value)
        except ValueError as error:
            mistakes.append(f"{name}={value!r}: it must be {error}")
    return kind(**values), mistakes


@dataclass
class Hook:
    """One decorated function of an algorithm."""

    name: str
    function: Callable[..., Any]
    options: Options | None = None
    _plan: Plan | None = None

    @property
    def plan(self) -> Plan:
        """The call plan; it is compiled when the app is built.

        Raises:
            DeclarationError: the signature cannot be filled.
        """
        if self._plan is None:
            batch = isinstance(self.options, PredictOptions) and self.options.max_batch_size > 1
            self._plan = compile_plan(self.function, self.name, batch=batch)
        return self._plan

    def mistakes(self) -> list[str]:
        """What is wrong with the function."""
        try:
            plan = self.plan
        except DeclarationError as error:
            return [str(error)]
        if plan.is_generator and plan.batch:
            return [f"{where(self.function)}: a predict that yields cannot have batches: leave out max_batch_size"]
        if plan.is_generator and self.name not in ("load", "predict"):
            return [
                f"{where(self.function)}: only load, predict and factories of dependencies may yield, not {self.name}"
            ]
        if plan.is_async and self.name in ("features", "evaluate"):
            return [f"{where(self.function)}: {self.name} must be a plain function, not async"]
        return [self._misfit(parameter) for parameter in plan.all_fields() if not _fits(parameter)]

    def _misfit(self, parameter: FieldParameter) -> str:
        """What is wrong with the type of a field."""
        field = parameter.name
        given = getattr(parameter.type, "__name__", str(parameter.type))
        if parameter.field not in OBJECTS:
            return f"{where(self.function)}: {field!r} is a text in every request, which cannot become {given}"
        item = next(iter(get_args(parameter.type)), dict)
        if parameter.type is list or get_origin(parameter.type) in (list, Sequence):
            batches = "" if parameter.batched else f"For batches write @app.{self.name}(max_batch_size=32). "
            return (
                f"{where(self.function)}: {field!r} is one object in every request, not a list. {batches}"
                f"For one request at a time annotate {getattr(item, '__name__', item)}"
            )
        return (
            f"{where(self.function)}: {field!r} is a JSON object in every request, which cannot become {given}: "
            "annotate dict, or a msgspec.Struct, dataclass, TypedDict, attrs class or pydantic model"
        )


def _fits(parameter: FieldParameter) -> bool:
    if parameter.decode is None:
        return True
    return fits_request(parameter.type, "object" if parameter.field in OBJECTS else "text")


class Algorithm:
    """One algorithm: a name, a kind, and the functions of its decorators.

    `place` is the line of the script that made it.
    """

    def __init__(self, name: str, *, kind: str = "text_custom", examples: Sequence[Any] = ()) -> None:
        self.place = calling_place()
        self._mistakes = [f"{self.place}: {mistake}" for mistake in _mistakes_of_declaration(name, kind, examples)]
        self.name = name
        self.kind = kind
        self.examples = tuple(examples) if isinstance(examples, Sequence) else ()
        self.hooks: dict[str, Hook] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def train_options(self) -> TrainOptions:
        """The options of `@app.train`, or the defaults."""
        options = self.hooks["train"].options if "train" in self.hooks else None
        return options if isinstance(options, TrainOptions) else TrainOptions()

    @property
    def load_options(self) -> LoadOptions:
        """The options of `@app.load`, or the defaults."""
        options = self.hooks["load"].options if "load" in self.hooks else None
        return options if isinstance(options, LoadOptions) else LoadOptions()

    @property
    def predict_options(self) -> PredictOptions:
        """The options of `@app.predict`, or the defaults."""
        options = self.hooks["predict"].options if "predict" in self.hooks else None
        return options if isinstance(options, PredictOptions) else PredictOptions()

    def plan(self, hook: str) -> Plan | None:
        """The call plan of a hook; None if it is not defined."""
        return self.hooks[hook].plan if hook in self.hooks else None

    @overload
    def train(self, function: F, /) -> F: ...
    @overload
    def train(self, /, **options: Unpack[_TrainKeywords]) -> Callable[[F], F]: ...
    def train(self, function: F | None = None, /, **options: Any) -> F | Callable[[F], F]:
        """Records the function that trains a model.

        Every job runs in a process of its own.

        Args:
            function: the function; or options, and the function comes with the decoration.
            options: `cpus` sets the number of threads of numerical libraries, `gpus` how many devices of `MLPKIT_GPUS`
                the job sees; 0.5 lets two processes share one.
                `memory` (bytes or "2GiB") and `timeout` (seconds) end the job when it exceeds them. `max_attempts` is
                how many times a job is run in all if crashes of the service interrupt it, or, if it takes a
                `Checkpoint`, if its process is killed. `keep_checkpoint=True` keeps the checkpoint of a completed job,
                so that `extend.resume_from` can continue it. `test` (0.1) is the share of the rows that `data.rows()`
                leaves out and that the model is tested with; another `test_seed` chooses others. A job whose model has
                a lower F1 than `min_f1` (0.8) is an error.
        """
        return self._record("train", function, TrainOptions, options)

    @overload
    def load(self, function: F, /) -> F: ...
    @overload
    def load(self, /, **options: Unpack[_LoadKeywords]) -> Callable[[F], F]: ...
    def load(self, function: F | None = None, /, **options: Any) -> F | Callable[[F], F]:
        """Records the function that returns the model.

        A generator, or a `@contextmanager`, yields the model and is resumed when it is unloaded.

        Args:
            function: the function; or options, and the function comes with the decoration.
            options: `isolated`: every model gets a process of its own, which ends with it. `replicas`: in how many
                processes a model is loaded. `preload`: the ids of the models that are loaded when the service starts.
                `memory`: what a model needs (bytes or "2GiB"). `timeout`: the time limit in seconds. `warm_up=False`:
                do not predict the examples of the algorithm before the model counts as loaded. `lazy=True`: a
                prediction for a stored model that is not loaded loads it. `gpus`: how many devices of `MLPKIT_GPUS`
                each process of the model sees, or a share such as 0.5; such a model is isolated.
                `placement="cluster"`: its processes are on the nodes of a Ray cluster, which have the `gpus` and the
                `memory`; for services that run with `--engine ray`.
        """
        return self._record("load", function, LoadOptions, options)

    @overload
    def predict(self, function: F, /) -> F: ...
    @overload
    def predict(self, /, **options: Unpack[_PredictKeywords]) -> Callable[[F], F]: ...
    def predict(self, function: F | None = None, /, **options: Any) -> F | Callable[[F], F]:
        """Records the function that answers a prediction.

        Args:
            function: the function; or options, and the function comes with the decoration.
            options: `max_batch_size` of more than 1 makes `features`, `params` and `uuid` lists, and the answer a list
                of the same length; `max_wait_ms` is how long a batch waits for further requests. `threads`: how many
                predictions of one model run at a time in a process. `timeout` (seconds) ends a prediction together
                with its process.
        """
        return self._record("predict", function, PredictOptions, options)

    def unload(self, function: F) -> F:
        """Records what is called before a model is dropped."""
        return self._add("unload", function)

    def delete(self, function: F) -> F:
        """Records what deletes a model, instead of removing its folder."""
        return self._add("delete", function)

    def status(self, function: F) -> F:
        """Records what answers a status request; gets mlpkit's answer as `default`."""
        return self._add("status", function)

    def model_id(self, function: F) -> F:
        """Records what makes the id of a new model.

        An id has 1 to 64 characters.
        """
        return self._add("model_id", function)

    def features(self, function: F) -> F:
        """Records what makes the `features` of a test `row`.

        Without it they are those of the kind: `{"sentence": row.sentence}`.
        """
        return self._add("features", function)

    def evaluate(self, function: F) -> F:
        """Records what measures a model; returns names and numbers.

        It gets `pairs`, an iterator of test rows and the answers of `predict`. The answer is None if there is none.
        """
        return self._add("evaluate", function)

    def mistakes(self) -> list[str]:
        """All mistakes of the declaration, one message for each."""
        found = list(self._mistakes)
        for hook in self.hooks.values():
            found += hook.mistakes()
        if not found:
            found += self._nothing_to_load() + self._nothing_to_evaluate()
        if "predict" in self.hooks and "load" not in self.hooks:
            found.append(
                f"{where(self.hooks['predict'].function)}: algorithm {self.name!r} has a predict but no load: "
                "add a function with @app.load that returns the model (None is a model too)"
            )
        return found

    def _nothing_to_load(self) -> list[str]:
        """A mistake if `load` needs a model's folder that `train` never makes."""
        train = self.plan("train")
        load = self.plan("load")
        if train is None or load is None:
            return []
        stores = any(service.type.__name__ in ("ModelDir", "Storage") for service in train.all_services())
        needs = any(service.type.__name__ == "ModelDir" and not service.optional for service in load.all_services())
        if stores or not needs:
            return []
        return [
            f"{where(load.function)}: load asks for ModelDir, but {where(train.function)} stores no model: add a "
            "parameter such as `out: ModelDir` to train and write the model into it"
        ]

    def _nothing_to_evaluate(self) -> list[str]:
        """Mistakes if `test` or `min_f1` ask for an impossible evaluation."""
        options = self.train_options
        if options.test is None and options.min_f1 is None:
            return []
        asked = f"test={options.test}" if options.test is not None else f"min_f1={options.min_f1}"
        place = f"{where(self.hooks['train'].function)}: @app.train({asked})"
        missing = [name for name in ("load", "predict") if name not in self.hooks]
        if missing:
            return [f"{place} evaluates the model: add a function with @app.{missing[0]}"]
        services = {service.type.__name__ for service in self.hooks["train"].plan.all_services()}
        if "ModelDir" not in services:
            return [f"{place} evaluates the files that train writes: add a parameter such as `out: ModelDir` to train"]
        if options.test is not None and "TrainData" not in services:
            return [f"{place} leaves out rows of `data.rows()`: add a parameter such as `data: TrainData` to train"]
        if options.min_f1 is not None and not self.has_f1:
            return [f"{place}: kind {self.kind!r} has no F1: add a function with @app.evaluate that returns 'f1'"]
        if not self.is_measured:
            return [f"{place}: kind {self.kind!r} does not say which answers are right: add @app.evaluate"]
        return []

    @property
    def is_measured(self) -> bool:
        """Whether answers can be compared with test rows."""
        return "evaluate" in self.hooks or kind_of(self.kind).measure is not None

    @property
    def has_f1(self) -> bool:
        """Whether an evaluation has an F1."""
        measure = kind_of(self.kind).measure
        return "evaluate" in self.hooks or (measure is not None and "f1" in measure().figures())

    def _record(
        self, name: str, function: F | None, kind: type[Options], given: Mapping[str, object]
    ) -> F | Callable[[F], F]:
        def record(function: F) -> F:
            options, mistakes = _read_options(kind, given)
            self._mistakes += [f"{where(function)}: @app.{name} has {mistake}" for mistake in mistakes]
            return self._add(name, function, options)

        if callable(function):
            return record(function)
        if function is not None:
            self._mistakes.append(f"{calling_place()}: @app.{name} takes its options by name, not {function!r}")
        return record

    def _add(self, name: str, function: F, options: Options | None = None) -> F:
        if self._refuses(name, function):
            return function
        if name in self.hooks and self.hooks[name].function is not function:
            self._mistakes.append(
                f"{where(function)}: algorithm {self.name!r} has its {name} already: {where(self.hooks[name].function)}"
            )
        else:
            self.hooks[name] = Hook(name, function, options)
        return function

    def _refuses(self, name: str, function: object) -> bool:
        problem = _problem_of(function)
        if problem:
            self._mistakes.append(f"{calling_place()}: @app.{name} decorates {problem}")
        return bool(problem)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Raises AttributeError, which names the decorators that exist."""
            decorators = [hook for hook in FIELDS if hasattr(type(self), hook)]
            hint = "" if name.startswith("_") else did_you_mean(name, decorators)
            text = f"{type(self).__name__} has no attribute {name!r}{hint}"
            raise AttributeError(text + f"\n  decorators: {', '.join(decorators)}" if hint else text)


def _problem_of(function: object) -> str:
    """Why a decorator cannot record this, or an empty string."""
    name = getattr(function, "__qualname__", "")
    if not callable(function):
        return f"{function!r}, which is not a function"
    if inspect.isclass(function):
        return f"class {name}: a plain function of the module is needed"
    if "<lambda>" in name:
        return "a lambda: a named function of the module is needed, so that logs and errors can name it"
    outer, _, own_name = name.rpartition(".<locals>.")
    if outer and not is_importing(getattr(function, "__module__", "")):
        return (
            f"{own_name}, which {outer} defines after the module was imported: call {outer} at the top of the module, "
            "because worker processes only import the script"
        )
    if inspect.isfunction(function) and "." in own_name:
        return f"{name}, a method: a plain function of the module is needed"
    return ""


def _mistakes_of_declaration(name: object, kind: object, examples: object) -> list[str]:
    found = []
    if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
        found.append(f"an algorithm's name is a string of 1 to {_LONGEST_NAME} printable characters, not {name!r}")
    kinds = kind_names()
    if kind not in kinds:
        found.append(
            f"algorithm {name!r} has no kind {kind!r}{did_you_mean(str(kind), kinds)}\n  kinds: {', '.join(kinds)}"
        )
    if isinstance(examples, (str, bytes, Mapping)) or not isinstance(examples, Sequence):
        found.append(f"examples of algorithm {name!r} is a list of features, not {examples!r}")
    return found
