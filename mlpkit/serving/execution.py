"""Where handlers run: threads, contexts, and the event loop.

- `load`, `predict` and `unload` of a model run in its thread, one after the other, in one context. What `load` sets or
  opens is there in every prediction, as in a plain script, and no event loop runs in that thread.
- With `threads=N`, predictions run in N further threads. Each begins with what `load` has left.
- The handlers of an isolated model run in the main thread of its process, so that signals work there.
- A thread begins with what the main thread had after the import and `on_start`: context variables, and the settings
  that libraries keep per thread (`_PER_THREAD`).
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from mlpkit.errors import UserCodeError
from mlpkit.injection import async_user_code
from mlpkit.log import logger

T = TypeVar("T")


class ThreadState:
    """What code finds in a thread when it begins.

    These are context variables, and settings that libraries keep per thread.
    """

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._settings = _read_settings()

    def run(self, function: Callable[[], None]) -> None:
        """Calls the function in a copy of this state.

        To be used once, when a thread begins.
        """
        self._context.copy().run(self._apply_and_call, function)

    def _apply_and_call(self, function: Callable[[], None]) -> None:
        for name, apply in self._settings.items():
            try:
                apply()
            except Exception as error:
                logger.warning("the settings of {} cannot be applied in a model's thread: {!r}", name, error)
        function()


def _read_settings() -> dict[str, Callable[[], object]]:
    """What this thread has set, by library.

    Each function applies it in another thread.
    """
    found: dict[str, Callable[[], object]] = {}
    for name, read in _PER_THREAD.items():
        module = sys.modules.get(name)
        if module is None:
            continue
        try:
            found[name] = read(module)
        except Exception as error:
            # The script may have put anything in the place of a library, or imported half of one.
            logger.warning("the settings of {} in this thread cannot be read: {!r}", name, error)
    return found


def _decimal(decimal: Any) -> Callable[[], object]:
    # Context variables are copied, but the copies hold one object: a model must not change another's precision.
    return lambda: decimal.setcontext(decimal.getcontext().copy())


def _numpy(numpy: Any) -> Callable[[], object]:
    # A context variable since numpy 2.
    errors = numpy.geterr()
    call = numpy.geterrcall()

    def apply() -> None:
        numpy.seterr(**errors)
        numpy.seterrcall(call)

    return apply


def _sklearn(sklearn: Any) -> Callable[[], object]:
    config = sklearn.get_config()
    return lambda: sklearn.set_config(**config)


def _threadpoolctl(threadpoolctl: Any) -> Callable[[], object]:
    # OpenMP keeps the number of threads per thread. Nothing is set unless the script has changed it here.
    def limits() -> dict[str, int]:
        infos = threadpoolctl.threadpool_info()
        return {info["prefix"]: info["num_threads"] for info in infos if info["user_api"] == "openmp"}

    fresh: list[dict[str, int]] = []
    thread = threading.Thread(target=lambda: fresh.append(limits()))
    thread.start()
    here = limits()
    thread.join()
    if fresh == [here]:
        return lambda: None
    return lambda: threadpoolctl.threadpool_limits(here)


def _torch(torch: Any) -> Callable[[], object]:
    grad = torch.is_grad_enabled()
    # None is the default of older versions, which do not tell.
    device = torch.get_default_device() if hasattr(torch, "get_default_device") else None
    gpu = torch.cuda.current_device() if torch.cuda.is_available() and torch.cuda.is_initialized() else None

    def apply() -> None:
        torch.set_grad_enabled(grad)
        if device is not None and device.type != "cpu":
            torch.set_default_device(device)
        if gpu is not None:
            torch.cuda.set_device(gpu)

    return apply


def _xgboost(xgboost: Any) -> Callable[[], object]:
    config = xgboost.get_config()
    return lambda: xgboost.set_config(**config)


_PER_THREAD: dict[str, Callable[[Any], Callable[[], object]]] = {
    "decimal": _decimal,
    "numpy": _numpy,
    "sklearn": _sklearn,
    "threadpoolctl": _threadpoolctl,
    "torch": _torch,
    "xgboost": _xgboost,
}
"""By name of the module: what reads its settings in this thread, and gives a function that applies them in another."""


class Thread(Protocol):
    """Calls functions one after the other, always in the same thread."""

    def put(self, function: Callable[[T], object], argument: T) -> None:
        """Calls a function, which never raises, after those before it."""

    def close(self) -> None:
        """Ends after the calls before this."""


class CallingThread:
    """The thread that puts the call itself.

    It is the main thread of a process with a single model.
    """

    def put(self, function: Callable[[T], object], argument: T) -> None:
        function(argument)

    def close(self) -> None:
        """Nothing ends: the thread belongs to the process."""


class WorkerThreads:
    """Threads that take calls from one queue.

    They do not keep the process from ending.

    Raises:
        RuntimeError: the system allows no more threads.
    """

    def __init__(self, name: str, state: ThreadState, count: int = 1) -> None:
        self._calls: SimpleQueue[tuple[Callable[[Any], object], Any] | None] = SimpleQueue()
        self._count = 0
        for _ in range(count):
            threading.Thread(target=state.run, args=(self._work,), name=name, daemon=True).start()
            self._count += 1

    def put(self, function: Callable[[T], object], argument: T) -> None:
        self._calls.put((function, argument))

    def close(self) -> None:
        """Ends the threads after the calls before this."""
        for _ in range(self._count):
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, argument = call
            function(argument)
            # A waiting thread must not keep a model alive.
            del call, function, argument


class EventLoopThread:
    """The event loop of the `async def` handlers.

    It runs in a thread that starts with the first of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, function: Callable[..., Any], /, **arguments: Any) -> Any:
        """What an `async` function of the user's returns.

        The calling thread waits, and gets the context variables that the function has set.

        Raises:
            UserCodeError: it raised, or was cancelled by something that it awaited.
        """

        async def run() -> tuple[Any, contextvars.Context]:
            try:
                return await async_user_code(function, **arguments), contextvars.copy_context()
            except asyncio.CancelledError:
                raise UserCodeError("CancelledError") from None

        value, context = asyncio.run_coroutine_threadsafe(run(), self.loop).result()
        _take_over(context)
        return value

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, which runs."""
        with self._lock:
            if self._loop is None:
                self._loop = _new_loop()
                threading.Thread(target=self._loop.run_forever, name="mlpkit-async", daemon=True).start()
            return self._loop

    def close(self) -> None:
        """Ends the loop and its thread."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)


def _take_over(context: contextvars.Context) -> None:
    """Sets the variables of this context as they are in another."""
    here = contextvars.copy_context()
    missing = object()
    for variable, value in context.items():
        if here.get(variable, missing) is not value:
            variable.set(value)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
