"""App and Algorithm: what an author declares. Nothing here starts, connects or writes anything.

Decorators record the function and return it unchanged. `App.build` checks the whole declaration and compiles the call plans;
the service, the command line and the children build the app before they use it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, overload

from mlpkit.errors import DeclarationError
from mlpkit.injection import Plan, compile_plan, did_you_mean, where
from mlpkit.settings import size

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

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


@dataclass(frozen=True)
class TrainOptions:
    """What a training job may use. `memory` in bytes, `timeout` in seconds; None is no limit."""

    cpus: int | None = None
    gpus: int = 0
    memory: int | None = None
    timeout: float | None = None
    max_attempts: int = 1


@dataclass(frozen=True)
class LoadOptions:
    """Where models live: in a process of their own (`isolated`), in how many workers (`replicas`); what is loaded at start."""

    isolated: bool = False
    replicas: int = 1
    preload: tuple[str, ...] = ()
    memory: int | None = None
    timeout: float | None = None


@dataclass(frozen=True)
class PredictOptions:
    """How predictions run. `max_wait_ms` is the longest wait for company in a batch, `timeout` is in seconds."""

    max_batch_size: int = 1
    max_wait_ms: float = 0.5
    threads: int = 1
    timeout: float | None = None


Options = TrainOptions | LoadOptions | PredictOptions | None


@dataclass
class Hook:
    """One decorated function of an algorithm; `plan` is compiled when the app is built."""

    name: str
    function: Callable[..., Any]
    options: Options = None
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


class Algorithm:
    """One algorithm: a name, a kind, and the functions that its decorators recorded."""

    def __init__(self, name: str, *, kind: str = "text_custom", examples: Sequence[Any] = ()) -> None:
        self.name, self.kind, self.examples = name, kind, tuple(examples)
        self.hooks: dict[str, Hook] = {}
        self._mistakes: list[str] = _mistakes_of_name(name, kind)

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
    def train(
        self,
        *,
        cpus: int | None = None,
        gpus: int = 0,
        memory: int | str | None = None,
        timeout: float | None = None,
        max_attempts: int = 1,
    ) -> Callable[[F], F]: ...
    def train(
        self,
        function: F | None = None,
        /,
        *,
        cpus: int | None = None,
        gpus: int = 0,
        memory: int | str | None = None,
        timeout: float | None = None,
        max_attempts: int = 1,
    ) -> F | Callable[[F], F]:
        """Records the function that trains a model, in a process of its own for every job.

        `cpus` sets the number of threads of numerical libraries, `gpus` how many devices the job sees, `memory` (bytes or
        "2GiB") and `timeout` (seconds) end the job when it exceeds them, `max_attempts` is how often a job that was cut off
        by a crash of the service is run in all.
        """
        self._at_least("train", cpus=(cpus, 1), gpus=(gpus, 0), timeout=(timeout, 0), max_attempts=(max_attempts, 1))
        options = TrainOptions(cpus, gpus, self._bytes("train", memory), timeout, max_attempts)
        return self._record("train", function, options)

    @overload
    def load(self, function: F, /) -> F: ...
    @overload
    def load(
        self,
        *,
        isolated: bool = False,
        replicas: int = 1,
        preload: Sequence[str] = (),
        memory: int | str | None = None,
        timeout: float | None = None,
    ) -> Callable[[F], F]: ...
    def load(
        self,
        function: F | None = None,
        /,
        *,
        isolated: bool = False,
        replicas: int = 1,
        preload: Sequence[str] = (),
        memory: int | str | None = None,
        timeout: float | None = None,
    ) -> F | Callable[[F], F]:
        """Records the function that returns the model (a generator yields it, and is resumed when it is unloaded).

        `isolated`: every model gets a process of its own, which ends with it. `replicas`: in how many processes a model is
        loaded. `preload`: the ids of models that are loaded when the service starts. `memory`: what a model needs.
        """
        self._at_least("load", replicas=(replicas, 1), timeout=(timeout, 0))
        if isinstance(preload, str):
            self._mistakes.append(f"@{self.name}.load: preload is a list of model ids: preload=[{preload!r}]")
            preload = (preload,)
        options = LoadOptions(isolated, replicas, tuple(preload), self._bytes("load", memory), timeout)
        return self._record("load", function, options)

    @overload
    def predict(self, function: F, /) -> F: ...
    @overload
    def predict(
        self, *, max_batch_size: int = 1, max_wait_ms: float = 0.5, threads: int = 1, timeout: float | None = None
    ) -> Callable[[F], F]: ...
    def predict(
        self,
        function: F | None = None,
        /,
        *,
        max_batch_size: int = 1,
        max_wait_ms: float = 0.5,
        threads: int = 1,
        timeout: float | None = None,
    ) -> F | Callable[[F], F]:
        """Records the function that answers a prediction.

        `max_batch_size` of more than 1 makes `features`, `params` and `uuid` lists, and the answer a list of the same length.
        `max_wait_ms` is the longest that a batch waits for company, `threads` how many predictions of one model run at the
        same time in a process, `timeout` (seconds) ends a prediction together with its process.
        """
        self._at_least(
            "predict",
            max_batch_size=(max_batch_size, 1),
            max_wait_ms=(max_wait_ms, 0),
            threads=(threads, 1),
            timeout=(timeout, 0),
        )
        return self._record("predict", function, PredictOptions(max_batch_size, max_wait_ms, threads, timeout))

    def unload(self, function: F) -> F:
        """Records what is called before a model is dropped; its exceptions are logged, the model is dropped all the same."""
        return self._record_plain("unload", function)

    def delete(self, function: F) -> F:
        """Records what deletes a model, in place of removing its folder from the model bucket."""
        return self._record_plain("delete", function)

    def status(self, function: F) -> F:
        """Records what answers a status request; gets mlpkit's own word as `default`."""
        return self._record_plain("status", function)

    def model_id(self, function: F) -> F:
        """Records what makes the id of a new model: a string of 1 to 64 characters."""
        return self._record_plain("model_id", function)

    def mistakes(self) -> list[str]:
        """Everything that is wrong with the declaration, a message each."""
        found = list(self._mistakes)
        for hook in self.hooks.values():
            try:
                hook.plan  # noqa: B018 - compiled here for its errors
            except DeclarationError as error:
                found.append(str(error))
        if "predict" in self.hooks and "load" not in self.hooks:
            found.append(
                f"{where(self.hooks['predict'].function)}: algorithm {self.name!r} has a predict but no load: "
                f"add a function with @{self.name}.load that returns the model (None is a model too)"
            )
        if "predict" in self.hooks and inspect.isgeneratorfunction(self.hooks["predict"].function):
            found.append(f"{where(self.hooks['predict'].function)}: predict returns its answer, it cannot yield")
        return found

    def _record(self, name: str, function: F | None, options: Options) -> F | Callable[[F], F]:
        def record(function: F) -> F:
            return self._record_plain(name, function, options)

        return record if function is None else record(function)

    def _record_plain(self, name: str, function: F, options: Options = None) -> F:
        problem = _unusable(function)
        if problem:
            self._mistakes.append(f"@{self.name}.{name}: {problem}")
        elif name in self.hooks and self.hooks[name].function is not function:
            self._mistakes.append(
                f"{where(function)}: algorithm {self.name!r} has its {name} already: {where(self.hooks[name].function)}"
            )
        else:
            self.hooks[name] = Hook(name, function, options)
        return function

    def _at_least(self, hook: str, **limits: tuple[float | None, float]) -> None:
        for name, (value, least) in limits.items():
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least:
                self._mistakes.append(f"@{self.name}.{hook}: {name}={value!r}: a number of at least {least} is needed")

    def _bytes(self, hook: str, memory: int | str | None) -> int | None:
        try:
            return size(memory) if isinstance(memory, str) else memory
        except ValueError as error:
            self._mistakes.append(f"@{self.name}.{hook}: memory={memory!r}: it must be {error}")
            return None


@dataclass(frozen=True)
class Origin:
    """Where an App was made: the module's name and file, from which children import it again."""

    module: str
    file: str | None = None


@dataclass
class _Lifecycle:
    on_start: list[Hook] = field(default_factory=list)
    on_stop: list[Hook] = field(default_factory=list)


class App(Algorithm):
    """An application: one algorithm of its own name, further ones beside it, and those of other apps.

    It is an ASGI application (`uvicorn sentiment:app`); `app.run()` serves it from `if __name__ == "__main__"`.

    Args:
        name: the algorithm's name in requests, at most 32 characters.
        kind: what its answers look like; see `KINDS`.
        examples: a few `features` that `mlpkit check` predicts.
    """

    def __init__(self, name: str, *, kind: Kind = "text_custom", examples: Sequence[Any] = ()) -> None:
        super().__init__(name, kind=kind, examples=examples)
        caller = sys._getframe(1).f_globals
        self.origin = Origin(caller.get("__name__", "__main__"), caller.get("__file__"))
        self.dependency_overrides: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._others: list[Algorithm] = []
        self._included: list[App] = []
        self._lifecycle = _Lifecycle()
        self._built: dict[str, Algorithm] | None = None
        self._asgi: Any = None

    def algorithm(self, name: str, *, kind: Kind = "text_custom", examples: Sequence[Any] = ()) -> Algorithm:
        """A further algorithm of this app, with decorators of its own."""
        other = Algorithm(name, kind=kind, examples=examples)
        self._others.append(other)
        return other

    def include(self, *apps: App) -> App:
        """Adds the algorithms of other apps, and returns this one."""
        for each in apps:
            if not isinstance(each, App):
                self._mistakes.append(f"App({self.name!r}).include takes apps, not {each!r}")
            elif each is self or self in each._included:
                self._mistakes.append(f"App({self.name!r}) includes itself")
            else:
                self._included.append(each)
        return self

    def on_start(self, function: F) -> F:
        """Records what every worker process runs once, before it takes work."""
        self._lifecycle.on_start.append(Hook("on_start", function))
        return function

    def on_stop(self, function: F) -> F:
        """Records what every worker process runs once, when it stops."""
        self._lifecycle.on_stop.append(Hook("on_stop", function))
        return function

    def lifecycle(self, name: Literal["on_start", "on_stop"]) -> list[Hook]:
        """The functions of this app and of the included ones, in the order of their declaration."""
        hooks = [hook for app in self._included for hook in app.lifecycle(name)]
        return hooks + list(getattr(self._lifecycle, name))

    def overrides(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        """The dependency overrides of this app and of the included ones."""
        merged: dict[Callable[..., Any], Callable[..., Any]] = {}
        for app in self._included:
            merged.update(app.overrides())
        merged.update(self.dependency_overrides)
        return merged

    def build(self) -> Mapping[str, Algorithm]:
        """The algorithms by name, in order of registration, checked and with compiled plans.

        Raises:
            DeclarationError: all mistakes of the script in one message.
        """
        if self._built is None:
            found = self._mistakes_of_all()
            if found:
                count = "" if len(found) == 1 else f"{len(found)} mistakes:\n"
                raise DeclarationError(count + "\n".join(found))
            self._built = {each.name: each for each in self.algorithms()}
        return self._built

    def algorithms(self) -> list[Algorithm]:
        """The algorithms of this app and of the included ones; the app's own only where it has hooks of its own."""
        own: list[Algorithm] = [self] if self.hooks else []
        return own + self._others + [each for app in self._included for each in app.algorithms()]

    def run(self, *, host: str = "127.0.0.1", port: int = 8000, workers: int | None = None) -> None:
        """Serves the app until it is told to stop, as `python -m mlpkit run` does."""
        from mlpkit.service import serve

        serve(self, host=host, port=port, workers=workers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._asgi is None:
            from mlpkit.service import asgi

            self._asgi = asgi(self)
        await self._asgi(scope, receive, send)

    def _mistakes_of_all(self) -> list[str]:
        algorithms = self.algorithms()
        found = [each for app in (self, *self._included) for each in app._mistakes if not app.hooks]
        if not algorithms:
            found.append(f"App({self.name!r}) has no algorithm: decorate a function with @app.train, @app.load or @app.predict")
        names: dict[str, Algorithm] = {}
        for each in algorithms:
            found += each.mistakes()
            twin = names.setdefault(each.name, each)
            if twin is not each:
                found.append(f"two algorithms are called {each.name!r}: {_place(twin)} and {_place(each)}")
        for hook in self.lifecycle("on_start") + self.lifecycle("on_stop"):
            try:
                hook.plan  # noqa: B018 - compiled here for its errors
            except DeclarationError as error:
                found.append(str(error))
        return found


def import_string(app: App) -> str:
    """`module:name` or `file.py:name`: how a child imports the app again.

    Raises:
        DeclarationError: the app is no attribute of the module in which it was made.
    """
    module = sys.modules.get(app.origin.module)
    name = next((key for key, value in vars(module).items() if value is app), None) if module else None
    if name is None:
        raise DeclarationError(
            f"App({app.name!r}) must be a global of the module {app.origin.module!r} in which it is made, "
            "so that worker processes can import it"
        )
    if app.origin.module == "__main__" and app.origin.file:
        return f"{Path(app.origin.file).resolve()}:{name}"
    return f"{app.origin.module}:{name}"


def _unusable(function: object) -> str:
    if not callable(function):
        return f"decorates {function!r}, which is no function"
    if isinstance(function, (staticmethod, classmethod)) or inspect.isclass(function):
        return f"decorates {function!r}: a plain function of the module is needed"
    qualified = getattr(function, "__qualname__", "")
    if "<lambda>" in qualified:
        return f"{where(function)} is a lambda: a named function of the module is needed, so that logs and errors can name it"
    if "<locals>" in qualified:
        outer = qualified.partition(".<locals>")[0]
        return (
            f"{where(function)} is defined inside {outer}: worker processes import the script and find only its own "
            "functions: move it to the top of the module"
        )
    return ""


def _mistakes_of_name(name: object, kind: object) -> list[str]:
    found = []
    if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST_NAME:
        found.append(f"App({name!r}): an algorithm's name is a string of 1 to {_LONGEST_NAME} characters")
    if kind not in KINDS:
        found.append(
            f"App({name!r}): no kind {kind!r}{did_you_mean(str(kind), KINDS)}\n  kinds: {', '.join(KINDS)}"
        )
    return found


def _place(algorithm: Algorithm) -> str:
    hook = next(iter(algorithm.hooks.values()), None)
    return where(hook.function) if hook else f"algorithm({algorithm.name!r}), which has no functions"
