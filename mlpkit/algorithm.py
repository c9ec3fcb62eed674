"""Algorithm: a name, a kind, and the functions that an author's decorators record. Nothing is started or written here.

Decorators return the function unchanged. They never raise: what is wrong is kept, and `App.build` tells it all at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, overload

from mlpkit.errors import DeclarationError, did_you_mean
from mlpkit.injection import FIELDS, Plan, compile_plan
from mlpkit.options import LoadOptions, Options, PredictOptions, TrainOptions, read_options
from mlpkit.source import calling_place, where

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mlpkit.options import LoadKeywords, PredictKeywords, TrainKeywords

F = TypeVar("F", bound=Callable[..., Any])
Kind = Literal[
    "text_classification",
    "text_sequence_labeling",
    "text_cluster",
    "text_generation",
    "relation_extraction",
    "text_custom",
]
KINDS: tuple[str, ...] = get_args(Kind)
"""The kinds of algorithms of the platform; `text_custom` checks nothing."""

_LONGEST_NAME = 32


@dataclass
class Hook:
    """One decorated function of an algorithm; `plan` is compiled when the app is built."""

    name: str
    function: Callable[..., Any]
    options: Options | None = None
    _plan: Plan | None = None

    @property
    def plan(self) -> Plan:
        """The call plan.

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
        if plan.is_generator and self.name != "load":
            return [f"{where(self.function)}: only load and the factories of dependencies may yield, not {self.name}"]
        return []


class Algorithm:
    """One algorithm: a name, a kind, and the functions that its decorators recorded; `place` is where it was made."""

    def __init__(self, name: str, *, kind: str = "text_custom", examples: Sequence[Any] = ()) -> None:
        self.place = calling_place()
        self._mistakes = [f"{self.place}: {each}" for each in _mistakes_of_declaration(name, kind, examples)]
        self.name, self.kind, self.examples = name, kind, tuple(examples) if isinstance(examples, Sequence) else ()
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
        """The call plan of a hook, or None where the algorithm does not have it."""
        return self.hooks[hook].plan if hook in self.hooks else None

    @overload
    def train(self, function: F, /) -> F: ...
    @overload
    def train(self, /, **options: Unpack[TrainKeywords]) -> Callable[[F], F]: ...
    def train(self, function: F | None = None, /, **options: Any) -> F | Callable[[F], F]:
        """Records the function that trains a model, in a process of its own for every job.

        Args:
            function: the function; or options, and the function comes with the decoration.
            options: `cpus` sets the number of threads of numerical libraries, `gpus` how many devices the job sees.
                `memory` (bytes or "2GiB") and `timeout` (seconds) end the job when it exceeds them. `max_attempts` is
                how often in all a job is run that a crash of the service has cut off.
        """
        return self._record("train", function, TrainOptions, options)

    @overload
    def load(self, function: F, /) -> F: ...
    @overload
    def load(self, /, **options: Unpack[LoadKeywords]) -> Callable[[F], F]: ...
    def load(self, function: F | None = None, /, **options: Any) -> F | Callable[[F], F]:
        """Records the function that returns the model (a generator yields it, and is resumed when it is unloaded).

        Args:
            function: the function; or options, and the function comes with the decoration.
            options: `isolated`: every model gets a process of its own, which ends with it. `replicas`: in how many
                processes a model is loaded. `preload`: the ids of the models that are loaded when the service starts.
                `memory`: what a model needs (bytes or "2GiB"). `timeout`: the time limit in seconds.
        """
        return self._record("load", function, LoadOptions, options)

    @overload
    def predict(self, function: F, /) -> F: ...
    @overload
    def predict(self, /, **options: Unpack[PredictKeywords]) -> Callable[[F], F]: ...
    def predict(self, function: F | None = None, /, **options: Any) -> F | Callable[[F], F]:
        """Records the function that answers a prediction.

        Args:
            function: the function; or options, and the function comes with the decoration.
            options: `max_batch_size` of more than 1 makes `features`, `params` and `uuid` lists, and the answer a list
                of the same length; `max_wait_ms` is the longest that a batch waits for company. `threads`: how many
                predictions of one model run at a time in a process. `timeout` (seconds) ends a prediction together
                with its process.
        """
        return self._record("predict", function, PredictOptions, options)

    def unload(self, function: F) -> F:
        """Records what is called before a model is dropped; it is dropped all the same when this raises."""
        return self._add("unload", function)

    def delete(self, function: F) -> F:
        """Records what deletes a model, in place of removing its folder from the model bucket."""
        return self._add("delete", function)

    def status(self, function: F) -> F:
        """Records what answers a status request; gets mlpkit's own word as `default`."""
        return self._add("status", function)

    def model_id(self, function: F) -> F:
        """Records what makes the id of a new model: a string of 1 to 64 characters."""
        return self._add("model_id", function)

    def mistakes(self) -> list[str]:
        """Everything that is wrong with the declaration, a message each."""
        found = list(self._mistakes)
        for hook in self.hooks.values():
            found += hook.mistakes()
        if "predict" in self.hooks and "load" not in self.hooks:
            found.append(
                f"{where(self.hooks['predict'].function)}: algorithm {self.name!r} has a predict but no load: "
                "add a function with @app.load that returns the model (None is a model too)"
            )
        return found

    def _record(
        self, name: str, function: F | None, kind: type[Options], given: Mapping[str, object]
    ) -> F | Callable[[F], F]:
        def record(function: F) -> F:
            options, mistakes = read_options(kind, given)
            self._mistakes += [f"{where(function)}: @app.{name} has {each}" for each in mistakes]
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
            """Raises AttributeError; for a misspelt decorator with what exists (type checkers need not know)."""
            decorators = [each for each in FIELDS if hasattr(type(self), each)]
            hint = "" if name.startswith("_") else did_you_mean(name, decorators)
            text = f"{type(self).__name__} has no attribute {name!r}{hint}"
            raise AttributeError(text + f"\n  decorators: {', '.join(decorators)}" if hint else text)


def _problem_of(function: object) -> str:
    """Why this is nothing that a decorator can record, or an empty string."""
    name = getattr(function, "__qualname__", "")
    if not callable(function):
        return f"{function!r}, which is no function"
    if inspect.isclass(function):
        return f"class {name}: a plain function of the module is needed"
    if "<lambda>" in name:
        return "a lambda: a named function of the module is needed, so that logs and errors can name it"
    if "<locals>" in name:
        outer = name.partition(".<locals>")[0]
        return (
            f"{name.rpartition('.')[2]}, which is defined inside {outer}: move it to the top of the module, "
            "where it is for certain when worker processes import the script"
        )
    if inspect.isfunction(function) and "." in name:
        return f"{name}, a method: a plain function of the module is needed"
    return ""


def _mistakes_of_declaration(name: object, kind: object, examples: object) -> list[str]:
    found = []
    if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
        found.append(f"an algorithm's name is a string of 1 to {_LONGEST_NAME} printable characters, not {name!r}")
    if kind not in KINDS:
        found.append(
            f"algorithm {name!r} has no kind {kind!r}{did_you_mean(str(kind), KINDS)}\n  kinds: {', '.join(KINDS)}"
        )
    if isinstance(examples, (str, bytes, Mapping)) or not isinstance(examples, Sequence):
        found.append(f"examples of algorithm {name!r} is a list of features, not {examples!r}")
    return found
