"""App: everything that a script declares.

Nothing here starts, connects or writes anything.

`App.build` checks the whole declaration and compiles the call plans; the service, the command line and the children
build the app before they use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mlpkit.algorithm import Algorithm, Hook
from mlpkit.errors import DeclarationError
from mlpkit.injection import calling_frame, calling_place

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from mlpkit.local import Local

F = TypeVar("F", bound=Callable[..., Any])
_Lifecycle = Literal["on_start", "on_stop"]

importing: ContextVar[bool] = ContextVar("importing", default=False)
"""Whether a script is being imported here, to serve, train or check it."""


@dataclass(frozen=True)
class Origin:
    """The module that made an App: children import it again."""

    module: str
    file: str | None = None


class App(Algorithm):
    """An application: its own algorithm, further algorithms, and included apps.

    It is an ASGI application (`uvicorn sentiment:app`); `app.run()` serves it from `if __name__ == "__main__"`.

    Args:
        name: the algorithm's name in requests, at most 32 characters.
        kind: what its data and answers look like; see `mlpkit.formats.KINDS`.
        examples: a few `features` that `mlpkit check` predicts.
    """

    def __init__(self, name: str, *, kind: str = "text_custom", examples: Sequence[Any] = ()) -> None:
        super().__init__(name, kind=kind, examples=examples)
        caller = calling_frame().f_globals
        self.origin = Origin(caller.get("__name__", "__main__"), caller.get("__file__"))
        self.dependency_overrides: dict[Callable[..., Any], Callable[..., Any]] = {}
        """Replacements for factories of dependencies, in tests: `app.dependency_overrides[tables] = fake`."""
        self._others: list[Algorithm] = []
        self._included: list[App] = []
        self._lifecycle: dict[_Lifecycle, list[Hook]] = {"on_start": [], "on_stop": []}
        self._asgi: ASGIApp | None = None

    def algorithm(self, name: str, *, kind: str = "text_custom", examples: Sequence[Any] = ()) -> Algorithm:
        """A further algorithm of this app, with its own decorators."""
        other = Algorithm(name, kind=kind, examples=examples)
        self._others.append(other)
        return other

    def include(self, *apps: App) -> App:
        """Adds the algorithms of other apps, and returns this one."""
        for app in apps:
            if not isinstance(app, App):
                self._mistakes.append(f"{calling_place()}: include takes apps, not {app!r}")
            elif any(inner is self for inner in app._apps()):
                self._mistakes.append(f"{calling_place()}: App({self.name!r}) includes itself")
            else:
                self._included.append(app)
        return self

    def on_start(self, function: F) -> F:
        """Records what every worker process runs once, before it takes work."""
        return self._add_lifecycle("on_start", function)

    def on_stop(self, function: F) -> F:
        """Records what every worker process runs once, when it stops."""
        return self._add_lifecycle("on_stop", function)

    def lifecycle(self, name: _Lifecycle) -> list[Hook]:
        """The functions of included apps and of this one, in declared order."""
        return [hook for app in reversed(list(self._apps())) for hook in app._lifecycle[name]]

    def overrides(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        """The dependency overrides of included apps and this one, which wins."""
        merged: dict[Callable[..., Any], Callable[..., Any]] = {}
        for app in reversed(list(self._apps())):
            merged.update(app.dependency_overrides)
        return merged

    def build(self) -> Mapping[str, Algorithm]:
        """The algorithms by name, checked and with compiled plans.

        Raises:
            DeclarationError: all mistakes of the script in one message.
        """
        algorithms = self.algorithms()
        found = self._all_mistakes(algorithms)
        if found:
            count = "" if len(found) == 1 else f"{len(found)} mistakes:\n"
            raise DeclarationError(count + "\n".join(found))
        return {algorithm.name: algorithm for algorithm in algorithms}

    def algorithms(self) -> list[Algorithm]:
        """The algorithms of this app and of the included ones.

        An app counts as an algorithm only if it has hooks of its own.
        """
        return [algorithm for app in self._apps() for algorithm in ([app] if app.hooks else []) + app._others]

    def run(self, *, host: str = "127.0.0.1", port: int = 8000, workers: int | None = None) -> None:
        """Serves the app, as `python -m mlpkit run` does.

        It does nothing while mlpkit imports the script, for example in a worker.
        """
        if importing.get():
            from mlpkit.log import logger

            logger.warning(
                '{}: app.run() starts nothing while the script is imported; put it below if __name__ == "__main__":',
                calling_place(),
            )
            return
        from mlpkit.service import serve

        serve(self, host=host, port=port, workers=workers)

    def local(self) -> Local:
        """The app in this process, without a service: for notebooks.

        Settings come from the environment, as for a service.

        Raises:
            DeclarationError: the app has mistakes.
            SettingsError: a setting cannot be used.
        """
        from mlpkit.local import Local

        return Local(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._asgi is None:
            from mlpkit.service import asgi

            self._asgi = asgi(self)
        await self._asgi(scope, receive, send)

    def _apps(self, seen: set[int] | None = None) -> Iterator[App]:
        """This app and the included ones, each once."""
        seen = set() if seen is None else seen
        if id(self) not in seen:
            seen.add(id(self))
            yield self
            for app in self._included:
                yield from app._apps(seen)

    def _add_lifecycle(self, name: _Lifecycle, function: F) -> F:
        if not self._refuses(name, function):
            self._lifecycle[name].append(Hook(name, function))
        return function

    def _all_mistakes(self, algorithms: list[Algorithm]) -> list[str]:
        found: list[str] = []
        for app in self._apps():
            if not app.hooks:
                found += app.mistakes()
            for hook in app._lifecycle["on_start"] + app._lifecycle["on_stop"]:
                found += hook.mistakes()
        if not algorithms and not found:
            found.append(
                f"{self.place}: App({self.name!r}) has no algorithm: decorate a function with @app.train, @app.load "
                "or @app.predict"
            )
        names: dict[str, Algorithm] = {}
        for algorithm in algorithms:
            found += algorithm.mistakes()
            twin = names.setdefault(algorithm.name, algorithm)
            if twin is not algorithm:
                found.append(f"{algorithm.place}: there is another algorithm named {algorithm.name!r}: {twin.place}")
        return found


__all__ = ["Algorithm", "App", "Origin"]
